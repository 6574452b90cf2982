"""Task of the selection stage: signals in, coreset out."""

from __future__ import annotations

from typing import Any

from tasks.artifacts import Artifact, write
from tasks.cache import cached_task, context
from tasks.data.task import rows_of
from tasks.registry import selectors

__all__ = ["select"]


@cached_task(
    version="1",
    name="select",
    run_name="select-{method}-{fraction}",
    modules=("tasks.select.budget", "tasks.select.signals", *selectors.modules()),
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
        among: a coreset; select from its samples only, the fraction being of these.
    """
    import numpy as np

    from tasks.embed.graph import Graph
    from tasks.hardware import seed_sequence
    from tasks.select.signals import Signals

    ids = samples.numpy("id")
    context().notes |= {"seed": seed}
    signals = Signals(
        n=len(ids),
        ids=ids,
        scores={} if scores is None else {name: scores.numpy(name) for name in scores.arrow_schema().names if name != "id"},
        features=None if embeddings is None else embeddings.numpy("vector"),
        graph=None if graph is None else Graph(graph.numpy("neighbours"), graph.numpy("similarity")),
        labels=None if labels is None else labels.numpy("cluster" if labels.kind == "pseudo_labels" else "label").astype(np.int64),
    )
    rows = np.arange(len(ids))
    if among is not None:
        rows = rows_of(ids, np.sort(among.numpy("id")))
        signals = signals.rows(rows)
    generator = np.random.default_rng(seed_sequence(seed, "select"))
    chosen = selectors.get(method)(signals, float(fraction), generator=generator, balanced=balanced, **(params or {}))
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
        meta={"method": method, "fraction": float(fraction), "of": len(rows)},
    )
