"""What all figures of a report share: palette, axes, labels that do not overlap, PNG and SVG.

Each figure has its own canvas: matplotlib's global state is neither read nor changed.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from scipy.optimize import isotonic_regression

__all__ = [
    "DROPPED_BETWEEN",
    "DROPPED_EASY",
    "DROPPED_HARD",
    "FAINT",
    "INK",
    "KEPT",
    "PALETTE",
    "Picture",
    "chart",
    "colours",
    "compact_png",
    "fit_y",
    "grid",
    "label_ends",
    "literal",
    "save",
    "subplots",
]

# Okabe and Ito's palette: distinct under every common kind of colour blindness
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
KEPT, DROPPED_HARD, DROPPED_EASY, DROPPED_BETWEEN = "#0072B2", "#D55E00", "#A6A6A6", "#DEDEDE"
INK, FAINT, GRID = "#222222", "#666666", "#E6E6E6"
WIDTH, DPI = 7.2, 150


@dataclass(frozen=True)
class Picture:
    """A figure for a report.

    Attributes:
        png: the PNG file.
        alt: description for readers who cannot see the figure.
        svg: the same figure as an SVG file; None for photographs.
        caption: a sentence to print under the figure.
    """

    png: bytes = field(repr=False)
    alt: str
    svg: bytes | None = field(default=None, repr=False)
    caption: str = ""


def colours(names: Iterable[str]) -> dict[str, str]:
    """One colour per method: fixed for the best-known, else the same wherever the methods are the same.

    >>> colours(["random", "elfs", "herding"])
    {'random': '#7F7F7F', 'elfs': '#0072B2', 'herding': '#D55E00'}
    """
    names = list(dict.fromkeys(names))
    taken = {PINNED.get(name) for name in names}
    free = [colour for colour in PALETTE if colour not in taken] or PALETTE
    assigned = dict(zip(sorted(set(names) - set(PINNED)), cycle(free), strict=False)) | PINNED
    return {name: assigned[name] for name in names}


def compact_png(image: Image.Image, colours: int | None = 256, *, dither: bool = False) -> bytes:
    """The image as an optimised PNG with a palette: a third of the size, and hardly a visible difference.

    Args:
        image: of any mode; transparent pixels become white.
        colours: size of the palette; None keeps every colour.
        dither: mix the colours that the palette lacks; better for photographs, larger and worse for drawings.
    """
    stream = io.BytesIO()
    flat = Image.new("RGB", image.size, "white")
    flat.paste(image, mask=image.getchannel("A") if image.mode == "RGBA" else None)
    if colours is not None:
        palette = flat.quantize(colours, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        # Pillow dithers only when it is handed a palette
        flat = flat.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) if dither else palette
    flat.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def subplots(
    height: float, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, NDArray[np.object_]]:
    """A figure ``height`` inches high, and its (rows, columns) axes in the style of the report."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.07)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for axis in axes.flat:
        axis.set_facecolor("white")
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(FAINT)
        axis.tick_params(colors=FAINT, labelcolor=INK, labelsize=9.5, length=3.5)
        axis.xaxis.label.set(color=INK, fontsize=10)
        axis.yaxis.label.set(color=INK, fontsize=10)
    return figure, axes


def chart(height: float, lines: Literal["x", "y"] = "y") -> tuple[Figure, Any]:
    """A figure ``height`` inches high of one panel with grid lines."""
    figure, axes = subplots(height)
    grid(axes[0, 0], lines)
    return figure, axes[0, 0]


def literal(text: str) -> str:
    """The text with its dollar signs escaped, which matplotlib would read as mathematics."""
    return str(text).replace("$", r"\$")


def grid(axis: Axes, which: Literal["x", "y"] = "y") -> None:
    """Faint grid lines behind the data."""
    axis.grid(axis=which, color=GRID, linewidth=0.8)
    axis.set_axisbelow(True)


def fit_y(
    axis: Axes,
    values: Sequence[float],
    margin: float = 0.08,
    *,
    low: float | None = None,
    high: float | None = None,
) -> None:
    """Fit the y axis to the values, with a margin of that share of their range, within low and high.

    Around values that are all equal the margin is 5 % of the value, at least 0.5.
    """
    least, most = float(min(values)), float(max(values))
    air = margin * (most - least) if most > least else max(0.05 * abs(most), 0.5)
    bottom, top = least - air, most + air
    axis.set_ylim(bottom if low is None else max(bottom, low), top if high is None else min(top, high))


def label_ends(figure: Figure, axis: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write (x, y, text, colour) beside the axes at the height of y, moved apart where they would overlap."""
    size = 9.5 if len(ends) <= 14 else 8
    figure.draw_without_rendering()  # fixes the height of the axes
    box = axis.get_window_extent()
    pixels = axis.transData.transform([(x, y) for x, y, _, _ in ends])[:, 1]
    heights = (_apart(pixels, 1.3 * size * DPI / 72, box.y0, box.y1) - box.y0) / box.height
    line = {
        "arrowstyle": "-",
        "linewidth": 0.6,
        "alpha": 0.6,
        "shrinkA": 1.5,
        "shrinkB": 3,
        "relpos": (0, 0.5),
    }
    beside: dict[str, Any] = {"textcoords": "axes fraction", "va": "center", "annotation_clip": False}
    for (x, y, text, colour), height in zip(ends, heights, strict=True):
        look: dict[str, Any] = {"color": colour, "fontsize": size, "arrowprops": {**line, "color": colour}}
        axis.annotate(literal(text), (x, y), (1.035, height), **beside, **look)


def _apart(wanted: NDArray[np.float64], gap: float, low: float, high: float) -> NDArray[np.float64]:
    """The positions nearest to the wanted ones that are ``gap`` apart or more, from low to high if they fit.

    In terms of pᵢ − i·gap, "at least gap apart" reads "non-decreasing", and the nearest non-decreasing values
    are the isotonic regression.
    """
    order = np.argsort(wanted, kind="stable")
    steps = gap * np.arange(len(wanted))
    moved = np.asarray(isotonic_regression(wanted[order] - steps).x)
    positions = np.empty(len(wanted))
    positions[order] = np.clip(moved, low, max(low, high - steps[-1])) + steps
    return positions


def save(figure: Figure, alt: str, caption: str = "") -> Picture:
    """The figure as PNG and SVG; equal figures give equal bytes."""
    raster = io.BytesIO()
    figure.savefig(raster, format="png", facecolor="white")
    raster.seek(0)
    with Image.open(raster) as image:
        png = compact_png(image.convert("RGBA"))
    vector = io.BytesIO()
    figure.savefig(vector, format="svg", metadata={"Date": None, "Creator": None}, facecolor="white")
    return Picture(png, alt, _numbered(vector.getvalue()), caption)


def _numbered(svg: bytes) -> bytes:
    """The SVG with its ids numbered, where matplotlib has drawn them at random."""
    text = svg.decode()
    ids = dict.fromkeys(re.findall(r'id="([a-zA-Z]?[0-9a-f]{10})"', text))
    names = {name: f"w{i}" for i, name in enumerate(ids)}
    if names:
        text = re.sub("|".join(map(re.escape, names)), lambda match: names[match.group()], text)
    return text.encode()
