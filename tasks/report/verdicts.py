"""What a run's numbers say, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from winnow.tasks.errors import BadInput
from winnow.tasks.report.statistics import LEVEL, WHOLE, Accuracy
from winnow.tasks.report.tables import decimals, indexed, mean_sd, p_value, percent, signed

__all__ = ["verdicts"]


def verdicts(
    rows: Sequence[Mapping[str, Any]], *, method: str | None = None, accuracy: Accuracy = "last"
) -> list[str]:
    """What the numbers say, one sentence per fraction.

    Args:
        rows: what :func:`winnow.tasks.report.statistics.summarise` returns.
        method: the method to judge; None judges the best at each fraction, and says out of how many.
        accuracy: of the ``"last"`` or the ``"best"`` epoch.

    Raises:
        BadInput: no rows, or none of ``method``.

    >>> from winnow.tasks.report.statistics import summarise
    >>> runs = [("random", 0, 0.90), ("random", 1, 0.92), ("elfs", 0, 0.93), ("elfs", 1, 0.9501)]
    >>> rows = summarise(
    ...     [dict(method=m, fraction=0.1, seed=s, last_accuracy=a, best_accuracy=a) for m, s, a in runs]
    ... )
    >>> print(*verdicts(rows))  # doctest: +NORMALIZE_WHITESPACE
    At 10 % kept (90 % pruned): elfs 94.0 ± 1.4 against random 91.0 ± 1.4: +3.0 points, paired over 2 seeds,
    p = 0.001; beats random.
    """
    names, fractions, cells = indexed(rows)
    if method is not None and method not in names:
        raise BadInput(f"method {method!r} is in no row; there are {', '.join(names)}.")
    digits = decimals(rows, accuracy)
    mean = f"{accuracy}_mean"
    full = next((row for row in rows if row["method"] == "full" and row["fraction"] > WHOLE), None)
    references = {row["baseline"] for row in rows} - {None} | {"full", "random"}
    judged = set(names) - references if method is None else {method}
    sentences = []
    for fraction in fractions:
        candidates = [cells[name, fraction] for name in names if name in judged and (name, fraction) in cells]
        if not candidates:
            continue
        best = max(candidates, key=lambda row: row[mean])
        where = f"At {percent(fraction)} kept ({percent(1 - fraction)} pruned)"
        best_of = f"the best of {len(candidates)} methods, " if len(candidates) > 1 else ""
        text = (
            f"{where if fraction <= WHOLE else 'On all samples'}: {best_of}{best['method']} "
            f"{mean_sd(best[mean], best[f'{accuracy}_sd'], digits)}"
        )
        if best["baseline"] is None:
            text += "; no baseline was trained at this fraction, so there is nothing to compare it with"
        else:
            text += _comparison(best, cells, accuracy, digits, chosen=len(candidates) > 1)
        if full is not None and "full" not in (best["method"], best["baseline"]):
            gap = f"{abs(100 * full[mean] - 100 * best[mean]):.{digits}f}"
            side = "below" if full[mean] > best[mean] else "above"
            level = f"{gap} points {side}" if float(gap) else "level with"
            text += f"; {level} full ({100 * full[mean]:.{digits}f})"
        sentences.append(f"{text}.")
    were = "was" if len(names) == 1 else "were"
    return sentences or [f"Only {' and '.join(names)} {were} trained: there is nothing to compare."]


def _comparison(
    row: Mapping[str, Any],
    cells: Mapping[tuple[str, float], Mapping[str, Any]],
    accuracy: Accuracy,
    digits: int,
    *,
    chosen: bool,
) -> str:
    """How a row does against its baseline; ``chosen`` says that it was picked as the best of several."""
    name = row["baseline"]
    largest = max(fraction for method, fraction in cells if method == name)
    rival = cells.get((name, row["fraction"])) or cells[name, largest]
    text = f" against {name} {mean_sd(rival[f'{accuracy}_mean'], rival[f'{accuracy}_sd'], digits)}"
    difference, p, pairs = row[f"{accuracy}_difference"], row[f"{accuracy}_p"], row["pairs"]
    if difference is None:
        return f"{text}; they have no seed in common, so nothing is compared"
    text += f": {signed(difference, digits)} points"
    better = difference > 0
    if p is None:
        same = f", the same on all {pairs} seeds, which leaves nothing to test"
        text += " on one seed, too few for a test" if pairs == 1 else same
        return text if better else f"{text}; does not beat {name}"
    text += f", paired over {pairs} seeds, {p_value(p)}; "
    if p < LEVEL:
        caveat = " (p not adjusted for choosing the best)" if chosen and better else ""
        return f"{text}{'beats' if better else 'worse than'} {name}{caveat}"
    return f"{text}does not {'reliably ' if better else ''}beat {name}"
