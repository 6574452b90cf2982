"""Figures of a run as PNG and SVG bytes, drawn on figures of their own: matplotlib's global state is neither read nor changed."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from scipy.optimize import isotonic_regression

from winnow.tasks.errors import BadInput
from winnow.tasks.report.tables import WHOLE, Accuracy, methods, percent

__all__ = [
    "DROPPED_BETWEEN",
    "DROPPED_EASY",
    "DROPPED_HARD",
    "KEPT",
    "Picture",
    "accuracy_curve",
    "class_balance",
    "clustering_bars",
    "colours",
    "compact_png",
    "head_losses",
    "regions",
    "score_histogram",
    "search_curve",
    "training_curves",
]

# Okabe and Ito's palette: told apart with every common kind of colour blindness
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C510A", "#6A51A3")
PINNED = {
    "random": "#7F7F7F",
    "none": "#000000",
    "full": "#000000",
    "elfs": "#0072B2",
    "d2": "#D55E00",
    "ccs": "#009E73",
    "kakurenbo": "#CC79A7",
}
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
STROKES = ("-", "-.", ":")  # methods beyond the markers
KEPT, DROPPED_HARD, DROPPED_EASY, DROPPED_BETWEEN = "#0072B2", "#D55E00", "#A6A6A6", "#DEDEDE"
INK, FAINT, GRID = "#222222", "#666666", "#E6E6E6"
WIDTH, DPI = 7.2, 150
HigherIs = Literal["easier", "harder"]


@dataclass(frozen=True)
class Picture:
    """A figure for a report.

    Attributes:
        png: bytes of the PNG.
        alt: what it shows, for those who cannot see it.
        svg: bytes of the same as SVG, None where there is none (photographs).
        caption: a sentence to print under it.
    """

    png: bytes = field(repr=False)
    alt: str
    svg: bytes | None = field(default=None, repr=False)
    caption: str = ""


def colours(names: Iterable[str]) -> dict[str, str]:
    """One colour a method: the same in every figure that is given the same methods, and fixed for the best-known ones.

    >>> colours(["random", "elfs", "herding"])
    {'random': '#7F7F7F', 'elfs': '#0072B2', 'herding': '#D55E00'}
    """
    names = list(dict.fromkeys(names))
    free = [colour for colour in PALETTE if colour not in {PINNED.get(name) for name in names}] or list(
        PALETTE
    )
    others = [name for name in names if name not in PINNED]
    given = {name: free[i % len(free)] for i, name in enumerate(sorted(others))}
    return {name: PINNED.get(name) or given[name] for name in names}


def compact_png(image: Image.Image, colours: int | None = 256, *, dither: bool = False) -> bytes:
    """The picture as an optimised PNG with a palette (None keeps every colour): a third of the bytes, and hardly another drawing.

    Args:
        image: any mode; what is transparent becomes white.
        colours: size of the palette.
        dither: mix colours that the palette lacks; better for photographs, larger and worse for drawings.
    """
    stream = io.BytesIO()
    flat = Image.new("RGB", image.size, "white")
    flat.paste(image, mask=image.getchannel("A") if image.mode == "RGBA" else None)
    if colours is not None:
        palette = flat.quantize(colours, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        # only a call that is given its palette dithers
        flat = flat.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) if dither else palette
    flat.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _figure(
    height: float, rows: int = 1, columns: int = 1, **shared: Any
) -> tuple[Figure, NDArray[np.object_]]:
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.07)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **shared)
    for axis in axes.flat:
        axis.set_facecolor("white")
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(FAINT)
        axis.tick_params(colors=FAINT, labelcolor=INK, labelsize=9.5, length=3.5)
        axis.xaxis.label.set(color=INK, fontsize=10)
        axis.yaxis.label.set(color=INK, fontsize=10)
    return figure, axes


def _plain(text: str) -> str:
    """The text with dollar signs that matplotlib prints rather than takes for mathematics."""
    return str(text).replace("$", r"\$")


def _minus(text: str) -> str:
    return text.replace(" -", " \u2212")


def _grid(axis: Axes, which: Literal["x", "y"] = "y") -> None:
    axis.grid(axis=which, color=GRID, linewidth=0.8)
    axis.set_axisbelow(True)


def _save(figure: Figure, alt: str, caption: str = "") -> Picture:
    raster = io.BytesIO()
    figure.savefig(raster, format="png", facecolor="white")
    raster.seek(0)
    with Image.open(raster) as image:
        png = compact_png(image.convert("RGBA"))
    vector = io.BytesIO()
    figure.savefig(vector, format="svg", metadata={"Date": None, "Creator": None}, facecolor="white")
    return Picture(png, alt, _numbered(vector.getvalue()), caption)


def _numbered(svg: bytes) -> bytes:
    """Ids that matplotlib draws at random, numbered instead: equal figures have equal bytes."""
    text = svg.decode()
    found = dict.fromkeys(re.findall(r'id="([a-zA-Z]?[0-9a-f]{10})"', text))
    names = {name: f"w{i}" for i, name in enumerate(found)}
    if names:
        text = re.sub("|".join(map(re.escape, names)), lambda match: names[match.group()], text)
    return text.encode()


def _apart(wanted: NDArray[np.float64], gap: float, low: float, high: float) -> NDArray[np.float64]:
    """The places nearest to the wanted ones that are at least ``gap`` apart, between low and high where they fit.

    With p_i − i·gap for p_i, "at least gap apart" reads "not decreasing", and the nearest such values are the
    isotonic regression.
    """
    order = np.argsort(wanted, kind="stable")
    steps = gap * np.arange(len(wanted))
    placed = np.asarray(isotonic_regression(wanted[order] - steps).x)
    placed = np.clip(placed, low, max(low, high - steps[-1])) + steps
    result = np.empty(len(wanted))
    result[order] = placed
    return result


def _label_ends(
    figure: Figure, axis: Axes, ends: Sequence[tuple[float, float, str, str]], size: float = 9.5
) -> None:
    """Write (x, y, text, colour) to the right of the axes at the height of y, moved apart where they would overlap."""
    size = size if len(ends) <= 14 else 8
    figure.draw_without_rendering()  # fixes the height of the axes
    box = axis.get_window_extent()
    pixels = axis.transData.transform([(x, y) for x, y, _, _ in ends])[:, 1]
    heights = (_apart(pixels, 1.3 * size * DPI / 72, box.y0, box.y1) - box.y0) / box.height
    for (x, y, text, colour), height in zip(ends, heights, strict=True):
        axis.annotate(
            _plain(text),
            (x, y),
            (1.035, height),
            xycoords="data",
            textcoords="axes fraction",
            color=colour,
            fontsize=size,
            va="center",
            ha="left",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.6,
                "alpha": 0.6,
                "shrinkA": 1.5,
                "shrinkB": 3,
                "relpos": (0, 0.5),
            },
        )


def _finite(name: str, values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if not array.size:
        raise BadInput(f"{name} is empty.")
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        raise BadInput(
            f"{name}[{', '.join(map(str, bad[0]))}] is {array[tuple(bad[0])]}, not a finite number."
        )
    return array


def _room(
    axis: Axes,
    values: Sequence[float],
    share: float = 0.08,
    *,
    low: float | None = None,
    high: float | None = None,
) -> None:
    """Limits of y with some air; a flat line gets a window of its own."""
    least, most = float(min(values)), float(max(values))
    air = share * (most - least) if most > least else max(0.05 * abs(most), 0.5)
    bottom, top = least - air, most + air
    axis.set_ylim(bottom if low is None else max(bottom, low), top if high is None else min(top, high))


def accuracy_curve(rows: Sequence[Mapping[str, Any]], *, accuracy: Accuracy = "last") -> Picture:
    """Test accuracy against the pruning rate: one line a method with a band of ± 1 sd, training on everything as a horizontal line.

    With a single fraction there is no curve to draw, and the methods are compared on a line each.

    Args:
        rows: what ``tables.summarise`` returns.
        accuracy: which accuracy is drawn.
    """
    if not rows:
        raise BadInput(
            "rows is empty: there is nothing to draw.", remedy="pass what summarise(trials) returns"
        )
    parts = {row["method"] for row in rows if row["fraction"] < WHOLE}
    names = [name for name in methods(rows) if name in parts]
    wholes = [row for row in rows if row["method"] not in parts]
    fractions = sorted({row["fraction"] for row in rows if row["method"] in parts})
    if len(fractions) < 2:
        return _accuracy_dots(rows, accuracy)
    paint = colours(methods(rows))
    figure, axes = _figure(4.1 if len(names) <= 10 else 4.1 + 0.16 * (len(names) - 10))
    axis = axes[0, 0]
    _grid(axis)
    ends, seen = [], []
    for i, name in enumerate(names):
        line = sorted((row for row in rows if row["method"] == name), key=lambda row: row["fraction"])
        x = np.array([row["fraction"] for row in line])
        y = 100 * np.array([row[f"{accuracy}_mean"] for row in line])
        sd = 100 * np.array([row[f"{accuracy}_sd"] or 0.0 for row in line])
        kind = {"color": paint[name], "zorder": 3}
        if sd.any() and len(names) <= 6:
            axis.fill_between(x, y - sd, y + sd, color=paint[name], alpha=0.16, linewidth=0, zorder=2)
        elif sd.any():  # many bands would only be mud
            axis.errorbar(
                x, y, sd, fmt="none", ecolor=paint[name], elinewidth=0.9, capsize=2, alpha=0.6, zorder=2
            )
        stroke = "--" if name == "random" else STROKES[i // len(MARKERS) % len(STROKES)]
        axis.plot(
            x, y, marker=MARKERS[i % len(MARKERS)], markersize=5, linewidth=1.8, linestyle=stroke, **kind
        )
        ends.append((float(x[0]), float(y[0]), name, paint[name]))
        seen += [*(y - sd), *(y + sd)]
    for row in wholes:
        height = 100 * row[f"{accuracy}_mean"]
        axis.axhline(height, color=paint[row["method"]], linewidth=1.1, linestyle=(0, (4, 3)), zorder=1)
        seen.append(height)
    _room(axis, seen, low=0, high=100.5)
    wide = fractions[-1] / fractions[0] > 20
    if wide:
        axis.set_xscale("log")
        axis.set_xlim(fractions[-1] * 1.15, fractions[0] * 0.85)
    else:
        air = 0.04 * (fractions[-1] - fractions[0])
        axis.set_xlim(
            fractions[-1] + air, fractions[0] - air
        )  # as in the papers: pruning grows to the right, where methods part
    _fraction_ticks(axis, fractions, wide, pruned=True)
    axis.set_xlabel("pruned (% of the training set)")
    axis.set_ylabel(f"test accuracy (%), {accuracy} epoch")
    above = axis.secondary_xaxis("top")
    above.spines["top"].set_visible(False)
    above.tick_params(colors=FAINT, labelcolor=FAINT, labelsize=9, length=0)
    _fraction_ticks(above, fractions, wide)
    above.set_xlabel("kept (%)", color=FAINT, fontsize=9.5)
    for row in wholes:
        height = 100 * row[f"{accuracy}_mean"]
        ends.append((axis.get_xlim()[1], height, f"{row['method']} {height:.1f}", paint[row["method"]]))
    _label_ends(figure, axis, ends)
    spread = any(row[f"{accuracy}_sd"] for row in rows)
    shown = "band" if len(names) <= 6 else "bar"
    caption = (
        "Test accuracy against the pruning "
        f"rate{f'; {shown}s are ± 1 sample sd over seeds' if spread else '; one seed'}."
    )
    best = max((row for row in rows if row["method"] in parts), key=lambda row: row[f"{accuracy}_mean"])
    alt = (
        f"Line chart of test accuracy against the pruning rate, from {percent(1 - fractions[-1])} to "
        f"{percent(1 - fractions[0])}, "
        f"for {', '.join(names)}. Highest: {best['method']}, {100 * best[f'{accuracy}_mean']:.1f} % at "
        f"{percent(best['fraction'])} kept."
    )
    return _save(figure, alt, caption)


def _fraction_ticks(axis: Any, fractions: Sequence[float], log: bool, *, pruned: bool = False) -> None:
    """Ticks at the fractions that were run, without those that would touch their neighbour."""
    place = np.log(fractions) if log else np.asarray(fractions)
    least = 0.055 * (place[-1] - place[0])
    shown: list[float] = []
    for fraction, where in sorted(zip(fractions, place, strict=True), reverse=True):
        if not shown or (np.log(shown[-1]) if log else shown[-1]) - where >= least:
            shown.append(fraction)
    axis.xaxis.set_major_locator(FixedLocator(shown))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * (1 - x if pruned else x):.4g}"))


def _accuracy_dots(rows: Sequence[Mapping[str, Any]], accuracy: Accuracy) -> Picture:
    names = methods(rows)
    order = sorted(rows, key=lambda row: row[f"{accuracy}_mean"])
    paint = colours(names)
    figure, axes = _figure(1.1 + 0.34 * len(order))
    axis = axes[0, 0]
    _grid(axis, "x")
    labels = []
    for i, row in enumerate(order):
        mean, sd = 100 * row[f"{accuracy}_mean"], 100 * (row[f"{accuracy}_sd"] or 0.0)
        axis.errorbar(
            mean,
            i,
            xerr=sd or None,
            fmt="o",
            color=paint[row["method"]],
            markersize=7,
            elinewidth=2,
            capsize=3,
        )
        text = f"{mean:.1f} ± {sd:.1f}" if sd else f"{mean:.1f}"
        axis.annotate(
            text,
            (1.02, i),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=9.5,
            color=INK,
            annotation_clip=False,
        )
        labels.append(f"{_plain(row['method'])} ({percent(row['fraction'])})")
    ends = [
        100 * (row[f"{accuracy}_mean"] + side * (row[f"{accuracy}_sd"] or 0.0))
        for row in order
        for side in (-1, 1)
    ]
    air = 0.08 * (max(ends) - min(ends)) or 0.5
    axis.set_xlim(max(min(ends) - air, -0.5), min(max(ends) + air, 100.5))
    axis.set_ylim(-0.6, len(order) - 0.4)
    axis.set_yticks(range(len(order)), labels)
    axis.tick_params(axis="y", length=0)
    axis.set_xlabel(f"test accuracy (%), {accuracy} epoch")
    spread = any(row[f"{accuracy}_sd"] for row in rows)
    best = order[-1]
    return _save(
        figure,
        f"Dot chart of the test accuracy of {', '.join(names)}. Highest: {best['method']}, "
        f"{100 * best[f'{accuracy}_mean']:.1f} %.",
        "Test accuracy of each method; in brackets the fraction "
        f"kept{'; bars are ± 1 sample sd over seeds' if spread else '; one seed'}.",
    )


def regions(
    scores: ArrayLike, kept: ArrayLike, *, higher_is: HigherIs = "easier"
) -> dict[str, NDArray[np.int64]]:
    """Rows kept, and the rows dropped: harder than every kept one, easier than every kept one, or in between.

    Args:
        scores: (N,) float.
        kept: (k,) int rows kept.
        higher_is: what a high score means.

    Returns:
        ``{"too hard", "kept", "too easy", "between"}`` to int64 rows in ascending order; together they are
        all N.

    >>> {name: rows.tolist() for name, rows in regions([0.1, 0.2, 0.3, 0.4, 0.5], [1, 3]).items()}
    {'too hard': [0], 'kept': [1, 3], 'too easy': [4], 'between': [2]}
    """
    values = np.asarray(scores, dtype=np.float64)
    rows = np.asarray(kept, dtype=np.int64)
    if values.ndim != 1 or not len(values):
        raise BadInput(f"scores has shape {values.shape}, not (N,) with N > 0.")
    if np.isnan(values).any():
        raise BadInput(f"scores[{int(np.flatnonzero(np.isnan(values))[0])}] is NaN.")
    if len(rows) and (rows.min() < 0 or rows.max() >= len(values)):
        raise BadInput(
            f"kept names row {int(rows.max()) if rows.max() >= len(values) else int(rows.min())} of "
            f"{len(values)}."
        )
    if len(rows) == 0:
        raise BadInput("kept is empty: nothing was selected.")
    inside = np.zeros(len(values), bool)
    inside[rows] = True
    ease = values if higher_is == "easier" else -values
    hardest, easiest = ease[inside].min(), ease[inside].max()
    return {
        "too hard": np.flatnonzero(ease < hardest),
        "kept": np.flatnonzero(inside),
        "too easy": np.flatnonzero(ease > easiest),
        "between": np.flatnonzero(~inside & (ease >= hardest) & (ease <= easiest)),
    }


def _cuts(
    scores: NDArray[np.float64], parts: Mapping[str, NDArray[np.int64]], higher_is: HigherIs
) -> dict[str, float]:
    """Score of the last kept sample at each end beyond which samples were dropped."""
    inside = scores[parts["kept"]]
    ends = (inside.min(), inside.max()) if higher_is == "easier" else (inside.max(), inside.min())
    named = zip(("too hard", "too easy"), ends, strict=True)
    return {name: float(end) for name, end in named if len(parts[name]) and np.isfinite(end)}


_REGION_COLOURS = {
    "too hard": DROPPED_HARD,
    "kept": KEPT,
    "too easy": DROPPED_EASY,
    "between": DROPPED_BETWEEN,
}
_REGION_NAMES = {
    "too hard": "dropped, too hard",
    "kept": "kept",
    "too easy": "dropped, too easy",
    "between": "dropped in between",
}


def score_histogram(
    scores: ArrayLike,
    selections: Mapping[str, ArrayLike],
    *,
    score_name: str = "AUM",
    higher_is: HigherIs = "easier",
    bins: int = 60,
) -> Picture:
    """Histogram of a score, coloured by what became of the samples: one panel a selection.

    Args:
        scores: (N,) float; infinite values (never learnt) are counted, not drawn.
        selections: title such as ``"10 % kept"`` to the int rows kept.
        score_name: name on the axis, with its unit where it has one.
        higher_is: what a high score means.
        bins: number of bars.

    Returns:
        The picture. Samples as hard (easy) as a kept one but dropped are "in between".
    """
    values = np.asarray(scores, dtype=np.float64)
    if not selections:
        raise BadInput("selections is empty: name at least one selection.")
    split = {title: regions(values, kept, higher_is=higher_is) for title, kept in selections.items()}
    drawn = np.isfinite(values)
    if not drawn.any():
        raise BadInput("scores has no finite value to draw.")
    low, high = float(values[drawn].min()), float(values[drawn].max())
    pad = 0.0 if high > low else max(0.5, 0.01 * abs(high))
    edges = np.linspace(low - pad, high + pad, bins + 1)
    figure, axes = _figure(0.75 + 1.35 * len(selections), len(selections), 1, sharex=True, sharey=True)
    for axis, (title, parts) in zip(axes[:, 0], split.items(), strict=True):
        bottom = np.zeros(bins)
        for name in ("kept", "between", "too hard", "too easy"):
            rows = parts[name]
            counts = np.histogram(values[rows[drawn[rows]]], edges)[0]
            if counts.any():
                axis.stairs(
                    bottom + counts,
                    edges,
                    baseline=bottom,
                    fill=True,
                    color=_REGION_COLOURS[name],
                    linewidth=0,
                )
            bottom = bottom + counts
        for cut in _cuts(values, parts, higher_is).values():
            axis.axvline(cut, color=INK, linewidth=1, linestyle=(0, (3, 2)))
        axis.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))
        beside = {"xycoords": "axes fraction", "va": "top", "annotation_clip": False}
        axis.annotate(_plain(title), (1.03, 1.0), fontsize=10, fontweight="bold", color=INK, **beside)
        shown = [name for name in ("too hard", "kept", "between", "too easy") if len(parts[name])]
        for i, name in enumerate(shown):
            y = 0.78 - 0.185 * i
            axis.annotate("■", (1.03, y), color=_REGION_COLOURS[name], fontsize=10, **beside)
            axis.annotate(
                f"{_REGION_NAMES[name]}: {len(parts[name]):,}", (1.075, y), color=INK, fontsize=9, **beside
            )
    figure.supylabel("samples per bin", fontsize=10, color=INK)
    left, right = ("harder", "easier") if higher_is == "easier" else ("easier", "harder")
    axes[-1, 0].set_xlabel(f"\u2190 {left}     {_plain(score_name)}     {right} \u2192")
    hidden = int((~drawn).sum())
    caption = f"{score_name} of all {len(values):,} samples and what the selection did with them."
    if hidden:
        caption += f" Not drawn: {hidden:,} with an infinite score."
    if high == low:
        caption += " The score is the same for every sample, so it decides nothing."
    alt = f"Histogram of {score_name}. " + " ".join(
        f"{title}: {', '.join(f'{len(parts[name]):,} {_REGION_NAMES[name]}' for name in parts if len(parts[name]))}."
        for title, parts in split.items()
    )
    return _save(figure, alt, caption)


def _counts(name: str, labels: ArrayLike, classes: int) -> NDArray[np.int64]:
    array = np.asarray(labels)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise BadInput(f"{name} has shape {array.shape} and dtype {array.dtype}, not (n,) integers.")
    if not len(array):
        raise BadInput(f"{name} is empty.")
    if array.min() < 0 or array.max() >= classes:
        raise BadInput(
            f"{name}[{int(np.argmax((array < 0) | (array >= classes)))}] is not one of {classes} classes."
        )
    return np.bincount(array, minlength=classes)


def class_balance(
    coreset: ArrayLike, classes: Sequence[str], *, dataset: ArrayLike | None = None, kind: str = "labels"
) -> Picture:
    """Share of each class in the coreset against its share in the dataset.

    Args:
        coreset: (k,) int labels or pseudo-labels of the coreset, in [0, C).
        classes: C names.
        dataset: (N,) int labels of the whole dataset; None where they are not known, and an even share is the
            measure.
        kind: what the labels are, for example ``"labels"`` or ``"pseudo-labels"``.
    """
    count = len(classes)
    share = _counts("coreset", coreset, count) / np.asarray(coreset).size
    whole = None if dataset is None else _counts("dataset", dataset, count) / np.asarray(dataset).size
    measure = np.full(count, 1 / count) if whole is None else whole
    against = "an even share" if whole is None else "the dataset"
    empty = int(((share == 0) & (measure > 0)).sum())
    caption = (
        f"Share of each class in the coreset ({kind}) against {against}: {100 * share.min():.3g} % to "
        f"{100 * share.max():.3g} %, "
    )
    caption += (
        f"where {'an even share is' if whole is None else 'the dataset has'} {100 * measure.min():.3g} %"
    )
    caption += f"{'' if np.ptp(measure) == 0 else f' to {100 * measure.max():.3g} %'}."
    caption += (
        f" {empty} of {count} classes {'has' if empty == 1 else 'have'} no sample in the coreset."
        if empty
        else ""
    )
    if count <= 40:
        figure, axes = _figure(0.85 + 0.25 * count)
        axis = axes[0, 0]
        places = np.arange(count)
        axis.barh(places, 100 * share, 0.7, color=KEPT)
        axis.vlines(100 * measure, places - 0.43, places + 0.43, color=INK, linewidth=2)
        for place, value in enumerate(share):
            axis.annotate(
                f"{100 * value:.1f}",
                (1.015, place),
                xycoords=("axes fraction", "data"),
                va="center",
                fontsize=9,
                color=INK,
            )
        axis.set_yticks(
            places, [_plain(name if len(name) <= 28 else f"{name[:27]}…") for name in map(str, classes)]
        )
        axis.tick_params(axis="y", length=0)
        axis.set_ylim(count - 0.4, -0.6)
        axis.set_xlim(0, 108 * max(share.max(), measure.max()))
        axis.set_xlabel(f"share of the coreset (%), by {_plain(kind)}; black line: {against}")
        _grid(axis, "x")
    else:
        figure, axes = _figure(3.2)
        axis = axes[0, 0]
        _grid(axis)
        ratio = np.sort(np.divide(share, measure, out=np.zeros(count), where=measure > 0)[measure > 0])
        axis.fill_between(
            np.arange(1, len(ratio) + 1), 1, ratio, step="mid", color=KEPT, alpha=0.25, linewidth=0
        )
        axis.step(np.arange(1, len(ratio) + 1), ratio, where="mid", color=KEPT, linewidth=1.6)
        axis.axhline(1, color=INK, linewidth=1.1)
        axis.annotate(f"as in {against}", (1, 1), (4, 4), textcoords="offset points", fontsize=9, color=INK)
        axis.set_xlim(0, len(ratio) + 1)
        axis.set_ylim(0)
        axis.set_xlabel(f"class, by rank ({_plain(kind)})")
        axis.set_ylabel(f"coreset share ÷ {'dataset' if whole is not None else 'even'} share")
    return _save(figure, caption, caption)


def head_losses(losses: ArrayLike, chosen: int) -> Picture:
    """Loss of every cluster head over the epochs, the chosen head stressed.

    Args:
        losses: (epochs, heads) float.
        chosen: index of the chosen head.
    """
    values = _finite("losses", losses)
    if values.ndim != 2:
        raise BadInput(f"losses has shape {values.shape}, not (epochs, heads).")
    if not 0 <= chosen < values.shape[1]:
        raise BadInput(f"chosen is {chosen}; there are {values.shape[1]} heads.")
    figure, axes = _figure(3.1)
    axis = axes[0, 0]
    _grid(axis)
    epochs = np.arange(1, len(values) + 1)
    dots = "o" if len(values) == 1 else ""
    others = np.delete(values, chosen, axis=1)
    axis.plot(epochs, others, color="#B0B0B0", linewidth=0.7, alpha=0.7, marker=dots, markersize=3)
    axis.plot(epochs, values[:, chosen], color=KEPT, linewidth=2, marker=dots)
    _epochs(axis, len(values))
    _room(axis, [values.min(), values.max()])
    axis.set_ylabel("loss of the head")
    ends = [
        (
            float(epochs[-1]),
            float(values[-1, chosen]),
            _minus(f"head {chosen}, chosen: {values[-1, chosen]:.3f}"),
            KEPT,
        )
    ]
    if others.size:
        middle = float(np.median(others[-1]))
        ends.append((float(epochs[-1]), middle, _minus(f"others, median: {middle:.3f}"), FAINT))
    _label_ends(figure, axis, ends)
    count = values.shape[1]
    caption = (
        f"Loss of {'the one cluster head' if count == 1 else f'all {count} cluster heads'}; head "
        f"{chosen} gave the pseudo-labels."
    )
    return _save(
        figure,
        f"{caption} Its loss ends at {values[-1, chosen]:.3f}, the others between {values[-1].min():.3f} and "
        f"{values[-1].max():.3f}.",
        caption,
    )


def _epochs(axis: Axes, count: int, label: str = "epoch") -> None:
    axis.xaxis.set_major_locator(
        FixedLocator([1]) if count == 1 else MaxNLocator(8, integer=True, steps=[1, 2, 5, 10])
    )
    axis.set_xlim(*((0.5, 1.5) if count == 1 else (1, count)))
    axis.set_xlabel(label)


_METRICS = {"accuracy": "accuracy", "nmi": "NMI", "ami": "AMI", "ari": "ARI"}


def clustering_bars(metrics: Mapping[str, Mapping[str, float]]) -> Picture:
    """Clusterings compared by accuracy (best matching to the classes), NMI, AMI and ARI, each × 100.

    Args:
        metrics: clustering (``"cluster heads"``, ``"k-means"``) to metric to value in [-1, 1].
    """
    if not metrics:
        raise BadInput("metrics is empty: name at least one clustering.")
    names = list(metrics)
    kinds = list(dict.fromkeys(kind for values in metrics.values() for kind in values))
    if not kinds:
        raise BadInput("metrics has no metric.")
    table = 100 * np.array([[metrics[name].get(kind, np.nan) for kind in kinds] for name in names])
    figure, axes = _figure(0.9 + (0.22 * len(names) + 0.16) * len(kinds))
    axis = axes[0, 0]
    _grid(axis, "x")
    height = 0.8 / len(names)
    for i, name in enumerate(names):
        places = np.arange(len(kinds)) - 0.4 + (i + 0.5) * height
        colour = PALETTE[0] if i == 0 else ("#A6A6A6", *PALETTE[1:])[(i - 1) % len(PALETTE)]
        axis.barh(places, np.nan_to_num(table[i]), 0.88 * height, color=colour, label=_plain(name))
        for place, value in zip(places, table[i], strict=True):
            text = "not measured" if np.isnan(value) else f"{value:.1f}".replace("-", "\u2212")
            axis.annotate(
                text,
                (max(np.nan_to_num(value), 0), place),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
                color=INK,
            )
    axis.set_yticks(range(len(kinds)), [_METRICS.get(kind, _plain(kind)) for kind in kinds])
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(len(kinds) - 0.5, -0.5)
    axis.set_xlim(min(0.0, 1.1 * float(np.nanmin(table))), max(1.0, 1.12 * float(np.nanmax(table))))
    axis.axvline(0, color=FAINT, linewidth=0.8)
    axis.set_xlabel("agreement with the true labels (× 100)")
    figure.legend(
        loc="outside upper left",
        ncols=len(names),
        frameon=False,
        fontsize=9.5,
        handlelength=1,
        handleheight=1,
    )
    said = "; ".join(
        f"{name}: {', '.join(f'{_METRICS.get(k, k)} {100 * v:.1f}' for k, v in values.items())}"
        for name, values in metrics.items()
    )
    return _save(
        figure,
        f"Bar chart of agreement with the true labels. {said}.",
        "Agreement of the clusterings with the true labels, which selection never saw.",
    )


def search_curve(
    values: ArrayLike,
    accuracies: Sequence[ArrayLike],
    chosen: float,
    *,
    name: str = "mis_ratio",
    judged_on: str = "pseudo-labels",
) -> Picture:
    """Accuracy over the tried values of a hyper-parameter, the chosen one marked.

    Args:
        values: (V,) tried values.
        accuracies: V sequences of accuracies in [0, 1], one entry a repetition.
        chosen: the value that was taken.
        name: the hyper-parameter.
        judged_on: what the accuracy was measured on.
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
    figure, axes = _figure(2.9)
    axis = axes[0, 0]
    _grid(axis)
    if sd.any():
        axis.fill_between(x, mean - sd, mean + sd, color=KEPT, alpha=0.16, linewidth=0)
    axis.plot(x, mean, "o-", color=KEPT, linewidth=1.8, markersize=5)
    axis.plot(
        x[best],
        mean[best],
        "o",
        markersize=12,
        markerfacecolor="none",
        markeredgecolor=DROPPED_HARD,
        markeredgewidth=2,
    )
    _room(axis, [*(mean - sd), *(mean + sd)], 0.22)
    axis.annotate(
        f"chosen: {chosen:g} ({mean[best]:.1f} %)",
        (x[best], mean[best]),
        (0, 12),
        textcoords="offset points",
        ha="left" if best == 0 and len(x) > 1 else "right" if best == len(x) - 1 and len(x) > 1 else "center",
        fontsize=9.5,
        color=DROPPED_HARD,
    )
    if len(x) <= 12:
        axis.set_xticks(x, [f"{value:g}" for value in x])
    axis.set_xlabel(_plain(name))
    axis.set_ylabel(f"accuracy on {_plain(judged_on)} (%)")
    band = "; band ± 1 sample sd" if sd.any() else ""
    caption = f"Search for {name}, judged on {judged_on}: {chosen:g} was chosen out of {len(x)} values{band}."
    return _save(
        figure, f"{caption} Accuracies range from {mean.min():.1f} % to {mean.max():.1f} %.", caption
    )


_STEPS = {"epoch": "epoch", "step": "training step", "samples_seen": "samples seen", "seconds": "seconds"}


def training_curves(
    runs: Sequence[tuple[str, Mapping[str, Sequence[Any]]]], *, over: str = "epoch"
) -> Picture:
    """Training loss and test accuracy over training; runs of the same name (seeds) share a colour.

    Args:
        runs: (name, columns) with columns as in a metrics artifact: ``over``, ``split`` (``"train"``,
            ``"test"``), ``loss``, ``accuracy`` in [0, 1]; missing values are None or NaN.
        over: the column on the x axis.
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
        split = np.asarray(columns["split"], dtype=object)
        where = np.array([np.nan if v is None else v for v in columns[over]], np.float64)
        for quantity, wanted in (("loss", "train"), ("accuracy", "test")):
            y = np.array([np.nan if v is None else v for v in columns[quantity]], np.float64)
            use = (split == wanted) & np.isfinite(y) & np.isfinite(where)
            if use.any():
                order = np.argsort(where[use], kind="stable")
                lines[quantity].append(
                    (name, where[use][order], (y[use] * (100 if quantity == "accuracy" else 1))[order])
                )
    shown = [quantity for quantity in lines if lines[quantity]]
    if not shown:
        raise BadInput("runs has neither a training loss nor a test accuracy.")
    figure, axes = _figure(3.3, 1, len(shown))
    for axis, quantity in zip(axes[0], shown, strict=True):
        _grid(axis)
        for name, x, y in lines[quantity]:
            axis.plot(
                x,
                y,
                color=paint[name],
                linewidth=1.4,
                alpha=0.85,
                marker="o" if len(x) == 1 else "",
                markersize=4,
            )
        every = [value for _, _, y in lines[quantity] for value in y]
        if quantity == "loss" and min(every) > 0 and max(every) > 50 * min(every):
            axis.set_yscale("log")
        else:
            _room(
                axis,
                every,
                low=0 if min(every) >= 0 else None,
                high=100.5 if quantity == "accuracy" else None,
            )
        axis.set_xlabel(_STEPS.get(over, over))
        axis.set_ylabel("training loss" if quantity == "loss" else "test accuracy (%)")
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=over != "seconds", steps=[1, 2, 5, 10]))
        if over in ("step", "samples_seen"):
            axis.xaxis.set_major_formatter(FuncFormatter(_thousands))
    last = axes[0, -1]
    ends = []
    for name in names:
        finals = [(x[-1], y[-1]) for other, x, y in lines[shown[-1]] if other == name]
        if finals:
            ends.append(
                (max(x for x, _ in finals), float(np.mean([y for _, y in finals])), name, paint[name])
            )
    if len(names) > 1:
        _label_ends(figure, last, ends)
    several = len(runs) > len(names)
    caption = f"Training of {', '.join(names)}{'; one line a seed' if several else ''}."
    said = "; ".join(
        f"{name} ends at {y:.3g}{' % test accuracy' if shown[-1] == 'accuracy' else ' training loss'}"
        for _, y, name, _ in ends
    )
    return _save(figure, f"Training curves: {said}.", caption)


def _thousands(value: float, _: Any) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g}"
