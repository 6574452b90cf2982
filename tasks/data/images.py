"""Images read by row: held in an array, or encoded in files and decoded when read."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Sequence
from copy import copy
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from PIL import Image

from winnow.tasks.data.index import StatIndex, blake2b, index_folder, remembered, stat_keys, threaded
from winnow.tasks.errors import BadInput

if TYPE_CHECKING:
    from winnow.tasks.progress import Callback

__all__ = ["ArrayImages", "Encoded", "FileImages", "Images", "decode", "resize_crop", "row_numbers"]

Rows = Sequence[int] | np.ndarray | slice

# Formats that start another program, or whose plug-in only recognises the file.
_NO_IMAGES = {"EPS", "PDF", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}


class Images(Protocol):
    """N images, read by row.

    ``shape`` is (height, width, channels) if it is the same for all images, else None.
    """

    @property
    def shape(self) -> tuple[int, int, int] | None: ...

    def __len__(self) -> int: ...

    def read(self, rows: Rows) -> np.ndarray | list[Image.Image]:
        """uint8 (n, H, W, C) where ``shape`` is set, else a list of RGB images."""
        ...

    def checksums(self, progress: Callback | None = None) -> np.ndarray:
        """blake2b-128 of each image's content, uint8 (N, 16)."""
        ...


def row_numbers(rows: Rows, count: int) -> np.ndarray:
    """Rows as int64 (n,).

    Raises:
        BadInput: a row that is not a whole number in 0 .. count - 1.

    >>> row_numbers(slice(1, None), 3)
    array([1, 2])
    """
    if isinstance(rows, slice):
        return np.arange(count, dtype=np.int64)[rows]
    numbers = np.asarray(rows)
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
        raise BadInput(f"rows must be a list of whole numbers, not {numbers.dtype} of shape {numbers.shape}.")
    numbers = numbers.astype(np.int64)
    outside = np.flatnonzero((numbers < 0) | (numbers >= count))
    if outside.size:
        raise BadInput(
            f"rows[{outside[0]}] = {numbers[outside[0]]}: there are {count} images, rows 0 to {count - 1}."
        )
    return numbers


class ArrayImages:
    """Images of one size, held in an array.

    Args:
        array: uint8 (N, H, W, C), C is 1 or 3; not copied; may be a memory map or a transposed view.

    Raises:
        BadInput: another dtype or shape.

    >>> images = ArrayImages(np.zeros((5, 8, 8, 1), np.uint8))
    >>> images.shape, images.read([0, 4]).shape
    ((8, 8, 1), (2, 8, 8, 1))
    """

    def __init__(self, array: np.ndarray) -> None:
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] not in (1, 3):
            raise BadInput(
                f"array must be uint8 (N, H, W, C) with 1 or 3 channels, not {array.dtype} {array.shape}."
            )
        self.array = array
        height, width, channels = array.shape[1:]
        self.shape: tuple[int, int, int] | None = (height, width, channels)

    def __len__(self) -> int:
        return len(self.array)

    def read(self, rows: Rows) -> np.ndarray:
        """uint8 (n, H, W, C), a copy."""
        return np.ascontiguousarray(self.array[row_numbers(rows, len(self))])

    def checksums(self, progress: Callback | None = None) -> np.ndarray:
        """blake2b-128 of each image's shape and bytes, uint8 (N, 16)."""
        sums = bytearray()
        head = "x".join(map(str, self.array.shape[1:])).encode()
        for start in range(0, len(self), 4096):
            block = np.ascontiguousarray(self.array[start : start + 4096])
            for image in block:
                digest = hashlib.blake2b(head, digest_size=16)
                digest.update(image.data)
                sums += digest.digest()
            if progress is not None:
                progress(start + len(block), len(self), "checksums")
        return np.frombuffer(sums, np.uint8).reshape(-1, 16)


def readable_formats() -> list[str]:
    """Names of the image formats that can be read."""
    Image.init()
    return sorted(set(Image.OPEN) - _NO_IMAGES)


def readable_suffixes() -> set[str]:
    """File name endings of the formats that can be read.

    >>> {".jpg", ".png", ".webp", ".gif"} <= readable_suffixes()
    True
    """
    Image.init()
    formats = set(readable_formats())
    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in formats}


def decode(content: bytes, channels: int = 3) -> Image.Image:
    """The first frame of an encoded image as 8-bit RGB, or grey where ``channels`` is 1.

    16-bit grey keeps its high byte; an alpha channel is dropped and the EXIF orientation ignored, as
    torchvision's and open_clip's loaders do, so that pretrained networks see what they were trained on.

    Raises:
        whatever Pillow raises on a damaged file.
    """
    _ignore_metadata_warnings()
    image: Image.Image = Image.open(io.BytesIO(content), formats=readable_formats())
    image.load()
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point pixels have no 8-bit meaning")
    return image.convert("RGB" if channels == 3 else "L")


@lru_cache(maxsize=1)
def _ignore_metadata_warnings() -> None:
    """Ignore Pillow's warnings from now on: odd metadata is no error, and damaged pixels raise anyway.

    Set once and never restored: with ``warnings.catch_warnings``, several threads at once would restore each
    other's filters and end up ignoring all warnings.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")


def resize_crop(image: Image.Image, size: int) -> Image.Image:
    """Resize the short side to ``size`` (bicubic) and cut out the central square.

    >>> resize_crop(Image.new("RGB", (200, 100)), 32).size
    (32, 32)
    """
    width, height = image.size
    short = min(width, height)
    if short != size:
        image = image.resize((size * width // short, size * height // short), Image.Resampling.BICUBIC)
        width, height = image.size
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


class Encoded:
    """Images kept as encoded bytes (JPEG, PNG, …) and decoded when read.

    Subclasses say where the bytes of a row are.

    Args:
        sources: file or key of each row.
        shape: (H, W, C) if all images have it, else None; an image of another shape is refused when read.
        size: resize the short side to this and cut out the central square, so that ``shape`` becomes (size,
            size, channels).
        channels: 3, or 1 for grey; 1 needs ``shape`` or ``size``.
        cache: folder of the checksum index.
    """

    def __init__(
        self,
        sources: Sequence[str],
        *,
        shape: tuple[int, int, int] | None = None,
        size: int | None = None,
        channels: int = 3,
        cache: Path | None = None,
    ) -> None:
        if channels not in (1, 3):
            raise BadInput(f"channels = {channels!r}: images have 1 (grey) or 3 (RGB) channels.")
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise BadInput(f"size = {size!r}: must be a positive whole number of pixels.")
        if size is not None:
            shape = (size, size, channels)
        self.sources, self.shape, self.size, self.channels, self.cache = sources, shape, size, channels, cache

    def __len__(self) -> int:
        return len(self.sources)

    def name_of(self, row: int) -> str:
        """Name of a row's image in messages."""
        raise NotImplementedError

    def take(self, rows: np.ndarray) -> Self:
        """The same images, these rows only."""
        taken = copy(self)
        taken.sources = [self.sources[row] for row in rows]
        return taken

    def content(self, row: int) -> bytes:
        """The encoded bytes of a row."""
        raise NotImplementedError

    def identify(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Stat keys uint8 (n, 16), and which of them may be remembered, bool (n,)."""
        raise NotImplementedError

    @property
    def place(self) -> str:
        """Where the images are; those of one place share their indices."""
        raise NotImplementedError

    def index(self, kind: str, width: int) -> StatIndex:
        """The index that remembers one kind of fact about these images, ``width`` bytes each."""
        return StatIndex(index_folder(self.cache) / f"{kind}-{blake2b(self.place, size=8).hex()}.npz", width)

    def bytes_of(self, row: int) -> bytes:
        """The encoded bytes of a row.

        Raises:
            BadInput: naming row and file.
        """
        try:
            return self.content(row)
        except OSError as error:
            raise self._unusable(row, "cannot be read", error) from error

    def image(self, row: int) -> Image.Image:
        """The decoded image of a row.

        Raises:
            BadInput: naming row and file.
        """
        image = self._decoded(row)
        if self.size is not None:
            return resize_crop(image, self.size)
        if self.shape is not None and image.size != (self.shape[1], self.shape[0]):
            height, width = self.shape[:2]
            raise BadInput(
                f"image {row} ({self.name_of(row)}) has {image.width} x {image.height} pixels, the others "
                f"{width} x {height}.",
                remedy="remove it, or pass size=<pixels> where the dataset has that option",
            )
        return image

    def _decoded(self, row: int) -> Image.Image:
        content = self.bytes_of(row)
        try:
            return decode(content, self.channels)
        except Exception as error:  # Pillow's plug-ins raise nearly every built-in exception on damaged files
            raise self._unusable(row, "cannot be decoded", error) from error

    def _unusable(self, row: int, what: str, error: Exception) -> BadInput:
        return BadInput(
            f"image {row} ({self.name_of(row)}) {what}: {type(error).__name__}: {error}",
            remedy="mend or remove it, or pass skip_corrupt=True to leave such images out",
        )

    def read(self, rows: Rows) -> np.ndarray | list[Image.Image]:
        """uint8 (n, H, W, C) where ``shape`` is set, else a list of RGB images; decoded on spare cores."""
        numbers = row_numbers(rows, len(self))
        if self.shape is None:
            return threaded(self.image, numbers.tolist())
        pixels = np.empty((len(numbers), *self.shape), np.uint8)

        def put(position: int) -> None:
            pixels[position] = np.asarray(self.image(int(numbers[position]))).reshape(pixels.shape[1:])

        threaded(put, range(len(numbers)))
        return pixels

    @property
    def reading(self) -> str:
        """How the bytes become the image that is read; empty for plain decoding to RGB."""
        plain = self.size is None and self.channels == 3
        return "" if plain else f"size={self.size} channels={self.channels}"

    def checksums(self, progress: Callback | None = None) -> np.ndarray:
        """blake2b-128 of each image's encoded bytes, and of ``reading`` where it is set, uint8 (N, 16).

        Files that have not changed since they were last read are not read again.
        """

        def compute(rows: np.ndarray) -> np.ndarray:
            sums = threaded(lambda row: blake2b(self.bytes_of(row)), rows.tolist())
            return np.frombuffer(b"".join(sums), np.uint8).reshape(-1, 16)

        keys, settled = self.identify(np.arange(len(self)))
        index = self.index("checksums", 16)
        sums = remembered(index, keys, settled, compute, progress=progress, note="checksums")
        if not self.reading:
            return sums
        keyed = b"".join(blake2b(content.tobytes(), key=self.reading.encode()) for content in sums)
        return np.frombuffer(keyed, np.uint8).reshape(-1, 16)

    def common_shape(self) -> tuple[int, int, int] | None:
        """(H, W, channels) if all images have the same size, else None.

        Only headers are read, and the sizes in them remembered.
        """
        if self.size is not None:
            return self.shape
        probe = np.unique(np.linspace(0, len(self) - 1, 256).astype(np.int64))
        if self._common_size(probe) is None:  # a few photographs show that a folder holds many sizes
            return None
        size = self._common_size(np.arange(len(self)))
        return None if size is None else (size[1], size[0], self.channels)

    def _common_size(self, rows: np.ndarray) -> tuple[int, int] | None:
        def compute(chosen: np.ndarray) -> np.ndarray:
            sizes = threaded(self._size_of, rows[chosen].tolist())
            return np.array(sizes, np.uint32).reshape(-1, 2).view(np.uint8)

        sizes = remembered(self.index("sizes", 8), *self.identify(rows), compute).view(np.uint32)
        sizes = sizes[sizes[:, 0] > 0]  # unreadable ones are reported, or skipped, when read
        if not len(sizes) or (sizes != sizes[0]).any():
            return None
        return int(sizes[0, 0]), int(sizes[0, 1])

    def _size_of(self, row: int) -> tuple[int, int]:
        """Width and height in an image's header; (0, 0) if it cannot be read."""
        _ignore_metadata_warnings()
        try:
            with Image.open(io.BytesIO(self.content(row)), formats=readable_formats()) as image:
                return image.size
        except Exception:
            return (0, 0)

    def decodable(self) -> np.ndarray:
        """Which images can be read and decoded, bool (N,); good ones are remembered.

        A bad one is tried again every time: a network file system's hiccup must not cost an image for ever.
        """
        keys, settled = self.identify(np.arange(len(self)))

        def decodes(row: int) -> bool:
            try:
                self._decoded(row)
            except BadInput:
                return False
            return True

        def compute(rows: np.ndarray) -> np.ndarray:
            good = np.array(threaded(decodes, rows.tolist()), bool)
            settled[rows[~good]] = False
            return good.astype(np.uint8)[:, None]

        return remembered(self.index("decodable", 1), keys, settled, compute)[:, 0].astype(bool)


class FileImages(Encoded):
    """Images in files under one folder.

    Args:
        root: the folder.
        paths: file names relative to it, one per image.
        shape, size, channels, cache: as in :class:`Encoded`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("RGB", (40, 30)).save(f"{folder}/a.png")
    ...     FileImages(folder, ["a.png"], size=16, cache=Path(folder)).read([0]).shape
    (1, 16, 16, 3)
    """

    def __init__(self, root: Path | str, paths: Sequence[str], **options: Any) -> None:
        super().__init__(paths, **options)
        self.root = Path(root).absolute()

    @property
    def place(self) -> str:
        return str(self.root)

    def name_of(self, row: int) -> str:
        return os.path.join(self.root, self.sources[row])

    def content(self, row: int) -> bytes:
        with open(self.name_of(row), "rb") as file:
            return file.read()

    def identify(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return stat_keys((self.sources[row], self.name_of(row)) for row in rows)
