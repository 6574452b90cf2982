"""Published files: read from disk if present, else fetched, else named in an error; never half a file."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import logging
import lzma
import os
import shutil
import tarfile
import tempfile
import time
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from winnow.tasks.data.index import file_md5
from winnow.tasks.errors import BadInput, MissingData
from winnow.tasks.files import atomic

__all__ = ["UNVERIFIED", "Published", "fetch", "obtain", "unpack", "verify_digests"]

log = logging.getLogger("winnow.tasks.data")

# how a user accepts files of other content, in Python and in a flow
UNVERIFIED = """verify=False (in a flow: -p 'dataset_options={"verify": false}')"""

_DAMAGED = (EOFError, tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError)
_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".zip", ".gz", ".xz")


@dataclass(frozen=True)
class Published:
    """A file as its authors publish it.

    Attributes:
        urls: addresses, tried in order.
        md5: its published digest.
        size: in bytes, for the log; None if not known beforehand.
        name: file name, default the last part of the first URL.
    """

    urls: tuple[str, ...]
    md5: str | None = None
    size: int | None = None
    name: str = ""

    @property
    def filename(self) -> str:
        return self.name or self.urls[0].rsplit("/", 1)[-1]


def megabytes(size: int | None) -> str:
    """A size in words.

    >>> megabytes(170_498_071), megabytes(None)
    ('170.5 MB', 'size not published')
    """
    return "size not published" if size is None else f"{size / 1e6:,.1f} MB"


def offline(download: bool) -> str:
    """Why nothing may be fetched; empty if fetching is allowed."""
    if not download:
        return "download=False"
    if os.environ.get("WINNOW_OFFLINE", "") not in ("", "0"):
        return "WINNOW_OFFLINE is set"
    return ""


def obtain(
    dataset: str, published: Published, folder: Path, contents: Sequence[str], *, download: bool, verify: bool
) -> None:
    """Make sure that ``contents`` are in ``folder``, from the archive beside them or from the network.

    Args:
        dataset: name for messages.
        published: the file or archive.
        folder: where the file is put, and unpacked.
        contents: files or folders, relative to ``folder``, that the file is or unpacks to.
        download: whether fetching is allowed; ``WINNOW_OFFLINE=1`` forbids it.
        verify: check an archive that the user put there against its published digest.

    Raises:
        MissingData: it is not there and cannot be fetched; names file, folder and URL.
        BadInput: the archive is truncated or not the published one.
    """

    def missing() -> list[str]:
        return [name for name in contents if not (folder / name).exists()]

    if not missing():
        return
    archive = folder / published.filename
    if not archive.exists():
        size = megabytes(published.size)
        reason = offline(download) or fetch(dataset, published.urls, archive, size, published.md5)
        if reason:
            raise _absent(dataset, published, folder, contents, reason)
    elif verify and published.md5 is not None and (md5 := file_md5(archive)) != published.md5:
        raise BadInput(
            f"{dataset}: {archive} ({megabytes(archive.stat().st_size)}) is not the published file "
            f"({megabytes(published.size)}): its md5 is {md5}, not {published.md5}. A cut-off download looks "
            "like this.",
            remedy=f"delete it and run again, or download {published.urls[0]} by hand; {UNVERIFIED} accepts "
            "it as it is",
        )
    if published.filename not in contents:
        log.info("%s: unpacking %s", dataset, archive)
        unpack(archive, folder)
    if missing():
        raise BadInput(
            f"{dataset}: {archive} does not hold {', '.join(missing())}.",
            remedy=f"delete it and fetch {published.urls[0]} again",
        )


def _absent(
    dataset: str, published: Published, folder: Path, contents: Sequence[str], reason: str
) -> MissingData:
    unpacked = "" if published.filename in contents else f" (or unpacked: {', '.join(contents)})"
    return MissingData(
        f"{dataset}: {published.filename} is not in {folder}{unpacked}, and could not be fetched: {reason}.",
        remedy=f"download {' or '.join(published.urls)} where there is a network and put the file into "
        f"{folder}",
    )


def fetch(what: str, urls: Sequence[str], target: Path, size: str, md5: str | None = None) -> str:
    """Announce a file and fetch it, whole or not at all.

    Args:
        what: dataset or embedder, for the log.
        urls: addresses, tried in order.
        target: file to write.
        size: in words, for the log.
        md5: digest it must have.

    Returns:
        why it could not be fetched; empty if it was.
    """
    failures = []
    for url in urls:
        log.info("%s: fetching %s (%s) into %s", what, url, size, target.parent)
        try:
            with atomic(target) as temporary:
                digest = _receive(what, url, temporary)
                if md5 is not None and digest != md5:
                    raise OSError(f"what came has md5 {digest}, not {md5}")
            return ""
        except (OSError, http.client.HTTPException) as error:
            failures.append(f"{url}: {error}")
    return "; ".join(failures)


def _receive(what: str, url: str, file: Path) -> str:
    """Download a URL to a file; returns its md5."""
    digest = hashlib.md5(usedforsecurity=False)
    request = urllib.request.Request(url, headers={"User-Agent": "winnow"})
    with urllib.request.urlopen(request, timeout=60) as response, open(file, "wb") as out:
        total = int(response.headers.get("Content-Length") or 0)
        received, said = 0, time.monotonic()
        while chunk := response.read(1 << 20):
            out.write(chunk)
            digest.update(chunk)
            received += len(chunk)
            if time.monotonic() - said > 10:
                said = time.monotonic()
                log.info("%s: %s of %s", what, megabytes(received), megabytes(total or None))
    if total and received != total:
        raise OSError(f"the connection closed after {received:,} of {total:,} bytes")
    return digest.hexdigest()


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar, zip, gz or xz into ``folder``.

    It is unpacked in a temporary sub-folder and then moved, so that half of it never looks whole.

    Raises:
        BadInput: the archive is truncated, damaged, of another kind, or would write outside the folder.
    """
    name = archive.name.lower()
    if not name.endswith(_SUFFIXES):
        raise BadInput(f"{archive} is not an archive of a kind that can be read: {', '.join(_SUFFIXES)}.")
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=folder) as scratch:
        try:
            if name.endswith(".zip"):
                with zipfile.ZipFile(archive) as bundle:
                    bundle.extractall(scratch)  # drops drives, leading slashes and "..", and makes no links
            elif name.endswith((".tar", ".tar.gz", ".tgz")):
                with tarfile.open(archive) as tar:
                    extract_tar(tar, Path(scratch))
            else:
                opener = gzip.open if name.endswith(".gz") else lzma.open
                with opener(archive, "rb") as packed, open(Path(scratch) / archive.name[:-3], "wb") as out:
                    shutil.copyfileobj(packed, out, 1 << 20)
        except _DAMAGED as error:
            raise damaged(archive, error) from error
        _move_in(Path(scratch), folder)


def plain_members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members of a tar, as long as they are files and folders inside the folder it is unpacked to.

    tarfile's own ``data`` filter lets links through and does not exist before Python 3.11.4; published data
    needs no links.

    Raises:
        tarfile.ExtractError: a link, a device, an absolute path or one with ``..``.
    """
    for member in tar:
        path = PurePosixPath(member.name)
        if not (member.isfile() or member.isdir()):
            raise tarfile.ExtractError(f"member {member.name!r} is neither a file nor a folder")
        if path.is_absolute() or ".." in path.parts:
            raise tarfile.ExtractError(f"member {member.name!r} would be written outside the folder")
        yield member


def extract_tar(tar: tarfile.TarFile, folder: Path) -> None:
    """Extract all members, none of them outside ``folder``.

    Raises:
        tarfile.TarError: the tar is damaged, or holds anything but plain files and folders.
    """
    tar.extraction_filter = getattr(tarfile, "data_filter", None)
    tar.extractall(folder, plain_members(tar))


def damaged(archive: Path, error: BaseException) -> BadInput:
    return BadInput(
        f"{archive} ({megabytes(archive.stat().st_size)}) cannot be unpacked: {type(error).__name__}: "
        f"{error}. A download that was cut off looks like this.",
        remedy="delete it and fetch it again",
    )


def _move_in(source: Path, target: Path) -> None:
    for entry in source.iterdir():
        destination = target / entry.name
        if entry.is_dir() and destination.is_dir():
            _move_in(entry, destination)
        else:
            os.replace(entry, destination)


def verify_digests(dataset: str, folder: Path, published: Mapping[str, str]) -> None:
    """Compare files with their published md5.

    Args:
        dataset: name for messages.
        folder: where the files are.
        published: file name -> md5 in hex.

    Raises:
        BadInput: some differ.
    """
    digests = {name: file_md5(folder / name) for name in published}
    differing = [name for name, md5 in published.items() if digests[name] != md5]
    if differing:
        name = differing[0]
        raise BadInput(
            f"{dataset}: files in {folder} differ from the published ones: {', '.join(differing)} "
            f"({name} has md5 {digests[name]}, not {published[name]}).",
            remedy=f"delete them to fetch the published ones, or pass {UNVERIFIED} to accept them (for "
            "re-made files)",
        )
