"""A report's tables, made of finished strings, and their renderings for Markdown, terminals and CSV."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import rich.box
import rich.table
import rich.text

from winnow.tasks.errors import BadInput
from winnow.tasks.report.statistics import LEVEL, WHOLE, Accuracy, mean_ranks, summarise

__all__ = [
    "Table",
    "accuracy_table",
    "comparison_table",
    "cost_table",
    "decimals",
    "difference_table",
    "escape_markdown",
    "indexed",
    "mean_sd",
    "p_value",
    "percent",
    "signed",
    "stacked",
    "to_csv",
    "to_markdown",
    "to_rich",
]

Row: TypeAlias = Mapping[str, Any]  # from summarise
MINUS = "\u2212"
MISSING = "\u2013"
_NUMBER = re.compile(r"[+\-\u2212<]?\d[\d,.]*(e[+-]?\d+)?[%×]?")
_ACCURACIES = {
    "last": "Test accuracy (%) after the last epoch",
    "best": "Test accuracy (%) of the best epoch, chosen with the test labels and therefore optimistic",
}


@dataclass(frozen=True)
class Table:
    """A table of finished strings.

    Attributes:
        columns: heading of each column; the first column names the rows.
        rows: cells, one tuple per row; a newline in a cell is a line break where the output has them.
        caption: what the numbers are, with units.
        bold: (row, column) of the cells to print in bold.
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
        """Whether every cell of the column is a number; such columns are set flush right."""
        cells = [row[column].split() for row in self.rows if row[column].strip() not in ("", MISSING)]
        return bool(cells) and all(_NUMBER.fullmatch(words[0]) for words in cells)


# -- numbers as text -----------------------------------------------------------------------------------------


def percent(fraction: float) -> str:
    """A fraction as a percentage, with no more digits than it has.

    >>> percent(0.1), percent(0.125), percent(1 - 0.9)
    ('10 %', '12.5 %', '10 %')
    """
    return f"{100 * fraction:.4g} %"


def p_value(p: float) -> str:
    """A p value with its significant digits.

    >>> p_value(0.3141), p_value(0.0412), p_value(1e-9)
    ('p = 0.31', 'p = 0.041', 'p < 0.001')
    """
    return "p < 0.001" if p < 0.001 else f"p = {p:.{3 if p < 0.0995 else 2}f}"


def mean_sd(mean: float, sd: float | None, digits: int = 1) -> str:
    """Mean ± sample standard deviation of accuracies: fractions in, per cent out.

    >>> mean_sd(0.9312, 0.0041), mean_sd(0.9312, None)
    ('93.1 ± 0.4', '93.1')
    """
    text = f"{100 * mean:.{digits}f}"
    return text if sd is None else f"{text} ± {100 * sd:.{digits}f}"


def signed(difference: float, digits: int) -> str:
    """A difference of fractions in percentage points, with its sign.

    >>> signed(0.0123, 1), signed(-0.0123, 1), signed(-0.0001, 1)
    ('+1.2', '−1.2', '0.0')
    """
    text = f"{abs(100 * difference):.{digits}f}"
    return text if float(text) == 0 else f"{MINUS if difference < 0 else '+'}{text}"


def decimals(rows: Sequence[Row], accuracy: Accuracy) -> int:
    """Decimals of accuracies in per cent: one, or two where one would show a spread as 0.0."""
    spreads = [row[f"{accuracy}_sd"] for row in rows if row[f"{accuracy}_sd"]]
    return 2 if spreads and min(spreads) < 0.0005 else 1


def _span(numbers: set[int]) -> str:
    return f"{min(numbers)}" if len(numbers) == 1 else f"{min(numbers)} to {max(numbers)}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.{0 if minutes >= 10 else 1}f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


# -- tables of results ---------------------------------------------------------------------------------------


def indexed(rows: Sequence[Row]) -> tuple[list[str], list[float], dict[tuple[str, float], Row]]:
    """The rows' methods in their order, their fractions ascending, and the row of each method and fraction.

    Raises:
        BadInput: no rows.
    """
    if not rows:
        raise BadInput(
            "rows is empty: there is nothing to put into a table.",
            remedy="pass what summarise(trials) returns",
        )
    cells = {(row["method"], row["fraction"]): row for row in rows}
    return list(dict.fromkeys(name for name, _ in cells)), sorted({fraction for _, fraction in cells}), cells


def _by_fraction(
    rows: Sequence[Row], cell: Callable[[Row], str], caption: str, bold: Callable[[Row], bool] | None = None
) -> Table:
    """Methods × fractions kept."""
    names, fractions, cells = indexed(rows)
    body = [
        (name, *(cell(cells[name, f]) if (name, f) in cells else MISSING for f in fractions))
        for name in names
    ]
    marked = {key for key, row in cells.items() if bold is not None and bold(row)}
    return Table(
        ("method", *(f"{percent(fraction)} kept" for fraction in fractions)),
        tuple(body),
        caption,
        frozenset((names.index(name), 1 + fractions.index(fraction)) for name, fraction in marked),
    )


def accuracy_table(rows: Sequence[Row], *, accuracy: Accuracy = "last") -> Table:
    """Methods × fractions kept, ``mean ± sd`` in per cent, the best of each column in bold.

    Args:
        rows: what :func:`winnow.tasks.report.statistics.summarise` returns.
        accuracy: of the ``"last"`` or the ``"best"`` epoch; the caption says which.

    Raises:
        BadInput: no rows.

    >>> runs = [("random", 0.9), ("d2", 0.92)]
    >>> trials = [dict(method=m, fraction=0.1, seed=0, last_accuracy=a, best_accuracy=a) for m, a in runs]
    >>> print(to_markdown(accuracy_table(summarise(trials))))
    | method | 10 % kept |
    | :--- | ---: |
    | random | 90.0 |
    | d2 | **92.0** |
    <BLANKLINE>
    Test accuracy (%) after the last epoch; one seed, so no spread. Best in bold.
    """
    return _accuracies(rows, accuracy, lambda row: "")


def _accuracies(rows: Sequence[Row], accuracy: Accuracy, mark: Callable[[Row], str]) -> Table:
    """The accuracy table, with ``mark(row)`` after each accuracy."""
    digits, seeds = decimals(rows, accuracy), {row["n"] for row in rows}
    columns: dict[float, list[float]] = {}
    for row in rows:
        columns.setdefault(row["fraction"], []).append(round(100 * row[f"{accuracy}_mean"], digits))
    best = {fraction: max(values) for fraction, values in columns.items() if len(values) > 1}

    def cell(row: Row) -> str:
        count = f" ({row['n']})" if len(seeds) > 1 else ""
        return mean_sd(row[f"{accuracy}_mean"], row[f"{accuracy}_sd"], digits) + count + mark(row)

    several = f"mean ± sample sd over {_span(seeds)} seeds{', n in brackets' if len(seeds) > 1 else ''}"
    spread = "one seed, so no spread" if seeds == {1} else several
    return _by_fraction(
        rows,
        cell,
        f"{_ACCURACIES[accuracy]}; {spread}.{' Best in bold.' if best else ''}",
        lambda row: round(100 * row[f"{accuracy}_mean"], digits) == best.get(row["fraction"]),
    )


def stacked(tables: Mapping[str, Table]) -> Table:
    """Accuracy tables of several runs as one: the run's name before each row, all fractions, all captions.

    Bold stays what is best in its own run.

    Raises:
        BadInput: no tables.

    >>> one = Table(("method", "10 % kept"), (("d2", "92.0"),), "Accuracy.")
    >>> two = Table(("method", "5 % kept"), (("ccs", "80.0"),), "Accuracy.")
    >>> stacked({"digits": one, "letters": two}).rows
    (('digits', 'd2', '–', '92.0'), ('letters', 'ccs', '80.0', '–'))
    """
    if not tables:
        raise BadInput("there is no table to put together.")
    first, *_ = (table.columns[0] for table in tables.values())
    fractions = {name for table in tables.values() for name in table.columns[1:]}
    columns = [first, *sorted(fractions, key=lambda name: float(name.partition(" ")[0]))]
    rows: list[tuple[str, ...]] = []
    bold: set[tuple[int, int]] = set()
    for run, table in tables.items():
        bold |= {(len(rows) + r, 1 + columns.index(table.columns[c])) for r, c in table.bold}
        lines = (dict(zip(table.columns, row, strict=True)) for row in table.rows)
        rows += [(run, *(line.get(name, MISSING) for name in columns)) for line in lines]
    captions = dict.fromkeys(table.caption for table in tables.values())
    return Table(("run", *columns), tuple(rows), " ".join(captions), frozenset(bold))


def difference_table(rows: Sequence[Row], *, accuracy: Accuracy = "last") -> Table | None:
    """Paired differences from the baseline in percentage points, with p; None if nothing is compared."""
    difference, sd, p = (f"{accuracy}_{name}" for name in ("difference", "difference_sd", "p"))
    compared = [row for row in rows if row[difference] is not None]
    if not compared:
        return None
    spreads = [row[sd] for row in compared if row[sd]]
    digits = max(decimals(rows, accuracy), 2 if spreads and min(spreads) < 0.0005 else 1)

    def cell(row: Row) -> str:
        text = signed(row[difference], digits)
        text += "" if row[sd] is None else f" ± {100 * row[sd]:.{digits}f}"
        return text if row[p] is None else f"{text}\n({p_value(row[p])})"

    pairs = {row["pairs"] for row in compared}
    mean, seeds = f"mean{' ± sample sd' if spreads else ''}", "seed" if pairs == {1} else "seeds"
    caption = (
        f"Difference from {compared[0]['baseline']} with the same seed, in percentage points of test "
        f"accuracy, {accuracy} epoch: {mean} over {_span(pairs)} {seeds}"
    )
    if any(row[p] is not None for row in compared):
        caption += (
            "; p of a two-sided paired t-test, not adjusted for the number of comparisons; bold: "
            f"p < {LEVEL:g}"
        )
    return _by_fraction(compared, cell, f"{caption}.", lambda row: _differs(row, accuracy))


def _differs(row: Row, accuracy: Accuracy) -> bool:
    """Whether the test calls a row different from its baseline."""
    return row[f"{accuracy}_p"] is not None and row[f"{accuracy}_p"] < LEVEL


def cost_table(rows: Sequence[Row]) -> Table | None:
    """Samples and seconds of one training run, mean over seeds; None if no trial has either."""
    if rows and all(row["samples"] is None and row["seconds"] is None for row in rows):
        return None

    def cell(row: Row) -> str:
        samples = [] if row["samples"] is None else [f"{row['samples']:,.0f}"]
        seconds = [] if row["seconds"] is None else [_duration(row["seconds"])]
        return "\n".join(samples + seconds) or MISSING

    return _by_fraction(
        rows, cell, "Samples trained on and wall-clock time of one training run, mean over seeds."
    )


def comparison_table(trials: Sequence[Mapping[str, Any]], *, accuracy: Accuracy = "last") -> Table:
    r"""Many methods by mean rank: accuracies, marked where they differ from random's, ranks and costs.

    Args:
        trials: as :func:`winnow.tasks.report.statistics.summarise` takes them.
        accuracy: of the ``"last"`` or the ``"best"`` epoch.

    Raises:
        BadInput: trials that ``summarise`` refuses.

    >>> runs = [("random", 0, 0.90), ("random", 1, 0.92), ("d2", 0, 0.93), ("d2", 1, 0.9501)]
    >>> trials = [
    ...     dict(method=m, fraction=0.1, seed=s, last_accuracy=a, best_accuracy=a, seconds=9)
    ...     for m, s, a in runs
    ... ]
    >>> print(to_markdown(comparison_table(trials)).partition("\n\n")[0])
    | method | 10 % kept | rank | training |
    | :--- | ---: | ---: | ---: |
    | d2 | **94.0 ± 1.4 ↑** | 1.0 | 9 s |
    | random | 91.0 ± 1.4 | 2.0 | 9 s |
    """
    rows, ranks = summarise(trials), mean_ranks(trials, accuracy=accuracy)

    def mark(row: Row) -> str:
        return f" {'↑' if row[f'{accuracy}_difference'] > 0 else '↓'}" if _differs(row, accuracy) else ""

    by_rank = sorted(rows, key=lambda row: ranks.get(row["method"], math.inf))
    table = _accuracies(by_rank, accuracy, mark)
    costs = {"selection_seconds": "selection", "seconds": "training"}
    costs = {
        quantity: name for quantity, name in costs.items() if any(row[quantity] is not None for row in rows)
    }
    body = []
    for name, *texts in table.rows:
        line = [name, *texts, f"{ranks[name]:.1f}" if name in ranks else MISSING]
        for quantity in costs:
            seconds = [row[quantity] for row in rows if row["method"] == name and row[quantity] is not None]
            line.append(_duration(float(np.mean(seconds))) if seconds else MISSING)
        body.append(tuple(line))
    caption = table.caption
    if any(_differs(row, accuracy) for row in rows):
        caption += (
            f" ↑ better, ↓ worse than {rows[0]['method']}: p < {LEVEL:g} in a two-sided t-test paired over "
            "seeds, unadjusted."
        )
    races = len({(trial["fraction"], trial["seed"]) for trial in trials if trial["fraction"] < WHOLE})
    caption += f" Rank among {len(ranks)} methods (1 is best), mean over {races} pairs of fraction and seed."
    if costs:
        caption += (
            " Times are mean wall-clock times of one selection, without the proxy training that all methods "
            "share, and of one training on the coreset."
        )
    return Table((*table.columns, "rank", *costs.values()), tuple(body), caption, table.bold)


# -- renderings ----------------------------------------------------------------------------------------------


def escape_markdown(text: str) -> str:
    """The text with everything that Markdown or HTML would act on made literal, on one line."""
    escaped = re.sub(r"([\\`*_\[\]|~#])", r"\\\1", " ".join(str(text).split()))
    # what would start a list, an underline or a rule
    escaped = re.sub(r"^([-+=])(?=\s|[-=]*$)", r"\\\1", escaped)
    escaped = re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", escaped)
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def to_markdown(table: Table) -> str:
    """The table as Markdown, the caption as a line below it."""
    sides = ["---:" if table.numeric(c) else ":---" for c in range(len(table.columns))]
    body = [
        [f"**{text}**" if (r, c) in table.bold else text for c, text in enumerate(map(escape_markdown, row))]
        for r, row in enumerate(table.rows)
    ]
    lines = [f"| {' | '.join(line)} |" for line in (map(escape_markdown, table.columns), sides, *body)]
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
        side: Literal["left", "right"] = "right" if table.numeric(c) else "left"
        drawn.add_column(rich.text.Text(column), justify=side, no_wrap=c == 0)
    for r, row in enumerate(table.rows):
        styles = ("bold" if (r, c) in table.bold else "" for c in range(len(row)))
        tight = (cell.replace(" ± ", "±") for cell in row)
        drawn.add_row(*(rich.text.Text(*cell) for cell in zip(tight, styles, strict=True)))
    return drawn


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Trials, or rows of ``summarise``, as CSV with a header: all digits, and unknown values empty.

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
        writer.writerow("" if _missing(row.get(name)) else row[name] for name in columns)
    return text.getvalue()


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
