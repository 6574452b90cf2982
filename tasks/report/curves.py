"""Line charts of a report: accuracy against the pruning rate, searches, training, losses of cluster heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import ArrayLike, NDArray

from winnow.tasks.errors import BadInput
from winnow.tasks.report.canvas import (
    DROPPED_HARD,
    FAINT,
    INK,
    KEPT,
    Picture,
    chart,
    colours,
    fit_y,
    grid,
    label_ends,
    literal,
    save,
    subplots,
)
from winnow.tasks.report.statistics import WHOLE, Accuracy, methods
from winnow.tasks.report.tables import percent

__all__ = ["accuracy_curve", "head_losses", "search_curve", "training_curves"]

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
STROKES = ("-", "-.", ":")  # tell lines apart once the markers repeat
BANDS = 6  # with more methods, bands of ± 1 sd would only be mud
STEPS = {"epoch": "epoch", "step": "training step", "samples_seen": "samples seen", "seconds": "seconds"}


def accuracy_curve(rows: Sequence[Mapping[str, Any]], *, accuracy: Accuracy = "last") -> Picture:
    """Test accuracy against the pruning rate, one line per method with a band of ± 1 sd.

    A method trained on the whole dataset only is a horizontal line. With a single fraction there is no curve
    to draw: each method is a dot.

    Args:
        rows: what :func:`winnow.tasks.report.statistics.summarise` returns.
        accuracy: of the ``"last"`` or the ``"best"`` epoch.

    Raises:
        BadInput: no rows.
    """
    if not rows:
        raise BadInput(
            "rows is empty: there is nothing to draw.", remedy="pass what summarise(trials) returns"
        )
    pruning = {row["method"] for row in rows if row["fraction"] < WHOLE}
    names = [name for name in methods(rows) if name in pruning]
    references = [row for row in rows if row["method"] not in pruning]
    fractions = sorted({row["fraction"] for row in rows if row["method"] in pruning})
    if len(fractions) < 2:
        return _accuracy_dots(rows, accuracy)
    paint = colours(methods(rows))
    figure, axis = chart(4.1 + 0.16 * max(0, len(names) - 10))
    ends, heights = [], []
    for i, name in enumerate(names):
        line = sorted((row for row in rows if row["method"] == name), key=lambda row: row["fraction"])
        x = np.array([row["fraction"] for row in line])
        y = 100 * np.array([row[f"{accuracy}_mean"] for row in line])
        sd = 100 * np.array([row[f"{accuracy}_sd"] or 0.0 for row in line])
        if sd.any() and len(names) <= BANDS:
            axis.fill_between(x, y - sd, y + sd, color=paint[name], alpha=0.16, linewidth=0, zorder=2)
        elif sd.any():
            bar = {"fmt": "none", "elinewidth": 0.9, "capsize": 2, "alpha": 0.6}
            axis.errorbar(x, y, sd, ecolor=paint[name], zorder=2, **bar)
        stroke = "--" if name == "random" else STROKES[i // len(MARKERS) % len(STROKES)]
        dots = {"marker": MARKERS[i % len(MARKERS)], "markersize": 5}
        axis.plot(x, y, color=paint[name], linestyle=stroke, linewidth=1.8, zorder=3, **dots)
        ends.append((float(x[0]), float(y[0]), name, paint[name]))
        heights += [*(y - sd), *(y + sd)]
    for row in references:
        height = 100 * row[f"{accuracy}_mean"]
        axis.axhline(height, color=paint[row["method"]], linewidth=1.1, linestyle=(0, (4, 3)), zorder=1)
        heights.append(height)
    fit_y(axis, heights, low=0, high=100.5)
    _pruning_axes(axis, fractions)
    axis.set_ylabel(f"test accuracy (%), {accuracy} epoch")
    for row in references:
        height = 100 * row[f"{accuracy}_mean"]
        ends.append((axis.get_xlim()[1], height, f"{row['method']} {height:.1f}", paint[row["method"]]))
    label_ends(figure, axis, ends)
    spread = f"{'bands' if len(names) <= BANDS else 'bars'} are ± 1 sample sd over seeds"
    several = any(row[f"{accuracy}_sd"] for row in rows)
    best = max((row for row in rows if row["method"] in pruning), key=lambda row: row[f"{accuracy}_mean"])
    return save(
        figure,
        f"Line chart of test accuracy against the pruning rate, from {percent(1 - fractions[-1])} to "
        f"{percent(1 - fractions[0])}, for {', '.join(names)}. Highest: {best['method']}, "
        f"{100 * best[f'{accuracy}_mean']:.1f} % at {percent(best['fraction'])} kept.",
        f"Test accuracy against the pruning rate; {spread if several else 'one seed'}.",
    )


def _pruning_axes(axis: Axes, fractions: Sequence[float]) -> None:
    """Pruning rate below, fraction kept above; pruning grows to the right, as in the papers."""
    lowest, highest = fractions[0], fractions[-1]
    log = highest / lowest > 20
    if log:
        axis.set_xscale("log")
        axis.set_xlim(highest * 1.15, lowest * 0.85)
    else:
        air = 0.04 * (highest - lowest)
        axis.set_xlim(highest + air, lowest - air)
    _fraction_ticks(axis, fractions, log, pruned=True)
    axis.set_xlabel("pruned (% of the training set)")
    above = axis.secondary_xaxis("top")
    above.spines["top"].set_visible(False)
    above.tick_params(colors=FAINT, labelcolor=FAINT, labelsize=9, length=0)
    _fraction_ticks(above, fractions, log)
    above.set_xlabel("kept (%)", color=FAINT, fontsize=9.5)


def _fraction_ticks(axis: Any, fractions: Sequence[float], log: bool, *, pruned: bool = False) -> None:
    """Ticks at the fractions of the run, without those that would touch their neighbour."""
    positions = np.log(fractions) if log else np.asarray(fractions)
    gap = 0.055 * (positions[-1] - positions[0])
    ticks: list[tuple[float, float]] = []
    for position, fraction in sorted(zip(positions, fractions, strict=True), reverse=True):
        if not ticks or ticks[-1][0] - position >= gap:
            ticks.append((position, fraction))
    axis.xaxis.set_major_locator(FixedLocator([fraction for _, fraction in ticks]))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * (1 - x if pruned else x):.4g}"))


def _accuracy_dots(rows: Sequence[Mapping[str, Any]], accuracy: Accuracy) -> Picture:
    """The accuracy of each row as a dot with a bar of ± 1 sd, the best on top."""
    names = methods(rows)
    ascending = sorted(rows, key=lambda row: row[f"{accuracy}_mean"])
    paint = colours(names)
    figure, axis = chart(1.1 + 0.34 * len(ascending), "x")
    beside = {"xycoords": ("axes fraction", "data"), "va": "center", "color": INK}
    labels, ends = [], []
    for i, row in enumerate(ascending):
        mean, sd = 100 * row[f"{accuracy}_mean"], 100 * (row[f"{accuracy}_sd"] or 0.0)
        bar = {"xerr": sd or None, "elinewidth": 2, "capsize": 3}
        axis.errorbar(mean, i, fmt="o", color=paint[row["method"]], markersize=7, **bar)
        text = f"{mean:.1f} ± {sd:.1f}" if sd else f"{mean:.1f}"
        axis.annotate(text, (1.02, i), fontsize=9.5, annotation_clip=False, **beside)
        labels.append(f"{literal(row['method'])} ({percent(row['fraction'])})")
        ends += [mean - sd, mean + sd]
    air = 0.08 * (max(ends) - min(ends)) or 0.5
    axis.set_xlim(max(min(ends) - air, -0.5), min(max(ends) + air, 100.5))
    axis.set_ylim(-0.6, len(ascending) - 0.4)
    axis.set_yticks(range(len(ascending)), labels)
    axis.tick_params(axis="y", length=0)
    axis.set_xlabel(f"test accuracy (%), {accuracy} epoch")
    several = any(row[f"{accuracy}_sd"] for row in rows)
    best = ascending[-1]
    return save(
        figure,
        f"Dot chart of the test accuracy of {', '.join(names)}. Highest: {best['method']}, "
        f"{100 * best[f'{accuracy}_mean']:.1f} %.",
        "Test accuracy of each method; in brackets the fraction kept; "
        f"{'bars are ± 1 sample sd over seeds' if several else 'one seed'}.",
    )


def search_curve(
    values: ArrayLike,
    accuracies: Sequence[ArrayLike],
    chosen: float,
    *,
    name: str = "mis_ratio",
    judged_on: str = "pseudo-labels",
) -> Picture:
    """Accuracy against the values tried for a hyper-parameter, the chosen one marked.

    Args:
        values: (V,) values tried.
        accuracies: V sequences of accuracies in [0, 1], one entry per repetition.
        chosen: the value chosen.
        name: the hyper-parameter.
        judged_on: what the accuracy was measured on.

    Raises:
        BadInput: a number that is not finite, unequal lengths, or a chosen value that was not tried.
    """
    x = _finite("values", values)
    runs = [100 * _finite(f"accuracies[{i}]", run) for i, run in enumerate(accuracies)]
    if x.ndim != 1 or len(runs) != len(x):
        raise BadInput(f"accuracies has {len(runs)} entries for {x.size} values.")
    if not np.isclose(x, chosen).any():
        raise BadInput(f"chosen is {chosen}, none of the tried values.")
    order = np.argsort(x, kind="stable")
    x, runs = x[order], [np.atleast_1d(runs[i]) for i in order]
    mean = np.array([run.mean() for run in runs])
    sd = np.array([run.std(ddof=1) if len(run) > 1 else 0.0 for run in runs])
    best = int(np.flatnonzero(np.isclose(x, chosen))[0])
    figure, axis = chart(2.9)
    if sd.any():
        axis.fill_between(x, mean - sd, mean + sd, color=KEPT, alpha=0.16, linewidth=0)
    axis.plot(x, mean, "o-", color=KEPT, linewidth=1.8, markersize=5)
    ring = {"markerfacecolor": "none", "markeredgecolor": DROPPED_HARD, "markeredgewidth": 2}
    axis.plot(x[best], mean[best], "o", markersize=12, **ring)
    fit_y(axis, [*(mean - sd), *(mean + sd)], 0.22)
    inwards = {0: "left", len(x) - 1: "right"} if len(x) > 1 else {}
    above = {"textcoords": "offset points", "ha": inwards.get(best, "center"), "fontsize": 9.5}
    text = f"chosen: {chosen:g} ({mean[best]:.1f} %)"
    axis.annotate(text, (x[best], mean[best]), (0, 12), color=DROPPED_HARD, **above)
    if len(x) <= 12:
        axis.set_xticks(x, [f"{value:g}" for value in x])
    axis.set_xlabel(literal(name))
    axis.set_ylabel(f"accuracy on {literal(judged_on)} (%)")
    band = "; the band is ± 1 sample sd" if sd.any() else ""
    caption = f"Search for {name}, judged on {judged_on}: {chosen:g} was chosen out of {len(x)} values{band}."
    return save(figure, f"{caption} Accuracies range from {mean.min():.1f} % to {mean.max():.1f} %.", caption)


def _finite(name: str, values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if not array.size:
        raise BadInput(f"{name} is empty.")
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        position = ", ".join(map(str, bad[0]))
        raise BadInput(f"{name}[{position}] is {array[tuple(bad[0])]}, not a finite number.")
    return array


def head_losses(losses: ArrayLike, chosen: int) -> Picture:
    """Loss of every cluster head over the epochs, the chosen head highlighted.

    Args:
        losses: (epochs, heads) float.
        chosen: index of the chosen head.

    Raises:
        BadInput: a loss that is not finite, or a head that does not exist.
    """
    values = _finite("losses", losses)
    if values.ndim != 2:
        raise BadInput(f"losses has shape {values.shape}, not (epochs, heads).")
    epochs, heads = values.shape
    if not 0 <= chosen < heads:
        raise BadInput(f"chosen is {chosen}; there are {heads} heads.")
    figure, axis = chart(3.1)
    x = np.arange(1, epochs + 1)
    dots = "o" if epochs == 1 else ""
    others = np.delete(values, chosen, axis=1)
    axis.plot(x, others, color="#B0B0B0", linewidth=0.7, alpha=0.7, marker=dots, markersize=3)
    axis.plot(x, values[:, chosen], color=KEPT, linewidth=2, marker=dots)
    axis.xaxis.set_major_locator(
        FixedLocator([1]) if epochs == 1 else MaxNLocator(8, integer=True, steps=[1, 2, 5, 10])
    )
    axis.set_xlim(*((0.5, 1.5) if epochs == 1 else (1, epochs)))
    axis.set_xlabel("epoch")
    fit_y(axis, [values.min(), values.max()])
    axis.set_ylabel("loss of the head")
    last = values[-1]
    ends = [(float(epochs), float(last[chosen]), f"head {chosen}, chosen: {_signed(last[chosen])}", KEPT)]
    if others.size:
        median = float(np.median(others[-1]))
        ends.append((float(epochs), median, f"others, median: {_signed(median)}", FAINT))
    label_ends(figure, axis, ends)
    which = "the one cluster head" if heads == 1 else f"all {heads} cluster heads"
    caption = f"Loss of {which}; head {chosen} gave the pseudo-labels."
    return save(
        figure,
        f"{caption} Its loss ends at {last[chosen]:.3f}, the others between {last.min():.3f} and "
        f"{last.max():.3f}.",
        caption,
    )


def _signed(value: float) -> str:
    return f"{value:.3f}".replace("-", "\u2212")


def training_curves(
    runs: Sequence[tuple[str, Mapping[str, Sequence[Any]]]], *, over: str = "epoch"
) -> Picture:
    """Training loss and test accuracy over training; runs of the same name (seeds) share a colour.

    Args:
        runs: (name, columns) with columns as in a metrics artifact: ``over``, ``split`` (``"train"``,
            ``"test"``), ``loss``, ``accuracy`` in [0, 1]; missing values are None or NaN.
        over: the column on the x axis.

    Raises:
        BadInput: no runs, a missing column, or nothing to draw.
    """
    if not runs:
        raise BadInput("runs is empty: there is no training to draw.")
    names = list(dict.fromkeys(name for name, _ in runs))
    paint = colours(names)
    lines: dict[str, list[tuple[str, NDArray[np.float64], NDArray[np.float64]]]] = {
        "loss": [],
        "accuracy": [],
    }
    for i, (name, columns) in enumerate(runs):
        for column in (over, "split", "loss", "accuracy"):
            if column not in columns:
                raise BadInput(f"runs[{i}] ({name}) has no column {column!r}; it has {', '.join(columns)}.")
        for quantity, split, scale in (("loss", "train", 1), ("accuracy", "test", 100)):
            x, y = _line(columns, split, over, quantity)
            if len(x):
                lines[quantity].append((name, x, scale * y))
    shown = [quantity for quantity in lines if lines[quantity]]
    if not shown:
        raise BadInput("runs has neither a training loss nor a test accuracy.")
    figure, axes = subplots(3.3, 1, len(shown))
    for axis, quantity in zip(axes[0], shown, strict=True):
        grid(axis)
        for name, x, y in lines[quantity]:
            dots = "o" if len(x) == 1 else ""
            axis.plot(x, y, color=paint[name], linewidth=1.4, alpha=0.85, marker=dots, markersize=4)
        values = np.concatenate([y for _, _, y in lines[quantity]])
        if quantity == "loss" and values.min() > 0 and values.max() > 50 * values.min():
            axis.set_yscale("log")
        else:
            floor, ceiling = 0 if values.min() >= 0 else None, 100.5 if quantity == "accuracy" else None
            fit_y(axis, values.tolist(), low=floor, high=ceiling)
        axis.set_xlabel(STEPS.get(over, over))
        axis.set_ylabel("training loss" if quantity == "loss" else "test accuracy (%)")
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=over != "seconds", steps=[1, 2, 5, 10]))
        if over in ("step", "samples_seen"):
            axis.xaxis.set_major_formatter(FuncFormatter(_thousands))
    ends = []
    for name in names:
        finals = [(x[-1], y[-1]) for label, x, y in lines[shown[-1]] if label == name]
        if finals:
            right, mean = max(x for x, _ in finals), float(np.mean([y for _, y in finals]))
            ends.append((right, mean, name, paint[name]))
    if len(names) > 1:
        label_ends(figure, axes[0, -1], ends)
    unit = "% test accuracy" if shown[-1] == "accuracy" else "training loss"
    said = "; ".join(f"{name} ends at {mean:.3g} {unit}" for _, mean, name, _ in ends)
    caption = f"Training of {', '.join(names)}{'; one line per seed' if len(runs) > len(names) else ''}."
    return save(figure, f"Training curves: {said}.", caption)


def _line(
    columns: Mapping[str, Sequence[Any]], split: str, over: str, quantity: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """x and y of a quantity of one split, in the order of x and without missing values."""
    x, y = (
        np.array([np.nan if value is None else value for value in columns[name]], np.float64)
        for name in (over, quantity)
    )
    drawn = (np.asarray(columns["split"], dtype=object) == split) & np.isfinite(x) & np.isfinite(y)
    x, y = x[drawn], y[drawn]
    order = np.argsort(x, kind="stable")
    return x[order], y[order]


def _thousands(value: float, _: Any) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g}"
