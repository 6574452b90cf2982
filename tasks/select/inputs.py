"""Which artifacts a selector reads, and the signals that they make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from winnow.tasks.artifacts import Artifact
from winnow.tasks.data.task import labels_of
from winnow.tasks.errors import MissingSignal
from winnow.tasks.registry import selectors

if TYPE_CHECKING:
    from winnow.tasks.select.signals import Signals

__all__ = ["inputs_of", "names_of", "signals_of"]


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


def names_of(samples: Artifact) -> list[str]:
    """Path or key of each sample; its id where it has none."""
    name = "source" if "source" in samples.arrow_schema().names else "id"
    return [str(value) for value in samples.numpy(name)]
