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
from winnow.tasks.report.canvas import (
    DROPPED_BETWEEN,
    DROPPED_EASY,
    DROPPED_HARD,
    INK,
    KEPT,
    Picture,
    compact_png,
)
from winnow.tasks.report.regions import HigherIs, regions

__all__ = ["Group", "montage", "selection_montage"]

Pixels: TypeAlias = "NDArray[np.uint8] | Sequence[Image.Image]"
TILE, GAP, GROUP_GAP, MARGIN = 96, 8, 10, 12  # pixels
SMALL, LARGE = 14, 19  # font sizes in pixels
# (colours, dithered, scale of a tile), tried in this order until the sheet is small enough
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
        captions: n sequences of lines, each printed under its image.
        colour: of the bar beside the heading.
    """

    title: str
    images: Pixels
    captions: Sequence[Sequence[str]]
    colour: str = INK


@lru_cache(maxsize=8)
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    # matplotlib's own font: the same everywhere, and with more than Latin letters
    properties = font_manager.FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")
    return ImageFont.truetype(font_manager.findfont(properties), size)


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
    channels = images.shape[3] if images.ndim == 4 else 1
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or channels not in (1, 3):
        raise BadInput(
            f"{name} has shape {images.shape} and dtype {images.dtype}, not (n, H, W, 1 or 3) uint8."
        )
    if images.ndim == 4 and channels == 1:
        images = images[..., 0]
    return [Image.fromarray(image).convert("RGB") for image in images]


def _fit(image: Image.Image, tile: int) -> Image.Image:
    """The image within tile × tile: reduced, or enlarged by a whole factor without smoothing."""
    longest = max(image.size)
    if longest > tile:
        width, height = (max(1, round(side * (tile / longest))) for side in image.size)
        return image.resize((width, height), Image.Resampling.LANCZOS)
    factor = tile // longest
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def montage(groups: Sequence[Group], *, columns: int = 10, max_bytes: int = 300_000) -> bytes:
    """A contact sheet: groups of images one below the other, each image with its captions.

    Args:
        groups: what to show, from top to bottom; groups without images are left out.
        columns: images per row.
        max_bytes: limit of the PNG; to meet it, first the palette is reduced, then the tiles.

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
    line, heading = SMALL + 4, LARGE + 16
    blocks, height = [], 2 * MARGIN - GROUP_GAP
    for group, images in drawn:
        tiles = [_fit(image, tile) for image in images]
        tallest = max(image.height for image in tiles)
        row = tallest + 4 + max(len(caption) for caption in group.captions) * line + GAP
        blocks.append((group, tiles, tallest, row))
        height += heading + -(-len(tiles) // columns) * row + GROUP_GAP
    title = round(max(large.getlength(group.title) for group, _ in drawn))
    width = max(2 * MARGIN + columns * (cell + GAP) - GAP, title + 3 * MARGIN + 8)
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    top = MARGIN
    for group, tiles, tallest, row in blocks:
        pen.rectangle((MARGIN, top + 2, MARGIN + 6, top + LARGE + 4), fill=group.colour)
        pen.text((MARGIN + 14, top), " ".join(group.title.split()), fill=INK, font=large)
        for i, (image, caption) in enumerate(zip(tiles, group.captions, strict=True)):
            x = MARGIN + (i % columns) * (cell + GAP)
            y = top + heading + (i // columns) * row
            sheet.paste(image, (x + (cell - image.width) // 2, y + tallest - image.height))
            for j, text in enumerate(caption):
                text = _clip(text, cell, small)
                left = x + (cell - small.getlength(text)) / 2
                pen.text((left, y + tallest + 4 + j * line), text, fill=INK, font=small)
        top += heading + -(-len(tiles) // columns) * row + GROUP_GAP
    return sheet


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
    """What a selection kept and dropped, as a contact sheet.

    From top to bottom: the hardest dropped samples, a cross-section of the kept ones and of those dropped in
    between, the easiest dropped. Without scores: a cross-section of the kept and one of the dropped.

    Args:
        read: (n,) int64 rows to n images, (n, H, W, C) uint8 or PIL images.
        kept: (k,) int rows kept.
        ids: N ids, printed under the images.
        scores: (N,) float.
        labels: (N,) int labels or pseudo-labels, negative where unknown.
        classes: names of the labels; a label without a name is printed as a number.
        score_name: name of the score.
        higher_is: what a high score means.
        count: images shown per group.
        columns: images per row.
        max_bytes: limit of the PNG.

    Raises:
        BadInput: scores or labels of another length than the ids, or what :func:`montage` and
            :func:`winnow.tasks.report.regions.regions` refuse.
    """
    total = len(ids)
    for name, column in (("scores", scores), ("labels", labels)):
        if column is not None and len(np.asarray(column)) != total:
            raise BadInput(f"{name} has {len(np.asarray(column))} entries for {total} ids.")
    values = np.zeros(total) if scores is None else np.asarray(scores, dtype=np.float64)
    parts = regions(values, kept, higher_is=higher_is)
    ease = values if higher_is == "easier" else -values
    parts = {name: rows[np.argsort(ease[rows], kind="stable")] for name, rows in parts.items()}
    section, slope = "a cross-section", "from hard to easy"
    if scores is None:
        shown = [
            ("kept", "kept", section, _spaced(parts["kept"], count), KEPT),
            ("dropped", "between", section, _spaced(parts["between"], count), DROPPED_EASY),
        ]
    else:
        hard, easy = ("lowest", "highest") if higher_is == "easier" else ("highest", "lowest")
        hardest, easiest = parts["too hard"][:count], parts["too easy"][::-1][:count]
        shown = [
            ("dropped as too hard", "too hard", f"{hard} {score_name}", hardest, DROPPED_HARD),
            ("kept", "kept", slope, _spaced(parts["kept"], count), KEPT),
            ("dropped in between", "between", slope, _spaced(parts["between"], count), DROPPED_BETWEEN),
            ("dropped as too easy", "too easy", f"{easy} {score_name}", easiest, DROPPED_EASY),
        ]
    groups = []
    for title, region, which, rows, colour in shown:
        if not len(rows):
            continue
        lines = [[f"id {ids[row]}" for row in rows]]
        if labels is not None:
            lines.append([_label(int(label), classes) for label in np.asarray(labels)[rows]])
        if scores is not None:
            lines.append([f"{score_name} {number}" for number in _numbers(values, rows)])
        heading = f"{title}: {len(rows):,} of {len(parts[region]):,}, {which}"
        groups.append(Group(heading, read(rows), list(zip(*lines, strict=True)), colour))
    shown_with = {"id": ids, "label": labels, score_name: scores}
    printed = ", ".join(name for name, column in shown_with.items() if column is not None)
    return Picture(
        montage(groups, columns=columns, max_bytes=max_bytes),
        f"Contact sheet of samples. {' '.join(f'{group.title}.' for group in groups)}",
        caption=f"Samples kept and dropped; under each image its {printed}.",
    )


def _spaced(rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """At most count of the rows, evenly spaced from the first to the last."""
    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(np.int64)]


def _label(label: int, classes: Sequence[str]) -> str:
    if label < 0:
        return "no label"
    return str(classes[label]) if label < len(classes) else f"class {label}"


def _numbers(values: NDArray[np.float64], rows: NDArray[np.int64]) -> list[str]:
    """The values of these rows as text, without decimals where all values are counts, as for forgetting."""
    counts = bool(np.all(values == np.floor(values)))
    texts = (f"{v:.0f}" if counts or abs(v) >= 100 else f"{v:#.3g}" for v in values[rows].tolist())
    return [text.replace("-", "\u2212") for text in texts]
