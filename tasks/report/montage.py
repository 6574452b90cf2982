"""Contact sheets of kept and dropped samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from matplotlib import font_manager
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from winnow.tasks.errors import BadInput
from winnow.tasks.report.plots import (
    DROPPED_BETWEEN,
    DROPPED_EASY,
    DROPPED_HARD,
    INK,
    KEPT,
    HigherIs,
    Picture,
    compact_png,
    regions,
)

__all__ = ["Group", "montage", "selection_montage"]

Pixels: TypeAlias = "NDArray[np.uint8] | Sequence[Image.Image]"
TILE, GAP, MARGIN = 96, 8, 12
SMALL, LARGE = 14, 19  # font sizes in pixels
# (colours, dithered, scale of a tile): the first that fits is taken
TRIES = (
    (None, False, 1.0),
    (256, True, 1.0),
    (256, False, 1.0),
    (128, False, 1.0),
    (64, False, 0.8),
    (48, False, 0.65),
    (32, False, 0.5),
    (16, False, 0.4),
)


@dataclass(frozen=True)
class Group:
    """Samples under one heading.

    Attributes:
        title: the heading.
        images: (n, H, W), (n, H, W, 1) or (n, H, W, 3) uint8, or n PIL images of any size.
        captions: n sequences of lines to print under each image.
        colour: of the bar beside the heading.
    """

    title: str
    images: Pixels
    captions: Sequence[Sequence[str]]
    colour: str = INK


@lru_cache(maxsize=8)
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    weight = (
        "bold" if bold else "normal"
    )  # the font that matplotlib brings along: the same everywhere, and with more than Latin letters
    return ImageFont.truetype(
        font_manager.findfont(font_manager.FontProperties(family="DejaVu Sans", weight=weight)), size
    )


def _clip(text: str, width: float, font: ImageFont.FreeTypeFont) -> str:
    text = " ".join(str(text).split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text.rstrip()}…"


def _to_pil(name: str, images: Pixels) -> list[Image.Image]:
    if not isinstance(images, np.ndarray):
        return [image.convert("RGB") for image in images]
    if (
        images.dtype != np.uint8
        or images.ndim not in (3, 4)
        or (images.ndim == 4 and images.shape[3] not in (1, 3))
    ):
        raise BadInput(
            f"{name} has shape {images.shape} and dtype {images.dtype}, not (n, H, W, 1 or 3) uint8."
        )
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    return [Image.fromarray(image).convert("RGB") for image in images]


def _fit(image: Image.Image, tile: int) -> Image.Image:
    """The image within tile × tile: small ones enlarged by whole factors without smoothing, large ones reduced."""
    longest = max(image.size)
    if longest > tile:
        ratio = tile / longest
        return image.resize(
            (max(1, round(image.width * ratio)), max(1, round(image.height * ratio))),
            Image.Resampling.LANCZOS,
        )
    factor = tile // longest
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def montage(groups: Sequence[Group], *, columns: int = 10, max_bytes: int = 300_000) -> bytes:
    """A contact sheet: groups of images one under another, each image with its captions.

    Args:
        groups: what to show, from top to bottom; groups without images are left out.
        columns: images a row.
        max_bytes: the PNG stays below this: first the palette, then the tiles are made smaller.

    Returns:
        PNG bytes.

    Raises:
        BadInput: nothing to show, captions that do not match the images, or more images than fit into
            ``max_bytes``.

    >>> sheet = montage([Group("kept", np.zeros((3, 8, 8, 1), np.uint8), [["id 1"], ["id 2"], ["id 3"]])])
    >>> sheet[:4]
    b'\\x89PNG'
    """
    if columns < 1:
        raise BadInput(f"columns is {columns}, not at least 1.")
    drawn = []
    for i, group in enumerate(groups):
        images = _to_pil(f"groups[{i}].images", group.images)
        if len(images) != len(group.captions):
            raise BadInput(
                f"groups[{i}] ({group.title}) has {len(images)} images and {len(group.captions)} captions."
            )
        if images:
            drawn.append((group, images))
    if not drawn:
        raise BadInput("groups has no image to show.")
    columns = min(columns, max(len(images) for _, images in drawn))
    for palette, dither, scale in TRIES:
        png = compact_png(_sheet(drawn, columns, round(TILE * scale)), palette, dither=dither)
        if len(png) <= max_bytes:
            return png
    raise BadInput(
        f"{sum(len(images) for _, images in drawn)} images do not fit into {max_bytes:,} bytes.",
        remedy="show fewer images",
    )


def _sheet(drawn: Sequence[tuple[Group, list[Image.Image]]], columns: int, tile: int) -> Image.Image:
    small, large = _font(SMALL), _font(LARGE, bold=True)
    cell = max(tile, TILE)  # captions keep their width when tiles shrink
    line = SMALL + 4
    heading = LARGE + 16
    fitted = [(group, [_fit(image, tile) for image in images]) for group, images in drawn]
    width = 2 * MARGIN + columns * (cell + GAP) - GAP
    width = max(width, round(max(large.getlength(group.title) for group, _ in fitted)) + 3 * MARGIN + 8)
    heights = []
    for group, images in fitted:
        lines = max(len(caption) for caption in group.captions)
        rows = -(-len(images) // columns)
        heights.append(heading + rows * (max(image.height for image in images) + 4 + lines * line + GAP))
    sheet = Image.new("RGB", (width, 2 * MARGIN + sum(heights) + 10 * (len(fitted) - 1)), "white")
    pen = ImageDraw.Draw(sheet)
    top = MARGIN
    for (group, images), height in zip(fitted, heights, strict=True):
        pen.rectangle((MARGIN, top + 2, MARGIN + 6, top + LARGE + 4), fill=group.colour)
        pen.text((MARGIN + 14, top), " ".join(group.title.split()), fill=INK, font=large)
        lines = max(len(caption) for caption in group.captions)
        tallest = max(image.height for image in images)
        for i, (image, caption) in enumerate(zip(images, group.captions, strict=True)):
            x = MARGIN + (i % columns) * (cell + GAP)
            y = top + heading + (i // columns) * (tallest + 4 + lines * line + GAP)
            sheet.paste(image, (x + (cell - image.width) // 2, y + tallest - image.height))
            for j, text in enumerate(caption):
                text = _clip(text, cell, small)
                pen.text(
                    (x + (cell - small.getlength(text)) / 2, y + tallest + 4 + j * line),
                    text,
                    fill=INK,
                    font=small,
                )
        top += height + 10
    return sheet


def _even(rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    if len(rows) <= count:
        return rows
    return rows[np.linspace(0, len(rows) - 1, count).round().astype(np.int64)]


def selection_montage(
    read: Callable[[NDArray[np.int64]], Pixels],
    kept: ArrayLike,
    ids: Sequence[object] | NDArray,
    *,
    scores: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    classes: Sequence[str] = (),
    score_name: str = "AUM",
    higher_is: HigherIs = "easier",
    count: int = 20,
    columns: int = 10,
    max_bytes: int = 300_000,
) -> Picture:
    """What a selection kept and dropped: the hardest dropped, a cross-section of the kept, the easiest dropped.

    Without scores, an even cross-section of the kept rows and one of the dropped.

    Args:
        read: (n,) int64 rows to n images, (n, H, W, C) uint8 or PIL images.
        kept: (k,) int rows kept.
        ids: N ids, printed under the images.
        scores: (N,) float, one a sample.
        labels: (N,) int labels or pseudo-labels, negative where unknown.
        classes: names of the labels; without them the number is printed.
        score_name: name of the score.
        higher_is: what a high score means.
        count: images shown of each group.
        columns: images a row.
        max_bytes: limit of the PNG.
    """
    total = len(ids)
    for name, column in (("scores", scores), ("labels", labels)):
        if column is not None and len(np.asarray(column)) != total:
            raise BadInput(f"{name} has {len(np.asarray(column))} entries for {total} ids.")
    values = np.zeros(total) if scores is None else np.asarray(scores, dtype=np.float64)
    parts = regions(values, kept, higher_is=higher_is)
    ease = values if higher_is == "easier" else -values
    by_ease = {name: rows[np.argsort(ease[rows], kind="stable")] for name, rows in parts.items()}
    side = {"easier": ("lowest", "highest"), "harder": ("highest", "lowest")}[higher_is]
    shown: list[tuple[str, str, NDArray[np.int64], str]] = []
    if scores is None:
        shown += [("kept", "a cross-section", _even(parts["kept"], count), KEPT)]
        shown += [("dropped", "a cross-section", _even(parts["between"], count), DROPPED_EASY)]
        sizes = {"kept": len(parts["kept"]), "dropped": len(parts["between"])}
    else:
        shown += [
            ("dropped as too hard", f"{side[0]} {score_name}", by_ease["too hard"][:count], DROPPED_HARD)
        ]
        shown += [("kept", "from hard to easy", _even(by_ease["kept"], count), KEPT)]
        shown += [
            ("dropped in between", "from hard to easy", _even(by_ease["between"], count), DROPPED_BETWEEN)
        ]
        shown += [
            (
                "dropped as too easy",
                f"{side[1]} {score_name}",
                by_ease["too easy"][::-1][:count],
                DROPPED_EASY,
            )
        ]
        sizes = {
            title: len(parts[name])
            for (title, *_), name in zip(shown, ("too hard", "kept", "between", "too easy"), strict=True)
        }
    marks = None if labels is None else np.asarray(labels)
    known = None if scores is None else values
    groups = []
    for title, which, rows, colour in shown:
        if len(rows):
            captions = [_caption(int(row), ids, marks, classes, known, score_name) for row in rows]
            groups.append(
                Group(f"{title}: {len(rows):,} of {sizes[title]:,}, {which}", read(rows), captions, colour)
            )
    alt = "Contact sheet of samples. " + " ".join(f"{group.title}." for group in groups)
    what = ", ".join(
        ["id", *(["label"] if labels is not None else []), *([score_name] if scores is not None else [])]
    )
    return Picture(
        montage(groups, columns=columns, max_bytes=max_bytes),
        alt,
        caption=f"Samples kept and dropped; under each image its {what}.",
    )


def _caption(
    row: int,
    ids: Sequence[object] | NDArray,
    labels: NDArray | None,
    classes: Sequence[str],
    scores: NDArray[np.float64] | None,
    score_name: str,
) -> list[str]:
    lines = [f"id {ids[row]}"]
    whole = scores is not None and bool(
        np.all(scores == np.floor(scores))
    )  # counts, such as forgetting events
    if labels is not None:
        label = int(labels[row])
        lines.append(
            "no label" if label < 0 else str(classes[label]) if label < len(classes) else f"class {label}"
        )
    if scores is not None:
        value = float(scores[row])
        text = f"{value:#.3g}" if abs(value) < 100 and not whole else f"{value:.0f}"
        lines.append(f"{score_name} {text.replace('-', chr(0x2212))}")
    return lines
