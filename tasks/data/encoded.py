"""Images of one's own that are no files in a folder: in a column of Parquet, behind URLs, or none at all."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from winnow.tasks.data.fetch import offline
from winnow.tasks.data.images import Encoded
from winnow.tasks.data.index import blake2b, stat_key, stat_keys
from winnow.tasks.errors import BadInput, MissingData

__all__ = ["NoImages", "TableImages", "UrlImages", "parquet_schema"]


def parquet_schema(path: Path) -> pa.Schema:
    """The schema of a Parquet file, or of a folder of parts.

    Raises:
        BadInput: it cannot be read.
    """
    try:
        return pq.read_schema(path) if path.is_file() else pq.ParquetDataset(path).schema
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"{path} cannot be read: {error}") from error


class TableImages(Encoded):
    """Encoded images in a column of Parquet files: bytes, or Hugging Face's struct of bytes and path.

    The sources are the paths that come with the images, if all have different ones, else the rows' numbers.

    Args:
        path: a file, or a folder of parts.
        column: its name.
        options: of :class:`winnow.tasks.data.images.Encoded`.
    """

    def __init__(self, path: Path, column: str, **options: Any) -> None:
        files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        groups = [
            (str(file), group, metadata.row_group(group).num_rows)
            for file, metadata in ((file, pq.read_metadata(file)) for file in files)
            for group in range(metadata.num_row_groups)
        ]
        self.path, self.column = path, column
        self.groups = [group[:2] for group in groups]
        self.ends = np.cumsum([rows for _, _, rows in groups], dtype=np.int64)
        self.rows = np.arange(sum(rows for _, _, rows in groups))
        super().__init__(self._names() or [str(row) for row in self.rows], **options)

    def _names(self) -> list[str] | None:
        if not pa.types.is_struct(parquet_schema(self.path).field(self.column).type):
            return None
        names = pq.read_table(self.path, columns=[f"{self.column}.path"]).column(0).to_pylist()
        return names if all(names) and len(set(names)) == len(names) else None

    @property
    def place(self) -> str:
        return str(self.path)

    def name_of(self, row: int) -> str:
        return f"row {self.rows[row]} of {self.path}"

    def take(self, rows: np.ndarray) -> TableImages:
        taken = super().take(rows)
        taken.rows = self.rows[rows]
        return taken

    def content(self, row: int) -> bytes:
        at = int(self.rows[row])
        group = int(np.searchsorted(self.ends, at, side="right"))
        column = _row_group(*self.groups[group], self.column)
        value = column[at - int(self.ends[group]) + len(column)].as_py()
        content = value.get("bytes") if isinstance(value, dict) else value
        if content is None:
            raise OSError("there are no bytes, only a path")
        return content

    def identify(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        files = list(dict.fromkeys(file for file, _ in self.groups))
        keys, settled = stat_keys([(file, file) for file in files])
        at = self.rows[rows]
        groups = np.searchsorted(self.ends, at, side="right").tolist()
        owners = [files.index(self.groups[group][0]) for group in groups]
        sums = [
            stat_key(keys[owner].tobytes().hex() + self.column, row, 0)
            for owner, row in zip(owners, at.tolist(), strict=True)
        ]
        return np.frombuffer(b"".join(sums), np.uint8).reshape(-1, 16), settled[owners]


@lru_cache(maxsize=16)  # rows are read by several threads, nearly in order
def _row_group(file: str, group: int, column: str) -> pa.ChunkedArray:
    return pq.ParquetFile(file).read_row_group(group, columns=[column]).column(0)


class UrlImages(Encoded):
    """Images behind URLs that fsspec knows, and beside them files relative to a folder.

    A URL counts as unchanged: to ask for each one's date would take as long as to read it.

    Args:
        urls: one per image.
        folder: of those that are paths.
        download: whether what is not local may be read.
        options: of :class:`winnow.tasks.data.images.Encoded`.
    """

    def __init__(self, urls: Sequence[str], folder: Path, *, download: bool = True, **options: Any) -> None:
        super().__init__(urls, **options)
        self.folder = folder
        near = ("file:", "memory:")
        remote = next((url for url in urls if "://" in url and not url.startswith(near)), None)
        if remote is not None and (reason := offline(download)):
            raise MissingData(
                f"{remote} is not local, and nothing may be fetched: {reason}.",
                remedy="copy the images here and list their paths",
            )

    @property
    def place(self) -> str:
        return f"urls of {self.folder}"

    def name_of(self, row: int) -> str:
        return self.sources[row]

    def content(self, row: int) -> bytes:
        import fsspec

        url = self.sources[row]
        files, path = fsspec.core.url_to_fs(url if "://" in url else str(self.folder / url))
        try:
            return files.cat_file(path)
        except OSError:
            raise
        except Exception as error:  # each protocol's library has exceptions of its own
            raise OSError(f"{type(error).__name__}: {error}") from error

    def identify(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        keys = b"".join(stat_key(self.sources[row], 0, 0) for row in rows)
        remote = np.array(["://" in self.sources[row] for row in rows], bool)
        return np.frombuffer(keys, np.uint8).reshape(-1, 16), remote


class NoImages:
    """Samples that have no images: arrays stand for them."""

    shape = None

    def __init__(self, path: Path, sources: Sequence[str]) -> None:
        self.path, self.sources = path, sources

    def __len__(self) -> int:
        return len(self.sources)

    def take(self, rows: np.ndarray) -> NoImages:
        return NoImages(self.path, [self.sources[row] for row in rows])

    def read(self, rows: Any) -> np.ndarray:
        raise BadInput(
            f"{self.path} holds arrays, no images: nothing can be embedded or trained on.",
            remedy="give embeddings=, scores= or logits=, and a method that needs no more",
        )

    def checksums(self, progress: Any = None) -> np.ndarray:
        """blake2b-128 of each id, uint8 (N, 16)."""
        sums = b"".join(blake2b(source) for source in self.sources)
        return np.frombuffer(sums, np.uint8).reshape(-1, 16)
