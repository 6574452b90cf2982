"""Task of the selection stage: signals in, coreset out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from winnow.tasks.artifacts import Artifact, write
from winnow.tasks.cache import cached_task, context
from winnow.tasks.data.task import labels_of, rows_of
from winnow.tasks.errors import MissingSignal
from winnow.tasks.registry import selectors

__all__ = ["inputs_of", "select"]


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
    version="3",
    name="select",
    run_name="select-{method}-{fraction}",
    seen_as={"method": lambda method: selectors.get(method).identity},
)
def select(
    samples: Artifact,
    method: str,
    fraction: float,
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
) -> Artifact:
    """The coreset that a registered selector keeps.

    Args:
        samples: the whole set.
        method: registered selector.
        fraction: share to keep, in (0, 1].
        params: of the selector.
        seed: of ties and random picks.
        balanced: split the budget over the classes of ``labels``.
        scores, embeddings, graph: what the selector reads.
        labels: pseudo-labels, or samples loaded with labels.
        logits: of a trained network: probabilities and, with labels, residuals.
        among: a coreset; select only from its samples, ``fraction`` being a share of these.
    """
    import numpy as np

    from winnow.tasks.embed.graph import Graph
    from winnow.tasks.hardware import seed_sequence
    from winnow.tasks.score.gradients import residuals_of, softmax
    from winnow.tasks.select.signals import Signals

    ids = samples.numpy("id")
    context().notes |= {"seed": seed}
    targets = None if labels is None else labels_of(labels, ids)
    probabilities = None if logits is None else softmax(logits.numpy("logits"))
    signals = Signals(
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
    rows = np.arange(len(ids))
    if among is not None:
        rows = rows_of(ids, np.sort(among.numpy("id")))
        signals = signals.rows(rows)
    generator = np.random.default_rng(seed_sequence(seed, "select"))
    chosen = selectors.get(method)(
        signals, float(fraction), generator=generator, balanced=balanced, **(params or {})
    )
    k = len(chosen.indices)
    import pyarrow as pa

    return write(
        "coreset",
        {
            "id": ids[rows[chosen.indices]],
            "rank": np.arange(k, dtype=np.int32),
            "weight": chosen.weights,
            "label": pa.nulls(k, pa.int32()),
        },
        facts={"method": method, "fraction": float(fraction), "of": len(rows)},
    )
