"""Upkeep of a store: check what it holds, delete what nothing refers to."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from winnow.tasks import provenance, records
from winnow.tasks.artifacts import Artifact
from winnow.tasks.errors import ArtifactCorrupt
from winnow.tasks.store import Damaged, store

__all__ = ["collect_garbage", "outdated", "verify"]

RECENT = 3600.0  # seconds in which a running flow may have written what nothing refers to yet


def outdated() -> tuple[str, str]:
    """What the store holds from an earlier version of Winnow, and what to do about it; empty if nothing."""
    count = len(records.outdated())
    if not count:
        return "", ""
    what = f"{count:,} {'result' if count == 1 else 'results'} of an earlier version of Winnow"
    return (
        f"{store().uri} holds {what}, in a format that this one does not read; what is needed is made anew.",
        "`winnow cache gc` deletes them; to keep them for that version, set WINNOW_STORE elsewhere",
    )


def verify(*, delete: bool = False) -> tuple[int, dict[str, str]]:
    """Check every artifact against its digest, every record, and that what they name exists.

    Records of an earlier version are skipped.

    Args:
        delete: remove what is damaged, so that the next run makes it anew.

    Returns:
        number of sound files, and the damaged or missing ones with what is wrong.
    """
    recorded = {Path(name).stem for name in store().names("records") if name.endswith(".json")}
    faults = {name: _object_fault(name) for name in store().names("objects")}
    faults |= {records.name_of(key): _record_fault(key) for key in sorted(recorded)}
    bad = {name: fault for name, fault in faults.items() if fault}
    good = len(faults) - len(bad)
    for step in provenance.steps():
        if step["version"] != provenance.UNCACHED and step["key"] not in recorded:
            bad[records.name_of(step["key"])] = "it is missing"
    if delete:
        for name in bad:
            store().delete(name)
            if name.startswith("records/"):
                store().delete(name.replace("records/", "provenance/", 1))
    return good, bad


def _object_fault(name: str) -> str | None:
    digest = Path(name).stem
    try:
        with store().open(name) as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                return "its content is not what its digest says"
        if name.endswith(".json"):
            for part in Artifact.load(digest).parts:
                if store().size(part.name) is None:
                    return f"its part {part.digest[:12]} is missing"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    except ArtifactCorrupt as error:
        return error.what
    return None


def _record_fault(key: str) -> str | None:
    try:
        result = records.parsed(store().read(records.name_of(key)), key)
    except FileNotFoundError:
        return "it is in another format"
    except (records.Unusable, Damaged) as error:
        return str(error)
    for artifact in records.artifacts_in(result):
        if store().size(artifact.name) is None:
            return f"its artifact {artifact.digest[:12]} is missing"
    return None


def collect_garbage(*, older_than_days: int | None = None, dry_run: bool = False) -> tuple[list[str], int]:
    """Delete what nothing refers to: artifacts of no computation, record or report, leftovers of killed runs.

    Args:
        older_than_days: also forget computations that finished longer ago, and what only they refer to.
        dry_run: only say what would go.

    Returns:
        names of what went, and the total of their bytes.
    """
    gone, kept = _forgotten(None if older_than_days is None else time.time() - 86_400 * older_than_days)
    recent = time.time() - RECENT
    objects, made = store().names("objects"), store().names("made")
    gone += [name for name in objects if name not in kept and store().modified(name) < recent]
    gone += [name for name in made if _manifest_of(Path(name).stem) not in kept]
    sizes = {name: size for name in gone if (size := store().size(name)) is not None}
    if not dry_run:
        for name in sizes:
            store().delete(name)
    names, nbytes = list(sizes), sum(sizes.values())
    root = store().local_root
    for file in _leftovers(root, recent):
        names.append(str(file.relative_to(root)))
        nbytes += file.stat().st_size
        if not dry_run:
            file.unlink(missing_ok=True)
    return names, nbytes


def _forgotten(limit: float | None) -> tuple[list[str], set[str]]:
    """Records and provenance to delete, and the objects that the rest refer to."""
    gone = records.outdated()
    digests: set[str] = set()
    for name in store().names("provenance"):
        key = Path(name).stem
        step = provenance.step(key)
        if step is None or (limit is not None and _finished(step) < limit):
            gone += [name, records.name_of(key)]
        else:
            digests.update(provenance.digests_in(step["inputs"]))
            digests.update(output["digest"] for output in step["outputs"])
    for name in store().names("records"):
        if name in gone:
            continue
        if limit is not None and store().modified(name) < limit:
            gone.append(name)
            continue
        try:
            result = records.parsed(store().read(name), Path(name).stem)
        except (records.Unusable, Damaged):
            gone.append(name)
            continue
        digests.update(artifact.digest for artifact in records.artifacts_in(result))
    digests |= {Path(name).stem for name in store().names("results")}
    kept = set()
    for digest in digests:
        name = _manifest_of(digest)
        if store().size(name) is not None:
            with contextlib.suppress(ArtifactCorrupt):
                kept |= {name, *(part.name for part in Artifact.load(digest).parts)}
    return gone, kept


def _manifest_of(digest: str) -> str:
    return f"objects/{digest[:2]}/{digest}.json"


def _finished(step: provenance.Step) -> float:
    return datetime.fromisoformat(step["finished"]).timestamp()


def _leftovers(root: Path, before: float) -> Iterator[Path]:
    """Temporary files of killed writes, and checkpoints of tasks that now have a record."""
    for file in root.rglob(".tmp-*"):
        if file.is_file() and file.stat().st_mtime < before:
            yield file
    for folder in (root / "partial").glob("*"):
        if (root / records.name_of(folder.name)).exists():
            yield from (file for file in folder.rglob("*") if file.is_file())
