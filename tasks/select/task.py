"""Task of the selection stage: signals in, coreset out."""

from __future__ import annotations

import logging
from typing import Any

from winnow.tasks.artifacts import Artifact, write
from winnow.tasks.cache import cached_task, context, uncached_task
from winnow.tasks.data.task import open_split, rows_of
from winnow.tasks.registry import selectors
from winnow.tasks.select.inputs import names_of, signals_of

__all__ = ["deliver", "explain", "select"]

log = logging.getLogger("winnow.tasks.select")

SHOWN = 100  # rows of a choice in Prefect's UI


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
    kept = rows_of(ids, coreset.numpy("id"))
    gains = coreset.numpy("gain") if "gain" in coreset.arrow_schema().names else None
    before = None if already is None else rows_of(ids, already.numpy("id"))
    signals = signals_of(samples, scores=scores, embeddings=embeddings)
    told = reasons(method, signals, Selection.of(kept, gains=gains), names_of(samples), params, before)
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
    choice: dict[str, Any],
    signals: dict[str, Artifact],
    already: Artifact | None = None,
    output: str | None = None,
    output_format: str | None = None,
    everything: bool = False,
    link: str | None = None,
    link_as: str = "symlink",
    settings: dict[str, Any] | None = None,
) -> Artifact:
    """Write what was kept where the user wants it: a list with its receipt, links; returns the coreset.

    Args:
        samples: the whole set.
        coreset: what was kept.
        told: from :func:`explain`.
        choice: ``method``, ``budget``, ``params``, ``seed``, ``balanced`` of the selection.
        signals: what the method read.
        already: what was there before.
        output: file of the list.
        output_format: one of ``winnow.tasks.lists.FORMATS``; default by the file's suffix.
        everything: also list what was dropped, after what was kept.
        link: folder to link the kept files into.
        link_as: ``symlink``, ``hardlink`` or ``copy``.
        settings: the flow's parameters, for the receipt.
    """
    from pathlib import Path

    from prefect.artifacts import create_table_artifact

    from winnow.tasks import lists, runs
    from winnow.tasks.select.receipt import receipt_for, rows_told

    split = open_split(samples)
    folder = Path(getattr(split.images, "root", ".")).absolute()
    rows = rows_told(told, split, everything=everything)
    notes = dict(coreset.notes)
    if output is not None:
        destination = Path(output).expanduser()
        sha256 = lists.write_list(rows, destination, kind=output_format, folder=str(folder))
        receipt = receipt_for(
            sha256, len(rows), samples, coreset, told, choice, signals, already, settings or {}
        )
        receipt.write(destination)
        notes["output"] = str(destination)
        log.info("%s: %d rows", destination, len(rows))
    if link is not None:
        names = [str(row["path"]) for row in rows[: coreset.rows]]
        added = lists.link_all(names, folder, Path(link).expanduser(), link_as)
        notes["link"] = link
        log.info("%s: %d files, %d of them new", link, len(names), added)
    share = f"{coreset.rows:,} of {samples.rows:,} by {choice['method']}"
    where = None if output is None else str(Path(output).expanduser().absolute())
    about = str(samples.notes["dataset"]).removeprefix("pool:")
    runs.record(coreset, about, share, output=where, settings=settings)
    create_table_artifact(
        [{name: value for name, value in row.items() if value is not None} for row in rows[:SHOWN]],
        key=f"choice-{coreset.digest[:8]}",
        description=f"{coreset.rows:,} of {samples.rows:,} samples by {choice['method']}; the first {SHOWN}",
    )
    return Artifact(**{**coreset.to_dict(), "notes": notes})
