"""ELFS: label-free coreset selection with proxy training dynamics (Zheng et al., ICLR 2025), on TEMI cluster heads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from prefect import flow
from pydantic import Field

from winnow.flows import checks
from winnow.flows.steps import (
    TRIALS,
    Fraction,
    Method,
    Positive,
    Seed,
    Share,
    parameters,
    pseudo_label,
    run_trials,
)
from winnow.tasks.artifacts import Artifact
from winnow.tasks.data.task import load
from winnow.tasks.errors import BadInput
from winnow.tasks.report.task import draw, publish
from winnow.tasks.score.task import record_dynamics

__all__ = ["elfs"]


@flow(name="elfs", flow_run_name="elfs-{dataset}", task_runner=TRIALS)
def elfs(
    dataset: str,
    fractions: tuple[Fraction, ...] = (0.1, 0.2, 0.3, 0.5, 0.7),
    seeds: tuple[Seed, ...] = (0, 1, 2),
    embedder: str | None = None,
    embedder_options: dict[str, Any] | None = None,
    embeddings: str | None = None,
    pseudo_labels: str | None = None,
    normalisation: Literal["none", "l2", "zscore"] | None = None,
    neighbours: Positive | None = None,
    clusters: Annotated[int, Field(ge=2)] | None = None,
    heads: Positive | None = None,
    head_epochs: Positive | None = None,
    beta: Annotated[float, Field(gt=0, le=1)] | None = None,
    score: str = "aum",
    mis_ratio: Share | Literal["auto"] | dict[Fraction, Share] | None = None,
    search_seeds: Positive = 1,
    baselines: tuple[str, ...] = ("random", "full"),
    proxy_network: str | None = None,
    proxy_epochs: Positive | None = None,
    network: str | None = None,
    iterations: Positive | None = None,
    epochs: Positive | None = None,
    store_dynamics: bool = False,
    dataset_options: dict[str, Any] | None = None,
    device: str = "auto",
    seed: Seed = 0,
    upstream: bool = False,
) -> Artifact:
    """Label-free coreset selection with proxy training dynamics (Zheng et al., ICLR 2025).

    Embed the images, link each with its nearest neighbours, train cluster heads on these pairs, take the best
    head's clusters as pseudo-labels, train a proxy network on them and record how it learns each sample. The
    hardest samples (mostly wrongly clustered) and the easiest are pruned; what remains is annotated, trained
    on with true labels and compared with the baselines.

    What is None comes from the dataset's preset, the published values where there are any.

    Args:
        dataset: Registered dataset, or imagefolder:PATH, webdataset:PATTERN.
        fractions: Shares of the samples to keep.
        seeds: Seeds of the trainings on each coreset, and of the random baseline's draws.
        embedder: Registered embedder.
        embedder_options: Options of the embedder, for example {"size": 128}.
        embeddings: Your own embeddings (.parquet, .npy, .npz) in place of an embedder.
        pseudo_labels: Your own pseudo-labels (.parquet, .npy, .npz) in place of cluster heads.
        normalisation: Of the embeddings.
        neighbours: k of the kNN graph that cluster heads learn from.
        clusters: Number of clusters; None is the number of classes.
        heads: Cluster heads trained side by side.
        head_epochs: Epochs of the cluster heads.
        beta: Exponent of TEMI's loss.
        score: Score of the training dynamics whose two ends are pruned.
        mis_ratio: Share of hardest samples to drop: a number, one a fraction, or auto (searched without
            labels). None: preset, else auto.
        search_seeds: Trainings of each value that the search for mis_ratio tries.
        baselines: Selectors to compare with.
        proxy_network: Network trained on the pseudo-labels.
        proxy_epochs: Its epochs.
        network: Network trained on the coreset.
        iterations: Steps of that training, whatever the coreset's size.
        epochs: Or its epochs.
        store_dynamics: Keep each epoch's dynamics of each sample as an artifact.
        dataset_options: Options of the dataset, for example {"verify": false}.
        device: auto, cpu, cuda or cuda:<index>.
        seed: Seed of embedding, clustering, dynamics and selection.
        upstream: Replay the published code, its choice of the epoch by test labels included.

    References:
        Zheng et al., ELFS: Label-Free Coreset Selection with Proxy Training Dynamics, ICLR 2025; Adaloglou et
        al., BMVC 2023 (TEMI).
        Upstream: eltsai/elfs@089444b.

    Differences from upstream:
        Head and epoch of the cluster heads are chosen by training loss (upstream: the epoch by test labels);
        the kNN graph never contains the sample itself; ``score`` is honoured; seeds are set; last and best
        test accuracy are both reported (upstream: best).
    """
    checks.common(dataset, fractions, seeds, device)
    checks.score_is_recorded(score, final_pass=False)
    checks.existing(embeddings, pseudo_labels)
    if upstream and (embeddings is not None or pseudo_labels is not None):
        raise BadInput(
            "upstream=True chooses the epoch on embedded test images; your own embeddings or pseudo-labels "
            "leave it none."
        )
    preset = checks.elfs_preset(
        dataset,
        embedder=embedder,
        embedder_options=embedder_options,
        normalise=normalisation,
        neighbours=neighbours,
        heads={"heads": heads, "epochs": head_epochs, "beta": beta},
        proxy={"network": proxy_network, "epochs": proxy_epochs},
        training={"network": network, "iterations": iterations, "epochs": epochs},
    )
    rivals = checks.baselines(
        baselines, score, {"scores", "labels"}, method="elfs", fractions=fractions, recorded=False
    )
    plan = checks.plan(
        fractions,
        {"score": score, "upstream": upstream},
        {"mis_ratio": mis_ratio},
        {fraction: {"mis_ratio": value} for fraction, value in preset.mis_ratio.items()},
        {fraction: {"mis_ratio": preset.grid(fraction)} for fraction in fractions},
    )

    train = load(dataset, "train", options=dataset_options)
    test = load(dataset, "test", labels=True, options=dataset_options)
    graph_neighbours = preset.neighbours if pseudo_labels is None else None
    classes = checks.fits(train, plan, clusters=clusters, graph_neighbours=graph_neighbours)

    pseudo = pseudo_label(
        train,
        classes,
        preset,
        embeddings=embeddings,
        pseudo_labels=pseudo_labels,
        test=test if upstream else None,
        seed=seed,
        device=device,
    )
    recorded = record_dynamics(
        train, pseudo.labels, preset.proxy, seed=seed, store_dynamics=store_dynamics, device=device
    )
    signals = {"labels": pseudo.labels, "scores": recorded["scores"]}

    params, searches = parameters(
        train, signals, "elfs", plan, preset.training, seed=seed, seeds=search_seeds, device=device
    )
    methods = [Method("elfs", "elfs", params), *rivals]
    trials = run_trials(
        train,
        test,
        methods,
        signals,
        fractions=fractions,
        seeds=seeds,
        recipe=preset.training,
        seed=seed,
        device=device,
    )

    embedding = ("embedder", "embedder_options")
    settings = checks.settings(
        preset,
        without=(*embedding, "normalise", "neighbours", "heads")
        if pseudo_labels
        else embedding
        if embeddings
        else (),
        embeddings=embeddings and Path(embeddings).name,
        pseudo_labels=pseudo_labels and Path(pseudo_labels).name,
        score=score,
        seed=seed,
        upstream=upstream,
    )
    drawn = draw(
        f"ELFS on {dataset}" + (" (upstream=True)" if upstream else ""),
        dataset,
        train,
        "elfs",
        **trials.results(),
        scores=recorded["scores"],
        score=score,
        history=recorded["history"],
        params=params,
        settings=settings,
        searches=searches,
        pseudo_labels=pseudo.labels,
        kmeans=pseudo.kmeans,
        head_losses=pseudo.head_losses,
    )
    return publish(f"elfs-{dataset}", drawn, settings)
