"""From trials to means, paired differences and plain words; tables for Markdown, terminals and CSV."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import rich.box
import rich.table
import rich.text
from scipy.special import stdtr

from winnow.tasks.errors import BadInput

__all__ = [
    "Table",
    "accuracy_table",
    "comparison_table",
    "cost_table",
    "difference_table",
    "escape_markdown",
    "mean_sd",
    "methods",
    "p_value",
    "percent",
    "summarise",
    "to_csv",
    "to_markdown",
    "to_rich",
    "verdicts",
]

Accuracy = Literal["last", "best"]
LEVEL = 0.05  # p below this is called a difference
MINUS = "\u2212"
MISSING = "\u2013"
WHOLE = 1.0 - 1e-9
_NUMBER = re.compile(r"[+\-\u2212<]?\d[\d,.]*(e[+-]?\d+)?[%×]?")
_KINDS: tuple[Accuracy, ...] = ("last", "best")
_SAID = {
    "last": "Test accuracy (%) after the last epoch",
    "best": "Test accuracy (%) of the best epoch, chosen with the test labels and therefore optimistic",
}


@dataclass(frozen=True)
class Table:
    """A table of ready-made strings.

    Attributes:
        columns: heading of each column; the first column names the rows.
        rows: cells, one tuple a row; a newline in a cell is a line break where the output has them.
        caption: what the numbers are, with units.
        bold: (row, column) of the cells to stress.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    bold: frozenset[tuple[int, int]] = frozenset()

    def __post_init__(self) -> None:
        for i, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise BadInput(f"rows[{i}] has {len(row)} cells, the table {len(self.columns)} columns.")

    def numeric(self, column: int) -> bool:
        """Whether every cell of the column is a number (then it is set flush right)."""
        cells = [row[column].split() for row in self.rows if row[column].strip() not in ("", MISSING)]
        return bool(cells) and all(_NUMBER.fullmatch(words[0]) for words in cells)


def percent(fraction: float) -> str:
    """A fraction as a percentage with no more digits than it has.

    >>> percent(0.1), percent(0.125), percent(1 - 0.9)
    ('10 %', '12.5 %', '10 %')
    """
    return f"{100 * fraction:.4g} %"


def p_value(p: float) -> str:
    """A p value with the digits that mean something.

    >>> p_value(0.3141), p_value(0.0412), p_value(1e-9)
    ('p = 0.31', 'p = 0.041', 'p < 0.001')
    """
    return "p < 0.001" if p < 0.001 else f"p = {p:.{3 if p < 0.0995 else 2}f}"


def mean_sd(mean: float, sd: float | None, digits: int = 1) -> str:
    """Mean ± sample standard deviation of accuracies, fractions in and per cent out.

    >>> mean_sd(0.9312, 0.0041), mean_sd(0.9312, None)
    ('93.1 ± 0.4', '93.1')
    """
    text = f"{100 * mean:.{digits}f}"
    return text if sd is None else f"{text} ± {100 * sd:.{digits}f}"


def _signed(points: float, digits: int) -> str:
    text = f"{abs(100 * points):.{digits}f}"
    if float(text) == 0:
        return text
    return f"{MINUS if points < 0 else '+'}{text}"


def _digits(rows: Sequence[Mapping[str, Any]], accuracy: Accuracy) -> int:
    """One decimal, or two where one would show a spread as 0.0."""
    spreads = [row[f"{accuracy}_sd"] for row in rows if row[f"{accuracy}_sd"]]
    return 2 if spreads and min(spreads) < 0.0005 else 1


def _spread(values: np.ndarray) -> float | None:
    return float(values.std(ddof=1)) if len(values) > 1 else None


def _paired_p(differences: np.ndarray) -> float:
    """Two-sided p-value of a paired t test; scipy.stats has it, but takes as long to load as a cached flow to run."""
    t = differences.mean() / (differences.std(ddof=1) / np.sqrt(len(differences)))
    return float(2 * stdtr(len(differences) - 1, -abs(t)))


def _check(trials: Sequence[Mapping[str, Any]]) -> None:
    if not trials:
        raise BadInput(
            "trials is empty: there is no training run to report.", remedy="train on at least one coreset"
        )
    seen: dict[tuple[str, float, Any], int] = {}
    for i, trial in enumerate(trials):
        for name in ("method", "fraction", "seed", "last_accuracy", "best_accuracy"):
            if trial.get(name) is None:
                raise BadInput(
                    f"trials[{i}] has no {name!r}; it has {', '.join(map(str, trial)) or 'nothing'}."
                )
        if not 0 < trial["fraction"] <= 1:
            raise BadInput(f"trials[{i}]: fraction is {trial['fraction']!r}, not in (0, 1].")
        for name in ("last_accuracy", "best_accuracy"):
            if not 0 <= trial[name] <= 1:
                raise BadInput(
                    f"trials[{i}]: {name} is {trial[name]!r}, not in [0, 1].",
                    remedy="give accuracies as fractions: 0.931, not 93.1",
                )
        key = (str(trial["method"]), round(float(trial["fraction"]), 9), trial["seed"])
        if key in seen:
            raise BadInput(
                f"trials[{i}] repeats trials[{seen[key]}]: method {key[0]!r}, fraction {key[1]:g}, seed "
                f"{key[2]}.",
                remedy="name variants of a method apart, for example 'elfs (mis_ratio 0.3)'",
            )
        seen[key] = i


def methods(trials: Sequence[Mapping[str, Any]], baseline: str = "random") -> list[str]:
    """Methods in the order of tables and legends: the baseline, the others as they come, ``full`` last."""
    names = dict.fromkeys(str(trial["method"]) for trial in trials)
    return sorted(names, key=lambda name: (name == "full", name != baseline))


def summarise(trials: Sequence[Mapping[str, Any]], *, baseline: str = "random") -> list[dict[str, Any]]:
    r"""Mean, spread and paired difference against a baseline, of each method at each fraction.

    With accuracies :math:`a_s` and the baseline's :math:`b_s` on their common seeds :math:`s`, the difference
    is :math:`\bar d = \frac1n \sum_s (a_s - b_s)`, its sd has :math:`n - 1` in the denominator, and p is that
    of the two-sided paired t-test, :math:`t = \bar d \sqrt n / \mathrm{sd}(d)`. A baseline that was trained
    on the whole dataset only (``full``, or a hiding run that hides nothing) is compared with every fraction.

    Args:
        trials: one mapping a training run with ``method``, ``fraction`` (kept), ``seed``, ``last_accuracy``
            and ``best_accuracy`` (fractions in [0, 1]), and, where known, ``samples``, ``seconds`` and
            ``selection_seconds``.
        baseline: the method to compare with.

    Returns:
        One dict for each (method, fraction), with the baseline's first, ``full`` last and fractions
        ascending: ``method, fraction, n, samples, seconds, selection_seconds`` (means), ``last_mean, last_sd,
        best_mean, best_sd``, ``baseline`` (None where there is none to compare with), ``pairs`` (common
        seeds), and ``last_difference, last_difference_sd, last_p`` and the same of best. What cannot be had
        is None: an sd of one value, a p of fewer than two pairs or of differences without spread.

    Raises:
        BadInput: no trials, a missing or impossible value, or the same method, fraction and seed twice.

    >>> runs = [("random", 0, 0.90), ("random", 1, 0.92), ("elfs", 0, 0.93), ("elfs", 1, 0.94)]
    >>> rows = summarise([dict(method=m, fraction=0.1, seed=s, last_accuracy=a, best_accuracy=a) for m, s, a in runs])
    >>> [row["method"] for row in rows], round(rows[1]["last_difference"], 4), round(rows[1]["last_p"], 4)
    (['random', 'elfs'], 0.025, 0.1257)
    """
    _check(trials)
    cells: dict[tuple[str, float], dict[Any, Mapping[str, Any]]] = {}
    for trial in trials:
        cells.setdefault((str(trial["method"]), round(float(trial["fraction"]), 9)), {})[trial["seed"]] = (
            trial
        )
    anchors = [fraction for name, fraction in cells if name == baseline]
    whole = len(anchors) == 1 and anchors[0] > WHOLE
    rank = {name: i for i, name in enumerate(methods(trials, baseline))}
    rows = []
    for (name, fraction), runs in sorted(cells.items(), key=lambda cell: (rank[cell[0][0]], cell[0][1])):
        row: dict[str, Any] = {"method": name, "fraction": fraction, "n": len(runs)}
        for quantity in ("samples", "seconds", "selection_seconds"):
            known = [run[quantity] for run in runs.values() if run.get(quantity) is not None]
            row[quantity] = float(np.mean(known)) if known else None
        rivals = cells.get((baseline, anchors[0] if whole else fraction), {}) if name != baseline else {}
        common = [seed for seed in runs if seed in rivals]
        row["baseline"] = baseline if rivals else None
        row["pairs"] = len(common)
        for kind in _KINDS:
            key = f"{kind}_accuracy"
            values = np.array([run[key] for run in runs.values()], np.float64)
            row[f"{kind}_mean"], row[f"{kind}_sd"] = float(values.mean()), _spread(values)
            ours = np.array([runs[seed][key] for seed in common], np.float64)
            differences = ours - np.array([rivals[seed][key] for seed in common], np.float64)
            spread = _spread(differences)
            row[f"{kind}_difference"] = float(differences.mean()) if common else None
            row[f"{kind}_difference_sd"] = spread
            # differences that agree to rounding leave nothing to test with: t would be 0/0 or rounding noise
            tested = spread is not None and spread > 1e-12
            row[f"{kind}_p"] = _paired_p(differences) if tested else None
        rows.append(row)
    return rows


def _seeds_said(rows: Sequence[Mapping[str, Any]]) -> str:
    counts = sorted({row["n"] for row in rows})
    if counts == [1]:
        return "one seed, so without a spread"
    if len(counts) == 1:
        return f"mean ± sample sd over {counts[0]} seeds"
    return f"mean ± sample sd over {counts[0]} to {counts[-1]} seeds, n in brackets"


def _index(
    rows: Sequence[Mapping[str, Any]],
) -> tuple[list[str], list[float], dict[tuple[str, float], Mapping[str, Any]]]:
    if not rows:
        raise BadInput(
            "rows is empty: there is nothing to put into a table.",
            remedy="pass what summarise(trials) returns",
        )
    names = list(dict.fromkeys(row["method"] for row in rows))
    return (
        names,
        sorted({row["fraction"] for row in rows}),
        {(row["method"], row["fraction"]): row for row in rows},
    )


def accuracy_table(rows: Sequence[Mapping[str, Any]], *, accuracy: Accuracy = "last") -> Table:
    """Methods × fractions kept, ``mean ± sd`` in per cent, the best of each column stressed.

    Args:
        rows: what ``summarise`` returns.
        accuracy: ``"last"`` epoch or ``"best"`` epoch; the caption says which.

    >>> trials = [dict(method=m, fraction=0.1, seed=0, last_accuracy=a, best_accuracy=a) for m, a in (("random", 0.9), ("d2", 0.92))]
    >>> print(to_markdown(accuracy_table(summarise(trials))))
    | method | 10 % kept |
    | :--- | ---: |
    | random | 90.0 |
    | d2 | **92.0** |
    <BLANKLINE>
    Test accuracy (%) after the last epoch; one seed, so without a spread. Best in bold.
    """
    names, fractions, cells = _index(rows)
    digits, mixed = _digits(rows, accuracy), len({row["n"] for row in rows}) > 1
    bold = set()
    for c, fraction in enumerate(fractions):
        column = {
            name: round(100 * cells[name, fraction][f"{accuracy}_mean"], digits)
            for name in names
            if (name, fraction) in cells
        }
        if len(column) > 1:
            bold |= {
                (names.index(name), c + 1) for name, value in column.items() if value == max(column.values())
            }
    body = []
    for name in names:
        line = [name]
        for fraction in fractions:
            row = cells.get((name, fraction))
            text = MISSING if row is None else mean_sd(row[f"{accuracy}_mean"], row[f"{accuracy}_sd"], digits)
            line.append(f"{text} ({row['n']})" if row is not None and mixed else text)
        body.append(tuple(line))
    caption = f"{_SAID[accuracy]}; {_seeds_said(rows)}." + (" Best in bold." if bold else "")
    return Table(
        ("method", *(f"{percent(fraction)} kept" for fraction in fractions)),
        tuple(body),
        caption,
        frozenset(bold),
    )


def difference_table(rows: Sequence[Mapping[str, Any]], *, accuracy: Accuracy = "last") -> Table | None:
    """Paired differences against the baseline in percentage points, with p; None where nothing is compared."""
    compared = [row for row in rows if row[f"{accuracy}_difference"] is not None]
    if not compared:
        return None
    names, fractions, cells = _index(compared)
    spreads = [row[f"{accuracy}_difference_sd"] for row in compared if row[f"{accuracy}_difference_sd"]]
    digits = max(_digits(rows, accuracy), 2 if spreads and min(spreads) < 0.0005 else 1)
    body, bold = [], set()
    for r, name in enumerate(names):
        line = [name]
        for c, fraction in enumerate(fractions):
            row = cells.get((name, fraction))
            if row is None:
                line.append(MISSING)
                continue
            text = _signed(row[f"{accuracy}_difference"], digits)
            if row[f"{accuracy}_difference_sd"] is not None:
                text += f" ± {100 * row[f'{accuracy}_difference_sd']:.{digits}f}"
            if row[f"{accuracy}_p"] is not None:
                text += f"\n({p_value(row[f'{accuracy}_p'])})"
                if row[f"{accuracy}_p"] < LEVEL:
                    bold.add((r, c + 1))
            line.append(text)
        body.append(tuple(line))
    pairs = sorted({row["pairs"] for row in compared})
    seeds = f"{pairs[0]}" if len(pairs) == 1 else f"{pairs[0]} to {pairs[-1]}"
    caption = (
        f"Difference from {compared[0]['baseline']} with the same seed, in percentage points of test "
        f"accuracy, {accuracy} epoch: mean"
        f"{' ± sample sd' if spreads else ''} over {seeds} seed{'' if pairs == [1] else 's'}"
    )
    if any(row[f"{accuracy}_p"] is not None for row in compared):
        caption += f"; p of a two-sided paired t-test, not adjusted for the number of comparisons; bold: p < {LEVEL:g}"
    return Table(
        ("method", *(f"{percent(f)} kept" for f in fractions)), tuple(body), caption + ".", frozenset(bold)
    )


def cost_table(rows: Sequence[Mapping[str, Any]]) -> Table | None:
    """Samples and seconds of one training run, mean over seeds; None where no trial says either."""
    names, fractions, cells = _index(rows)
    if all(row["samples"] is None and row["seconds"] is None for row in rows):
        return None
    body = []
    for name in names:
        line = [name]
        for fraction in fractions:
            row = cells.get((name, fraction))
            parts = []
            if row is not None and row["samples"] is not None:
                parts.append(f"{row['samples']:,.0f}")
            if row is not None and row["seconds"] is not None:
                parts.append(_duration(row["seconds"]))
            line.append("\n".join(parts) or MISSING)
        body.append(tuple(line))
    caption = "Samples trained on and wall-clock time of one training run, mean over seeds."
    return Table(("method", *(f"{percent(fraction)} kept" for fraction in fractions)), tuple(body), caption)


def mean_ranks(trials: Sequence[Mapping[str, Any]], *, accuracy: Accuracy = "last") -> dict[str, float]:
    """Each method's rank, 1 the best, mean over fractions and seeds; equals share the mean of their ranks; ``full`` is left out.

    >>> runs = [("random", 0.90), ("d2", 0.92), ("elfs", 0.92)]
    >>> mean_ranks([dict(method=m, fraction=0.1, seed=0, last_accuracy=a, best_accuracy=a) for m, a in runs])
    {'random': 3.0, 'd2': 1.5, 'elfs': 1.5}
    """
    _check(trials)
    races: dict[tuple[float, Any], dict[str, float]] = {}
    for trial in trials:
        if trial["fraction"] < WHOLE:
            races.setdefault((round(float(trial["fraction"]), 9), trial["seed"]), {})[
                str(trial["method"])
            ] = trial[f"{accuracy}_accuracy"]
    ranks: dict[str, list[float]] = {}
    for race in races.values():
        values = np.array(list(race.values()))
        for name, value in race.items():
            ranks.setdefault(name, []).append(
                float((values > value).sum() + ((values == value).sum() + 1) / 2)
            )
    return {name: float(np.mean(found)) for name, found in ranks.items()}


def comparison_table(trials: Sequence[Mapping[str, Any]], *, accuracy: Accuracy = "last") -> Table:
    """Many methods in one table, by mean rank: accuracies, marked where they differ from random's, rank, costs.

    >>> runs = [("random", 0, 0.90), ("random", 1, 0.92), ("d2", 0, 0.93), ("d2", 1, 0.9501)]
    >>> trials = [dict(method=m, fraction=0.1, seed=s, last_accuracy=a, best_accuracy=a, seconds=9) for m, s, a in runs]
    >>> print(to_markdown(comparison_table(trials)).partition("\n\n")[0])
    | method | 10 % kept | rank | training |
    | :--- | ---: | ---: | ---: |
    | d2 | **94.0 ± 1.4 ↑** | 1.0 | 9 s |
    | random | 91.0 ± 1.4 | 2.0 | 9 s |
    """
    rows, ranks = summarise(trials), mean_ranks(trials, accuracy=accuracy)
    by_rank = sorted(rows, key=lambda row: ranks.get(row["method"], math.inf))
    table = accuracy_table(by_rank, accuracy=accuracy)
    _, fractions, cells = _index(by_rank)
    named = {"selection_seconds": "selection", "seconds": "training"}
    costs = [quantity for quantity in named if any(row[quantity] is not None for row in rows)]
    body, marked = [], False
    for name, *texts in table.rows:
        line = [name]
        for fraction, text in zip(fractions, texts, strict=True):
            row = cells.get((name, fraction))
            differs = row is not None and row[f"{accuracy}_p"] is not None and row[f"{accuracy}_p"] < LEVEL
            line.append(
                f"{text} {'↑' if row[f'{accuracy}_difference'] > 0 else '↓'}"
                if differs and row is not None
                else text
            )
            marked |= differs
        line.append(f"{ranks[name]:.1f}" if name in ranks else MISSING)
        for quantity in costs:
            known = [row[quantity] for row in rows if row["method"] == name and row[quantity] is not None]
            line.append(_duration(float(np.mean(known))) if known else MISSING)
        body.append(tuple(line))
    races = len({(trial["fraction"], trial["seed"]) for trial in trials if trial["fraction"] < WHOLE})
    caption = table.caption
    if marked:
        caption += f" ↑ better, ↓ worse than {rows[0]['method']}: p < {LEVEL:g} in a two-sided t-test paired over seeds, not adjusted."
    caption += f" Rank among {len(ranks)} methods, 1 the best, mean over {races} pairs of fraction and seed."
    if costs:
        caption += (
            " Times are wall-clock: one selection, without the proxy's training that all share, and one "
            "training on the coreset, mean "
            "over all."
        )
    return Table((*table.columns, "rank", *(named[cost] for cost in costs)), tuple(body), caption, table.bold)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.{0 if minutes >= 10 else 1}f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def verdicts(
    rows: Sequence[Mapping[str, Any]], *, method: str | None = None, accuracy: Accuracy = "last"
) -> list[str]:
    """What the numbers say, one sentence for each fraction.

    Args:
        rows: what ``summarise`` returns.
        method: the method to judge; None judges the best of each fraction, and says out of how many.
        accuracy: which accuracy is compared.

    Raises:
        BadInput: ``method`` is in no row.

    >>> runs = [("random", 0, 0.90), ("random", 1, 0.92), ("elfs", 0, 0.93), ("elfs", 1, 0.9501)]
    >>> rows = summarise([dict(method=m, fraction=0.1, seed=s, last_accuracy=a, best_accuracy=a) for m, s, a in runs])
    >>> print(*verdicts(rows))
    At 10 % kept (90 % pruned): elfs 94.0 ± 1.4 against random 91.0 ± 1.4: +3.0 points, paired over 2 seeds, p
    = 0.001; beats random.
    """
    names, fractions, cells = _index(rows)
    if method is not None and method not in names:
        raise BadInput(f"method {method!r} is in no row; there are {', '.join(names)}.")
    digits = _digits(rows, accuracy)
    full = next((row for row in rows if row["method"] == "full" and row["fraction"] > WHOLE), None)
    rivals = {row["baseline"] for row in rows} - {None}
    lines = []
    for fraction in fractions:
        here = [
            row
            for row in rows
            if row["fraction"] == fraction and row["method"] not in rivals | {"full", "random"}
        ]
        if method is not None:
            here = [row for row in rows if row["fraction"] == fraction and row["method"] == method]
        if not here:
            continue
        row = max(here, key=lambda row: row[f"{accuracy}_mean"])
        place = (
            f"At {percent(fraction)} kept ({percent(1 - fraction)} pruned)"
            if fraction <= WHOLE
            else "On all samples"
        )
        best_of = f"the best of {len(here)} methods, " if len(here) > 1 else ""
        text = (
            f"{place}: {best_of}{row['method']} "
            f"{mean_sd(row[f'{accuracy}_mean'], row[f'{accuracy}_sd'], digits)}"
        )
        if row["baseline"] is None:
            text += "; no baseline was trained at this fraction, so there is nothing to compare it with"
        else:
            text += _comparison(row, cells, accuracy, digits, chosen=len(here) > 1)
        if full is not None and row["method"] != "full" and row["baseline"] != "full":
            whole = 100 * full[f"{accuracy}_mean"]
            gap = f"{abs(whole - 100 * row[f'{accuracy}_mean']):.{digits}f}"
            side = "below" if whole > 100 * row[f"{accuracy}_mean"] else "above"
            text += f"; {f'{gap} points {side}' if float(gap) else 'level with'} full ({whole:.{digits}f})"
        lines.append(f"{text}.")
    return lines or [
        f"Only {' and '.join(names)} {'was' if len(names) == 1 else 'were'} trained: there is nothing to "
        "compare."
    ]


def _comparison(
    row: Mapping[str, Any],
    cells: Mapping[tuple[str, float], Mapping[str, Any]],
    accuracy: Accuracy,
    digits: int,
    *,
    chosen: bool,
) -> str:
    name = row["baseline"]
    rival = (
        cells.get((name, row["fraction"]))
        or cells[name, max(fraction for other, fraction in cells if other == name)]
    )
    text = f" against {name} {mean_sd(rival[f'{accuracy}_mean'], rival[f'{accuracy}_sd'], digits)}"
    difference, p = row[f"{accuracy}_difference"], row[f"{accuracy}_p"]
    if difference is None:
        return f"{text}; they have no seed in common, so nothing is compared"
    text += f": {_signed(difference, digits)} points"
    if p is None:
        text += (
            " on one seed, too few for a test"
            if row["pairs"] == 1
            else f", the same on all {row['pairs']} seeds, too little for a test"
        )
        return text if difference > 0 else f"{text}; does not beat {name}"
    text += f", paired over {row['pairs']} seeds, {p_value(p)}"
    if p < LEVEL:
        text += f"; beats {name}" if difference > 0 else f"; worse than {name}"
        return text + (" (p not adjusted for choosing the best)" if chosen and difference > 0 else "")
    return f"{text}; does not {'reliably ' if difference > 0 else ''}beat {name}"


def escape_markdown(text: str) -> str:
    """The text with everything that Markdown or HTML would act on made literal, on one line."""
    escaped = re.sub(r"([\\`*_\[\]|~#])", r"\\\1", " ".join(str(text).split()))
    escaped = re.sub(
        r"^([-+=])(?=\s|[-=]*$)", r"\\\1", escaped
    )  # what would start a list, an underline or a rule
    escaped = re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", escaped)
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def to_markdown(table: Table) -> str:
    """The table as Markdown, the caption as a line under it."""
    lines = ["| " + " | ".join(map(escape_markdown, table.columns)) + " |"]
    lines.append(
        "| " + " | ".join("---:" if table.numeric(c) else ":---" for c in range(len(table.columns))) + " |"
    )
    for r, row in enumerate(table.rows):
        cells = (
            f"**{escape_markdown(cell)}**" if (r, c) in table.bold else escape_markdown(cell)
            for c, cell in enumerate(row)
        )
        lines.append("| " + " | ".join(cells) + " |")
    if table.caption:
        lines += ["", escape_markdown(table.caption)]
    return "\n".join(lines)


def to_rich(table: Table) -> rich.table.Table:
    """The table for a terminal."""
    drawn = rich.table.Table(
        caption=rich.text.Text(table.caption),
        caption_justify="left",
        box=rich.box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for c, column in enumerate(table.columns):
        drawn.add_column(
            rich.text.Text(column), justify="right" if table.numeric(c) else "left", no_wrap=c == 0
        )
    for r, row in enumerate(table.rows):
        drawn.add_row(
            *(
                rich.text.Text(cell.replace(" ± ", "±"), style="bold" if (r, c) in table.bold else "")
                for c, cell in enumerate(row)
            )
        )
    return drawn


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of ``summarise``, or trials, as CSV with a header: fractions as fractions, all digits, empty where unknown.

    >>> print(to_csv([{"method": "d2", "p": None, "n": 2}]), end="")
    method,p,n
    d2,,2
    """
    if not rows:
        raise BadInput("rows is empty: there is nothing to write.")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        values = (row.get(name) for name in columns)
        writer.writerow(
            "" if value is None or (isinstance(value, float) and math.isnan(value)) else value
            for value in values
        )
    return text.getvalue()
