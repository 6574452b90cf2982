"""D2 Pruning: message passing that balances difficulty and diversity (Maharana et al., ICLR 2024)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from prefect import flow
from pydantic import Field

from winnow.flows import presets
from winnow.flows.experiment import experiment
from winnow.flows.forms import Fraction, Gamma, MisRatio, Neighbours, Positive, Seed, Training, explained
from winnow.flows.trials import TRIALS
from winnow.tasks.artifacts import Artifact

__all__ = ["d2"]


@flow(name="d2", flow_run_name="d2-{dataset}", task_runner=TRIALS)
@explained
def d2(
    dataset: str,
    fractions: tuple[Fraction, ...] = (0.1, 0.2, 0.3, 0.5, 0.7),
    seeds: tuple[Seed, ...] = (0, 1, 2),
    labels: Literal["true", "pseudo"] = "true",
    pseudo_labels: str | None = None,
    embedder: str | None = None,
    embedder_options: dict[str, Any] | None = None,
    embeddings: str | None = None,
    score: str | None = None,
    neighbours: Neighbours | None = None,
    gamma_forward: Annotated[float, Field(ge=0)] = 1.0,
    gamma_reverse: Gamma | None = None,
    mis_ratio: MisRatio | None = None,
    graph_mode: Literal["symmetric", "directed", "per_class"] = "symmetric",
    search_seeds: Positive = 1,
    search_iterations: Positive | None = None,
    baselines: tuple[str, ...] = (
        "random",
        "ccs",
        "aum",
        "forgetting",
        "el2n",
        "moderate",
        "prototypicality",
        "badge",
        "full",
    ),
    proxy: Training | None = None,
    training: Training | None = None,
    dataset_options: dict[str, Any] | None = None,
    device: str = "auto",
    seed: Seed = 0,
    upstream: bool = False,
) -> Artifact:
    """D2 Pruning: message passing that balances difficulty and diversity (Maharana et al., ICLR 2024).

    Train on the whole set: how each sample is learnt gives its difficulty, the trained network its place
    among its neighbours. Each sample takes up its neighbours' difficulty; then, again and again, the highest
    sample is kept and lowers its neighbours.

    Parameters that are None come from the dataset's preset: published values where there are any. What the
    preset lacks is searched.

    Args:
        labels: true, or pseudo: ELFS's pseudo-labels replace true labels; the method becomes label-free.
        embedder: Registered embedder whose features link the samples; None: the trained network's.
        embedder_options: Options of the embedder.
        score: Difficulty of a sample.
        neighbours: k of the graph: a number, one per fraction, or auto (searched). None: preset, else auto.
        gamma_forward: Width of the messages that gather difficulty.
        gamma_reverse: Width of those that lower a kept sample's neighbours: a number, one per fraction, or
            auto. None: preset, else auto.
        graph_mode: symmetric (paper), directed (published ImageNet), per_class (published CIFAR).
        upstream: Replay the published selection: raw scores and distances, features of images that are not
            normalised.

    References:
        Maharana et al., D2 Pruning: Message Passing for Balancing Diversity and Difficulty in Data Pruning,
        ICLR 2024.
        Upstream: d2pruning@bf1ea46.

    Differences from upstream:
        Scores and distances are scaled, so that gamma means the same on every dataset; messages are never
        negative; images are normalised when the trained network embeds them; parameters are searched on a
        tenth of the training set where none are published; seeds are set; last and best test accuracy are
        both reported (upstream: best).
    """
    run = experiment("d2", locals())
    method = run.method(
        fixed=["score", "gamma_forward", "graph_mode"], searched=["neighbours", "gamma_reverse", "mis_ratio"]
    )
    rivals = run.baselines(ccs={"mis_ratio": presets.ccs(dataset)["mis_ratio"]})
    train, test = run.load(method, *rivals)

    pseudo = run.pseudo_labels(train) if labels == "pseudo" else None
    targets = run.true_labels() if pseudo is None else pseudo.labels
    recorded = run.record(train, targets, normalised=not upstream)
    signals = recorded.signals
    if embedder is not None or embeddings is not None:
        signals = {**signals, "embeddings": run.embeddings(train)}
    method, searches = run.search(train, method, signals)
    results = run.trials(train, test, [method, *rivals], signals)
    return run.report("D2 Pruning", train, results, method, recorded, searches, pseudo)
