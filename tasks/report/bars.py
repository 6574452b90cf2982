"""Histograms and bar charts of a report: what a selection did with the scores, class balance, clusterings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike, NDArray

from winnow.tasks.errors import BadInput
from winnow.tasks.report.canvas import (
    DROPPED_BETWEEN,
    DROPPED_EASY,
    DROPPED_HARD,
    FAINT,
    INK,
    KEPT,
    PALETTE,
    Picture,
    chart,
    literal,
    save,
    subplots,
)
from winnow.tasks.report.regions import HigherIs, cutoffs, regions

__all__ = ["class_balance", "clustering_bars", "score_histogram"]

# region to its name in the legend and its colour, in the order of the legend
REGIONS = {
    "too hard": ("dropped, too hard", DROPPED_HARD),
    "kept": ("kept", KEPT),
    "between": ("dropped in between", DROPPED_BETWEEN),
    "too easy": ("dropped, too easy", DROPPED_EASY),
}
METRICS = {"accuracy": "accuracy", "nmi": "NMI", "ami": "AMI", "ari": "ARI"}


def score_histogram(
    scores: ArrayLike,
    selections: Mapping[str, ArrayLike],
    *,
    score_name: str = "AUM",
    higher_is: HigherIs = "easier",
    bins: int = 60,
) -> Picture:
    """Histogram of a score, coloured by what became of the samples; one panel per selection.

    Args:
        scores: (N,) float; infinite values (never learnt) are counted, not drawn.
        selections: title such as ``"10 % kept"`` to the int rows kept.
        score_name: name on the axis, with its unit where it has one.
        higher_is: what a high score means.
        bins: number of bars.

    Returns:
        The picture. Dropped samples that are as hard (or as easy) as a kept one are "in between".

    Raises:
        BadInput: no selection, no finite score, or what :func:`winnow.tasks.report.regions.regions` refuses.
    """
    values = np.asarray(scores, dtype=np.float64)
    if not selections:
        raise BadInput("selections is empty: name at least one selection.")
    split = {title: regions(values, kept, higher_is=higher_is) for title, kept in selections.items()}
    finite = np.isfinite(values)
    if not finite.any():
        raise BadInput("scores has no finite value to draw.")
    low, high = float(values[finite].min()), float(values[finite].max())
    pad = 0.0 if high > low else max(0.5, 0.01 * abs(high))
    edges = np.linspace(low - pad, high + pad, bins + 1)
    figure, axes = subplots(0.75 + 1.35 * len(selections), len(selections), 1, sharex=True, sharey=True)
    for axis, (title, parts) in zip(axes[:, 0], split.items(), strict=True):
        bottom = np.zeros(bins)
        for region in ("kept", "between", "too hard", "too easy"):
            rows = parts[region]
            counts = np.histogram(values[rows[finite[rows]]], edges)[0]
            if counts.any():
                stack = {"baseline": bottom, "fill": True, "linewidth": 0}
                axis.stairs(bottom + counts, edges, color=REGIONS[region][1], **stack)
            bottom = bottom + counts
        for cutoff in cutoffs(values, parts, higher_is).values():
            axis.axvline(cutoff, color=INK, linewidth=1, linestyle=(0, (3, 2)))
        axis.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))
        _legend(axis, title, parts)
    figure.supylabel("samples per bin", fontsize=10, color=INK)
    left, right = ("harder", "easier") if higher_is == "easier" else ("easier", "harder")
    axes[-1, 0].set_xlabel(f"\u2190 {left}     {literal(score_name)}     {right} \u2192")
    infinite = int((~finite).sum())
    caption = f"{score_name} of all {len(values):,} samples and what the selection did with them."
    if infinite:
        caption += f" Not drawn: {infinite:,} with an infinite score."
    if high == low:
        caption += " The score is the same for every sample, so it decides nothing."
    alt = f"Histogram of {score_name}."
    for title, parts in split.items():
        sizes = (f"{len(rows):,} {REGIONS[region][0]}" for region, rows in parts.items() if len(rows))
        alt += f" {title}: {', '.join(sizes)}."
    return save(figure, alt, caption)


def _legend(axis: Axes, title: str, parts: Mapping[str, NDArray[np.int64]]) -> None:
    """Title and number of samples of each region, beside the panel."""
    beside: dict[str, Any] = {"xycoords": "axes fraction", "va": "top", "annotation_clip": False}
    axis.annotate(literal(title), (1.03, 1.0), fontsize=10, fontweight="bold", color=INK, **beside)
    for i, region in enumerate(region for region in REGIONS if len(parts[region])):
        name, colour = REGIONS[region]
        y = 0.78 - 0.185 * i
        axis.annotate("■", (1.03, y), color=colour, fontsize=10, **beside)
        axis.annotate(f"{name}: {len(parts[region]):,}", (1.075, y), color=INK, fontsize=9, **beside)


def class_balance(
    coreset: ArrayLike, classes: Sequence[str], *, dataset: ArrayLike | None = None, kind: str = "labels"
) -> Picture:
    """Share of each class in the coreset against its share in the dataset.

    Up to 40 classes are named, one bar each; more are drawn as a curve of the ratio of the two shares.

    Args:
        coreset: (k,) int labels or pseudo-labels of the coreset, in [0, C).
        classes: C names.
        dataset: (N,) int labels of the whole dataset; None, if unknown, compares with an even share.
        kind: what the labels are, for example ``"labels"`` or ``"pseudo-labels"``.

    Raises:
        BadInput: no labels, or a label that is not one of the classes.
    """
    count = len(classes)
    share = _shares("coreset", coreset, count)
    expected = np.full(count, 1 / count) if dataset is None else _shares("dataset", dataset, count)
    against = "an even share" if dataset is None else "the dataset"
    empty = int(((share == 0) & (expected > 0)).sum())
    caption = (
        f"Share of each class in the coreset ({kind}) against {against}: {100 * share.min():.3g} % to "
        f"{100 * share.max():.3g} %, where {'an even share is' if dataset is None else 'the dataset has'} "
        f"{100 * expected.min():.3g} %{'' if np.ptp(expected) == 0 else f' to {100 * expected.max():.3g} %'}."
    )
    if empty:
        caption += f" {empty} of {count} classes {'has' if empty == 1 else 'have'} no sample in the coreset."
    if count <= 40:
        figure, axis = chart(0.85 + 0.25 * count, "x")
        _named_shares(axis, share, expected, list(map(str, classes)))
        axis.set_xlabel(f"share of the coreset (%), by {literal(kind)}; black line: {against}")
    else:
        figure, axis = chart(3.2)
        _ranked_ratios(axis, share[expected > 0] / expected[expected > 0])
        axis.annotate(f"as in {against}", (1, 1), (4, 4), textcoords="offset points", fontsize=9, color=INK)
        axis.set_xlabel(f"class, by rank ({literal(kind)})")
        axis.set_ylabel(f"coreset share ÷ {'even' if dataset is None else 'dataset'} share")
    return save(figure, caption, caption)


def _shares(name: str, labels: ArrayLike, classes: int) -> NDArray[np.float64]:
    array = np.asarray(labels)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise BadInput(f"{name} has shape {array.shape} and dtype {array.dtype}, not (n,) integers.")
    if not len(array):
        raise BadInput(f"{name} is empty.")
    outside = np.flatnonzero((array < 0) | (array >= classes))
    if len(outside):
        raise BadInput(f"{name}[{int(outside[0])}] is not one of {classes} classes.")
    return np.bincount(array, minlength=classes) / len(array)


def _named_shares(
    axis: Axes, share: NDArray[np.float64], expected: NDArray[np.float64], names: Sequence[str]
) -> None:
    """A bar per class with a line at the expected share."""
    y = np.arange(len(share))
    axis.barh(y, 100 * share, 0.7, color=KEPT)
    axis.vlines(100 * expected, y - 0.43, y + 0.43, color=INK, linewidth=2)
    beside: dict[str, Any] = {
        "xycoords": ("axes fraction", "data"),
        "va": "center",
        "fontsize": 9,
        "color": INK,
    }
    for i, value in enumerate(share):
        axis.annotate(f"{100 * value:.1f}", (1.015, i), **beside)
    axis.set_yticks(y, [literal(name if len(name) <= 28 else f"{name[:27]}…") for name in names])
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(len(share) - 0.4, -0.6)
    axis.set_xlim(0, 108 * max(share.max(), expected.max()))


def _ranked_ratios(axis: Axes, ratios: NDArray[np.float64]) -> None:
    """The ratios in ascending order, around a line at 1."""
    rank = np.arange(1, len(ratios) + 1)
    ratios = np.sort(ratios)
    axis.fill_between(rank, 1, ratios, step="mid", color=KEPT, alpha=0.25, linewidth=0)
    axis.step(rank, ratios, where="mid", color=KEPT, linewidth=1.6)
    axis.axhline(1, color=INK, linewidth=1.1)
    axis.set_xlim(0, len(ratios) + 1)
    axis.set_ylim(0)


def clustering_bars(metrics: Mapping[str, Mapping[str, float]]) -> Picture:
    """Clusterings compared by accuracy, NMI, AMI and ARI, each × 100.

    Accuracy is under the best matching of clusters to classes.

    Args:
        metrics: clustering (``"cluster heads"``, ``"k-means"``) to metric to value in [-1, 1].

    Raises:
        BadInput: no clustering, or no metric.
    """
    if not metrics:
        raise BadInput("metrics is empty: name at least one clustering.")
    names = list(metrics)
    kinds = list(dict.fromkeys(kind for values in metrics.values() for kind in values))
    if not kinds:
        raise BadInput("metrics has no metric.")
    table = 100 * np.array([[metrics[name].get(kind, np.nan) for kind in kinds] for name in names])
    figure, axis = chart(0.9 + (0.22 * len(names) + 0.16) * len(kinds), "x")
    height = 0.8 / len(names)
    beside = {"textcoords": "offset points", "va": "center", "fontsize": 9, "color": INK}
    for i, name in enumerate(names):
        y = np.arange(len(kinds)) - 0.4 + (i + 0.5) * height
        colour = PALETTE[0] if i == 0 else ("#A6A6A6", *PALETTE[1:])[(i - 1) % len(PALETTE)]
        axis.barh(y, np.nan_to_num(table[i]), 0.88 * height, color=colour, label=literal(name))
        for centre, value in zip(y, table[i], strict=True):
            text = "not measured" if np.isnan(value) else f"{value:.1f}".replace("-", "\u2212")
            axis.annotate(text, (max(np.nan_to_num(value), 0), centre), (4, 0), **beside)
    axis.set_yticks(range(len(kinds)), [METRICS.get(kind, literal(kind)) for kind in kinds])
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(len(kinds) - 0.5, -0.5)
    axis.set_xlim(min(0.0, 1.1 * float(np.nanmin(table))), max(1.0, 1.12 * float(np.nanmax(table))))
    axis.axvline(0, color=FAINT, linewidth=0.8)
    axis.set_xlabel("agreement with the true labels (× 100)")
    handles = {"handlelength": 1, "handleheight": 1}
    figure.legend(loc="outside upper left", ncols=len(names), frameon=False, fontsize=9.5, **handles)
    lists = []
    for name, values in metrics.items():
        numbers = (f"{METRICS.get(kind, kind)} {100 * value:.1f}" for kind, value in values.items())
        lists.append(f"{name}: {', '.join(numbers)}")
    return save(
        figure,
        f"Bar chart of agreement with the true labels. {'; '.join(lists)}.",
        "Agreement of the clusterings with the true labels, which selection never saw.",
    )
