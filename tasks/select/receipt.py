"""What a list of chosen samples was made from; and, by choosing again, why a sample is not in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from winnow.tasks.artifacts import Artifact
from winnow.tasks.data.task import load, rows_of
from winnow.tasks.errors import BadInput, did_you_mean
from winnow.tasks.files import atomic
from winnow.tasks.hardware import seed_sequence
from winnow.tasks.provenance import artifact_of
from winnow.tasks.registry import selectors
from winnow.tasks.select.inputs import names_of, signals_of

if TYPE_CHECKING:
    from winnow.tasks.data.split import Split

__all__ = ["Receipt", "read_receipt", "receipt_for", "receipt_of", "rows_told", "verify", "why"]


class Receipt(BaseModel):
    """What a list was made from.

    Attributes:
        sha256: of the list.
        rows: in it.
        winnow: version.
        method: the selector, with its version.
        budget, params, seed, balanced: of the selection.
        pool: dataset, split and options, by which the samples are loaded.
        samples, coreset, told: digests of the pool, of the choice and of its reasons.
        signals: digests of what the method read.
        already: digest of what was there before.
        settings: the flow's parameters.
    """

    model_config = ConfigDict(extra="forbid")

    sha256: str
    rows: int
    winnow: str
    method: str
    budget: int | float
    params: dict[str, Any]
    seed: int
    balanced: bool
    pool: dict[str, Any]
    samples: str
    coreset: str
    told: str
    signals: dict[str, str]
    already: str | None
    settings: dict[str, Any]

    def write(self, destination: Path) -> None:
        with atomic(receipt_of(destination).absolute()) as temporary:
            temporary.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")


def receipt_of(destination: Path) -> Path:
    """Where the receipt of a list lies: beside it."""
    return destination.with_name(f"{destination.name}.receipt.json")


def read_receipt(destination: Path) -> Receipt:
    """The receipt of a list.

    Raises:
        BadInput: there is none, or it is damaged.
    """
    file = receipt_of(destination)
    for path in (destination, file):
        if not path.is_file():
            raise BadInput(f"{path}: no such file.", remedy="give the file that `winnow select -o` wrote")
    try:
        return Receipt.model_validate_json(file.read_bytes())
    except ValidationError as error:
        reason = error.errors()[0]
        where = ".".join(map(str, reason["loc"]))
        raise BadInput(f"{file} is not a receipt: {where} {reason['msg']}.", remedy="select again") from error


def verify(destination: Path) -> Iterator[tuple[bool, str]]:
    """Check a list against its receipt, and what it was made from against what there is now.

    Yields:
        whether it is as it was, and a line that says so.

    Raises:
        BadInput: there is no receipt.
    """
    receipt = read_receipt(destination)
    with open(destination, "rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    yield found == receipt.sha256, f"list      {receipt.rows:,} rows, sha256 {receipt.sha256[:16]}"
    identity = selectors.get(receipt.method.partition("/")[0]).identity
    now = "" if identity == receipt.method else f", now {identity}"
    yield not now, f"method    {receipt.method}{now}"
    pool = receipt.pool
    loaded = load.fn(pool["dataset"], pool["split"], labels=bool(pool["labels"]), options=pool["options"])
    now = "" if loaded.digest == receipt.samples else f", now {loaded.rows:,} samples, {loaded.digest[:16]}"
    yield not now, f"pool      {pool['dataset']}, {receipt.samples[:16]}{now}"
    for name, digest in {"coreset": receipt.coreset, **receipt.signals}.items():
        try:
            artifact_of(digest).table([])
        except Exception as error:  # whatever is wrong with it
            yield False, f"{name:<9} {digest[:16]}: {str(error).splitlines()[0]}"
        else:
            yield True, f"{name:<9} {digest[:16]}"


def why(name: str, destination: Path) -> list[str]:
    """Why a sample is in a list or not; for one that is not, at which budget it would be.

    Args:
        name: its path or id.
        destination: the list.

    Raises:
        BadInput: no such sample, no receipt, or what it was made from is not in the store any more.
    """
    receipt = read_receipt(destination)
    samples, coreset, told = (artifact_of(d) for d in (receipt.samples, receipt.coreset, receipt.told))
    names = names_of(samples)
    if name not in names:
        raise BadInput(f"{name} is not among the {len(names):,} samples.{did_you_mean(name, names)}")
    row = names.index(name)
    lines = [f"{name}: {told.numpy('why')[row]}"]
    rank = int(told.numpy("rank")[row])
    if rank >= 0:
        return [*lines, f"pick {rank + 1:,} of {coreset.rows:,} by {receipt.method.partition('/')[0]}"]
    ids = samples.numpy("id")
    near = told.numpy("near")[row]
    if near >= 0:
        at = rows_of(ids, np.array([near]))[0]
        pick = int(told.numpy("rank")[at])
        after = f"at pick {pick + 1:,}" if pick >= 0 else "before the first pick"
        lines.append(f"its nearest, {names[at]} ({told.numpy('similarity')[row]:.2f}), was kept {after}")
    entered = _enters(receipt, samples, coreset, row)
    if entered is not None:
        share = 100 * entered / samples.rows
        lines.append(f"it would enter at pick {entered:,}, a budget of {share:.3g} %")
    return lines


def _enters(receipt: Receipt, samples: Artifact, coreset: Artifact, row: int) -> int | None:
    """At which pick a sample would enter; None if its smaller choices are no part of larger ones."""
    signals = {name: artifact_of(digest) for name, digest in receipt.signals.items()}
    already = None if receipt.already is None else artifact_of(receipt.already)
    of, ids = signals_of(samples, **signals), samples.numpy("id")
    before = None if already is None else rows_of(ids, already.numpy("id"))
    kept = rows_of(ids, coreset.numpy("id"))
    choose = selectors.get(receipt.method.partition("/")[0])
    budget, left = len(kept), len(ids) - (0 if before is None else len(before))
    while budget < left:
        budget = min(2 * budget, left)
        generator = np.random.default_rng(seed_sequence(receipt.seed, "select"))
        how = {"generator": generator, "balanced": receipt.balanced, "already": before}
        try:
            picks = choose(of, budget, **how, **receipt.params).indices
        except BadInput:  # a cut leaves no room for so many
            return None
        if not np.array_equal(picks[: len(kept)], kept):
            return None
        at = np.flatnonzero(picks == row)
        if len(at):
            return int(at[0]) + 1
    return None


def rows_told(told: Artifact, split: Split, *, everything: bool) -> list[dict[str, Any]]:
    """The rows of a list, those kept first, in order: path or id, rank, score, why, the pool's columns."""
    ids, kept, rank, score, near, why = (
        told.numpy(name) for name in ("id", "kept", "rank", "score", "near", "why")
    )
    in_order = np.argsort(np.where(kept, rank, np.iinfo(np.int32).max), kind="stable")
    names: Any = ids.tolist() if split.sources is None else split.sources
    key, place = (
        "id" if split.sources is None else "path",
        {value: row for row, value in enumerate(ids.tolist())},
    )
    rows = []
    for row in in_order[: None if everything else int(kept.sum())].tolist():
        entry: dict[str, Any] = {key: names[row]}
        if everything:
            entry["kept"] = bool(kept[row])
        entry["rank"] = int(rank[row]) if kept[row] else None
        entry["score"] = float(f"{score[row]:.6g}") if np.isfinite(score[row]) else None
        entry["why"] = str(why[row]).removeprefix("kept: ").removeprefix("dropped: ")
        if everything:
            entry["near"] = names[place[int(near[row])]] if near[row] >= 0 else None
        rows.append(entry | {name: values[row].item() for name, values in split.columns.items()})
    return rows


def receipt_for(
    sha256: str,
    rows: int,
    samples: Artifact,
    coreset: Artifact,
    told: Artifact,
    choice: dict[str, Any],
    signals: dict[str, Artifact],
    already: Artifact | None,
    settings: dict[str, Any],
) -> Receipt:
    """The receipt of a list that has just been written."""
    from winnow.tasks.provenance import library_versions

    return Receipt(
        sha256=sha256,
        rows=rows,
        winnow=library_versions().get("winnow", "unknown"),
        method=selectors.get(choice["method"]).identity,
        budget=choice["budget"],
        params=choice["params"],
        seed=choice["seed"],
        balanced=choice["balanced"],
        pool={
            **{name: samples.notes[name] for name in ("dataset", "split", "options")},
            "labels": "label" in samples.arrow_schema().names,
        },
        samples=samples.digest,
        coreset=coreset.digest,
        told=told.digest,
        signals={name: artifact.digest for name, artifact in signals.items()},
        already=None if already is None else already.digest,
        settings=json.loads(json.dumps(settings, default=str)),
    )
