"""Task of the selection stage: signals in, coreset out."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from winnow.tasks.artifacts import Artifact, write
from winnow.tasks.cache import cached_task, context, uncached_task
from winnow.tasks.data.task import labels_of, open_split, rows_of
from winnow.tasks.errors import MissingSignal
from winnow.tasks.registry import selectors

if TYPE_CHECKING:
    from winnow.tasks.select.signals import Signals

__all__ = ["deliver", "explain", "inputs_of", "select", "signals_of"]

log = logging.getLogger("winnow.tasks.select")


def inputs_of(method: str, signals: Mapping[str, Artifact], *, balanced: bool = False) -> dict[str, Any]:
    """Which of these artifacts ``select`` is given: those that the selector needs or uses, no others.

    Raises:
        MissingSignal: something that it needs is not among them.
    """
    entry = selectors.get(method)
    wanted = {*entry.needs, *entry.uses, *(("labels",) if balanced else ())}
    sources = {"features": ("embeddings",), "probabilities": ("logits",), "residuals": ("logits", "labels")}
    names = {source for need in wanted for source in sources.get(need, (need,))}
    missing = {source for need in entry.needs for source in sources.get(need, (need,))} - set(signals)
    if missing:
        raise MissingSignal(f"{method} needs {', '.join(sorted(missing))}, which this run does not make.")
    return {name: signals[name] for name in sorted(names) if name in signals}


@cached_task(
    version="4",
    name="select",
    run_name="select-{method}-{budget}",
    seen_as={"method": lambda method: selectors.get(method).identity},
)
def select(
    samples: Artifact,
    method: str,
    budget: int | float,
    *,
    params: dict[str, Any] | None = None,
    seed: int = 0,
    balanced: bool = False,
    scores: Artifact | None = None,
    embeddings: Artifact | None = None,
    graph: Artifact | None = None,
    labels: Artifact | None = None,
    logits: Artifact | None = None,
    among: Artifact | None = None,
    already: Artifact | None = None,
) -> Artifact:
    """The coreset that a registered selector keeps.

    Args:
        samples: the whole set.
        method: registered selector.
        budget: samples to keep (int), or their share in (0, 1] (float).
        params: of the selector.
        seed: of ties and random picks.
        balanced: split the budget over the classes of ``labels``.
        scores, embeddings, graph: what the selector reads.
        labels: pseudo-labels, or samples loaded with labels.
        logits: of a trained network: probabilities and, with labels, residuals.
        among: a coreset; select only from its samples, a share being one of these.
        already: a coreset that counts as picked before the first pick.
    """
    import numpy as np
    import pyarrow as pa

    from winnow.tasks.hardware import seed_sequence

    ids = samples.numpy("id")
    context().notes |= {"seed": seed}
    signals = signals_of(
        samples, scores=scores, embeddings=embeddings, graph=graph, labels=labels, logits=logits
    )
    rows = np.arange(len(ids))
    if among is not None:
        rows = rows_of(ids, np.sort(among.numpy("id")))
        signals = signals.rows(rows)
    before = None if already is None else rows_of(ids[rows], already.numpy("id"))
    generator = np.random.default_rng(seed_sequence(seed, "select"))
    chosen = selectors.get(method)(
        signals, budget, generator=generator, balanced=balanced, already=before, **(params or {})
    )
    k = len(chosen.indices)
    columns = {
        "id": ids[rows[chosen.indices]],
        "rank": np.arange(k, dtype=np.int32),
        "weight": chosen.weights,
        "label": pa.nulls(k, pa.int32()),
    }
    if chosen.gains is not None:
        columns["gain"] = chosen.gains.astype(np.float64)
    share = float(budget) if isinstance(budget, float) else k / len(rows)
    return write("coreset", columns, facts={"method": method, "fraction": share, "of": len(rows)})


def signals_of(
    samples: Artifact,
    *,
    scores: Artifact | None = None,
    embeddings: Artifact | None = None,
    graph: Artifact | None = None,
    labels: Artifact | None = None,
    logits: Artifact | None = None,
) -> Signals:
    """What a selector is given of these samples; columns are read when they are used."""
    from winnow.tasks.embed.graph import Graph
    from winnow.tasks.score.gradients import residuals_of, softmax
    from winnow.tasks.select.signals import Signals

    ids = samples.numpy("id")
    targets = None if labels is None else labels_of(labels, ids)
    probabilities = None if logits is None else softmax(logits.numpy("logits"))
    return Signals(
        n=len(ids),
        ids=ids,
        scores={}
        if scores is None
        else {name: scores.column(name) for name in scores.arrow_schema().names if name != "id"},
        features=None if embeddings is None else embeddings.column("vector"),
        graph=None if graph is None else Graph(graph.numpy("neighbours"), graph.numpy("similarity")),
        labels=targets,
        probabilities=probabilities,
        residuals=None if probabilities is None or targets is None else residuals_of(probabilities, targets),
    )


@cached_task(
    version="1",
    name="explain",
    run_name="explain-{method}",
    seen_as={"method": lambda method: selectors.get(method).identity},
    modules=("winnow.tasks.select.reasons",),
)
def explain(
    samples: Artifact,
    coreset: Artifact,
    method: str,
    *,
    params: dict[str, Any] | None = None,
    scores: Artifact | None = None,
    embeddings: Artifact | None = None,
    already: Artifact | None = None,
) -> Artifact:
    """Why each sample was kept or dropped, row by row: ``kept``, ``rank``, ``score``, ``near``, ``why``.

    Args:
        samples: the whole set.
        coreset: what was kept.
        method: by which selector.
        params: of the selector.
        scores, embeddings: what it read.
        already: what was there before.
    """
    import numpy as np

    from winnow.tasks.select.reasons import reasons
    from winnow.tasks.select.signals import Selection

    ids = samples.numpy("id")
    names = samples.numpy("source") if "source" in samples.arrow_schema().names else ids.astype(str)
    kept = rows_of(ids, coreset.numpy("id"))
    gains = coreset.numpy("gain") if "gain" in coreset.arrow_schema().names else None
    before = None if already is None else rows_of(ids, already.numpy("id"))
    signals = signals_of(samples, scores=scores, embeddings=embeddings)
    told = reasons(method, signals, Selection.of(kept, gains=gains), list(names), params, before)
    rank = np.full(len(ids), -1, np.int32)
    rank[kept] = np.arange(len(kept), dtype=np.int32)
    score = np.full(len(ids), np.nan)
    score[kept] = np.arange(len(kept), 0, -1) if gains is None else gains
    near = np.where(told.nearest < 0, -1, ids[told.nearest])
    columns = {
        "id": ids,
        "kept": rank >= 0,
        "rank": rank,
        "score": score,
        "near": near,
        "similarity": told.similarity,
        "why": told.why,
    }
    return write("table", columns, facts={"method": method})


@uncached_task(name="deliver", run_name="deliver")
def deliver(
    samples: Artifact,
    coreset: Artifact,
    told: Artifact,
    *,
    output: str | None = None,
    output_format: str | None = None,
    everything: bool = False,
    link: str | None = None,
    link_as: str = "symlink",
    made_from: dict[str, Any] | None = None,
) -> Artifact:
    """Write what was kept where the user wants it: a list with its receipt, links; returns the coreset.

    Args:
        samples: the whole set.
        coreset: what was kept.
        told: from :func:`explain`.
        output: file of the list.
        output_format: one of ``winnow.tasks.lists.FORMATS``; default by the file's suffix.
        everything: also list what was dropped, after what was kept.
        link: folder to link the kept files into.
        link_as: ``symlink``, ``hardlink`` or ``copy``.
        made_from: what the receipt says.
    """
    import json
    from pathlib import Path

    import numpy as np

    from winnow.tasks import lists, runs
    from winnow.tasks.files import atomic

    split = open_split(samples)
    folder = Path(getattr(split.images, "root", "."))
    table = {name: told.numpy(name) for name in ("id", "kept", "rank", "score", "near", "similarity", "why")}
    rank = np.where(table["kept"], table["rank"], np.iinfo(np.int32).max)
    rows = np.argsort(rank, kind="stable")[: samples.rows if everything else coreset.rows]
    sources = None if split.sources is None else list(split.sources)
    place = dict(zip(table["id"].tolist(), range(samples.rows), strict=True))

    def row_of(row: int) -> dict[str, Any]:
        near = int(table["near"][row])
        entry: dict[str, Any] = {"id": int(table["id"][row])} if sources is None else {"path": sources[row]}
        if everything:
            entry["kept"] = bool(table["kept"][row])
        entry["rank"] = int(table["rank"][row]) if table["kept"][row] else None
        score = float(table["score"][row])
        entry["score"] = float(f"{score:.6g}") if np.isfinite(score) else None
        entry["why"] = str(table["why"][row]).partition(": ")[2] or str(table["why"][row])
        if everything and near >= 0:
            entry["near"] = near if sources is None else sources[place[near]]
        for name, values in split.columns.items():
            entry[name] = values[row].item()
        return entry

    notes = dict(coreset.notes)
    if output is not None:
        destination = Path(output).expanduser()
        listed = [row_of(row) for row in rows.tolist()]
        digest = lists.write_list(listed, destination, kind=output_format, folder=str(folder.absolute()))
        receipt = {
            "sha256": digest,
            "rows": len(listed),
            "made_from": {**(made_from or {}), "samples": samples.digest, "coreset": coreset.digest},
        }
        with atomic(lists.receipt_of(destination).absolute()) as temporary:
            temporary.write_text(json.dumps(receipt, indent=1) + "\n", encoding="utf-8")
        notes["output"] = str(destination)
        log.info("%s: %d rows", destination, len(listed))
    if link is not None:
        names = [sources[row] for row in rows[: coreset.rows].tolist()] if sources is not None else []
        added = lists.link_all(names, folder, Path(link).expanduser(), link_as)
        notes["link"] = link
        log.info("%s: %d files, %d of them new", link, len(names), added)
    share = f"{coreset.rows:,} of {samples.rows:,} by {coreset.facts['method']}"
    where = None if output is None else str(Path(output).expanduser().absolute())
    about = str(samples.notes["dataset"]).removeprefix("pool:")
    runs.record(coreset, about, share, output=where, settings=made_from)
    return Artifact(**{**coreset.to_dict(), "notes": notes})
