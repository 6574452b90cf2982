"""Images of one's own that are no files in a folder: in a column of Parquet, behind URLs, or none at all."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from winnow.tasks.data.fetch import offline
from winnow.tasks.data.images import Encoded
from winnow.tasks.data.index import StatIndex, index_folder, stat_key, stat_keys
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

    Args:
        path: a file, or a folder of parts.
        column: its name.
        rows: int64 (N,), rows of the table; None: all.
        shape, size, channels, cache: as in :class:`winnow.tasks.data.images.Encoded`.
    """

    def __init__(
        self,
        path: Path,
        column: str,
        *,
        rows: np.ndarray | None = None,
        shape: tuple[int, int, int] | None = None,
        size: int | None = None,
        channels: int = 3,
        cache: Path | None = None,
    ) -> None:
        super().__init__(shape=shape, size=size, channels=channels, cache=cache)
        self.path, self.column = path, column
        files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        self.groups: list[tuple[str, int]] = []
        sizes = []
        for file in files:
            metadata = pq.read_metadata(file)
            self.groups += [(str(file), group) for group in range(metadata.num_row_groups)]
            sizes += [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self.ends = np.cumsum(sizes, dtype=np.int64)
        total = int(self.ends[-1]) if len(self.ends) else 0
        self.table_rows = np.arange(total) if rows is None else rows

    def __len__(self) -> int:
        return len(self.table_rows)

    @cached_property
    def sources(self) -> Sequence[str]:  # type: ignore[override]
        """The path that comes with each image, if all have different ones, else the row's number."""
        if pa.types.is_struct(parquet_schema(self.path).field(self.column).type):
            names = pq.read_table(self.path, columns=[f"{self.column}.path"]).column(0).to_pylist()
            if all(names) and len(set(names)) == len(names):
                return [names[row] for row in self.table_rows]
        return [str(row) for row in self.table_rows]

    def name_of(self, row: int) -> str:
        return f"row {self.table_rows[row]} of {self.path}"

    def take(self, rows: np.ndarray) -> TableImages:
        options: dict[str, Any] = {"shape": self.shape, "size": self.size}
        options |= {"channels": self.channels, "cache": self.cache}
        return TableImages(self.path, self.column, rows=self.table_rows[rows], **options)

    def _cell(self, row: int) -> tuple[bytes | None, str | None]:
        at = int(self.table_rows[row])
        group = int(np.searchsorted(self.ends, at, side="right"))
        column = _row_group(*self.groups[group], self.column)
        value = column[at - int(self.ends[group]) + len(column)].as_py()
        return (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)

    def content(self, row: int) -> bytes:
        content, path = self._cell(row)
        if content is None:
            raise OSError(f"there are no bytes, only the path {path}")
        return content

    def identify(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        files = list(dict.fromkeys(file for file, _ in self.groups))
        keys, settled = stat_keys([(file, file) for file in files])
        number = {file: position for position, file in enumerate(files)}
        at = self.table_rows[rows]
        owner = [number[self.groups[group][0]] for group in np.searchsorted(self.ends, at, side="right")]
        sums = [
            stat_key(keys[o].tobytes().hex() + self.column, int(row), 0)
            for o, row in zip(owner, at, strict=True)
        ]
        return np.frombuffer(b"".join(sums), np.uint8).reshape(-1, 16), settled[owner]

    def index(self, kind: str, width: int) -> StatIndex:
        digest = hashlib.blake2b(str(self.path).encode(), digest_size=8).hexdigest()
        return StatIndex(index_folder(self.cache) / f"{kind}-{digest}.npz", width)


@lru_cache(maxsize=16)  # rows are read by several threads, nearly in order
def _row_group(file: str, group: int, column: str) -> pa.ChunkedArray:
    return pq.ParquetFile(file).read_row_group(group, columns=[column]).column(0)


class UrlImages(Encoded):
    """Images behind URLs that fsspec knows, and beside them files relative to a folder.

    Args:
        urls: one per image.
        folder: of those that are paths.
        download: whether what is not local may be read.
        shape, size, channels, cache: as in :class:`winnow.tasks.data.images.Encoded`.
    """

    def __init__(
        self,
        urls: Sequence[str],
        folder: Path,
        *,
        download: bool = True,
        shape: tuple[int, int, int] | None = None,
        size: int | None = None,
        channels: int = 3,
        cache: Path | None = None,
    ) -> None:
        super().__init__(shape=shape, size=size, channels=channels, cache=cache)
        self.urls, self.folder, self.download = urls, folder, download
        remote = next(
            (url for url in urls if "://" in url and not url.startswith(("file:", "memory:"))), None
        )
        if remote is not None and (reason := offline(download)):
            raise MissingData(
                f"{remote} is not local, and nothing may be fetched: {reason}.",
                remedy="copy the images here and list their paths",
            )

    def __len__(self) -> int:
        return len(self.urls)

    @property
    def sources(self) -> Sequence[str]:
        return self.urls

    def name_of(self, row: int) -> str:
        return self.urls[row]

    def take(self, rows: np.ndarray) -> UrlImages:
        options: dict[str, Any] = {"shape": self.shape, "size": self.size, "channels": self.channels}
        urls = [self.urls[row] for row in rows]
        return UrlImages(urls, self.folder, download=self.download, cache=self.cache, **options)

    def _file(self, row: int) -> tuple[Any, str]:
        import fsspec

        url = self.urls[row]
        return fsspec.core.url_to_fs(url if "://" in url else str(self.folder / url))

    def content(self, row: int) -> bytes:
        files, path = self._file(row)
        try:
            return files.cat_file(path)
        except OSError:
            raise
        except Exception as error:  # each protocol's library has exceptions of its own
            raise OSError(f"{type(error).__name__}: {error}") from error

    def identify(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A URL counts as unchanged: to ask for each one's date would take as long as to read it."""
        keys = [stat_key(self.urls[row], 0, 0) for row in rows]
        remote = np.array(["://" in self.urls[row] for row in rows], bool)
        return np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 16), remote

    def index(self, kind: str, width: int) -> StatIndex:
        digest = hashlib.blake2b(str(self.folder).encode(), digest_size=8).hexdigest()
        return StatIndex(index_folder(self.cache) / f"{kind}-urls-{digest}.npz", width)


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
        sums = b"".join(hashlib.blake2b(s.encode(), digest_size=16).digest() for s in self.sources)
        return np.frombuffer(sums, np.uint8).reshape(-1, 16)
