"""ELFS: label-free coreset selection with proxy training dynamics (Zheng et al., ICLR 2025), on TEMI cluster heads."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from flows import checks, presets
from tasks.artifacts import Artifact
from tasks.data.task import annotate, bring_embeddings, bring_pseudo_labels, load
from tasks.embed.task import checkpoint_digest, embed, knn, normalise
from tasks.hardware import trial_workers
from tasks.report.task import draw, publish
from tasks.score.task import record_dynamics
from tasks.select.task import select
from tasks.train.task import cluster, cluster_kmeans, hold_out, train_on, with_pseudo_labels

__all__ = ["elfs"]

Fraction = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]


SEARCH = (
    "For each value: select and train on the pseudo-labels of 90 % of the samples, judge on those of the other 10 %. "
    "No true label was used."
)

TRIALS: Any = ThreadPoolTaskRunner(max_workers=trial_workers())


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

    Embed the images, link each with its nearest neighbours, train cluster heads on these pairs, take the best head's clusters as
    pseudo-labels, train a proxy network on them and record how it learns each sample. The hardest samples (mostly wrongly clustered) and
    the easiest are pruned; what remains is annotated, trained on with true labels and compared with the baselines.

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
        mis_ratio: Share of hardest samples to drop: a number, one a fraction, or auto (searched without labels). None: preset, else auto.
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
        Zheng et al., ELFS: Label-Free Coreset Selection with Proxy Training Dynamics, ICLR 2025; Adaloglou et al., BMVC 2023 (TEMI).
        Upstream: eltsai/elfs@089444b.

    Differences from upstream:
        Head and epoch of the cluster heads are chosen by training loss (upstream: the epoch by test labels); the kNN graph never contains
        the sample itself; ``score`` is honoured; seeds are set; last and best test accuracy are both reported (upstream: best).
    """
    preset = checks.elfs_preset(
        dataset, fractions=fractions, seeds=seeds, score=score, mis_ratio=mis_ratio, baselines=baselines, device=device, upstream=upstream,
        files=(embeddings, pseudo_labels), embedder=embedder, embedder_options=embedder_options, normalise=normalisation,
        neighbours=neighbours,
        heads={"heads": heads, "epochs": head_epochs, "beta": beta},
        proxy={"network": proxy_network, "epochs": proxy_epochs},
        training={"network": network, "iterations": iterations, "epochs": epochs},
    )  # fmt: skip
    train = load(dataset, "train", options=dataset_options)
    test = load(dataset, "test", labels=True, options=dataset_options)
    classes = checks.elfs_fits(train, preset, clusters, fractions, mis_ratio, clustered=pseudo_labels is None)

    oracle = None
    if pseudo_labels is None:
        if embeddings is not None:
            features = bring_embeddings(train, embeddings)
        else:
            how: dict[str, Any] = {"options": preset.embedder_options, "checkpoint": checkpoint_digest(preset.embedder)}
            features = embed(train, preset.embedder, **how, seed=seed, device=device)
            oracle = embed(test, preset.embedder, **how, learn_from=train, seed=seed, device=device) if upstream else None
        if preset.normalise != "none":
            oracle = oracle and normalise(oracle, preset.normalise, reference=features)
            features = normalise(features, preset.normalise)
        graph = knn(features, preset.neighbours, upstream=upstream, device=device)
        clustered = cluster(
            features, graph, classes, preset.heads, seed=seed, device=device, test=test if upstream else None, test_embeddings=oracle
        )
        labels, kmeans = clustered["pseudo_labels"], cluster_kmeans(features, classes, seed=seed)
    else:
        clustered, kmeans = None, None
        labels = bring_pseudo_labels(train, pseudo_labels)

    recorded = record_dynamics(train, labels, preset.proxy, seed=seed, store_dynamics=store_dynamics, device=device)
    scores = recorded["scores"]

    cuts: dict[float, float] = {}
    searches: dict[float, dict[str, Any]] = {}
    for fraction in fractions:
        known = checks.mis_ratio_of(mis_ratio, preset, fraction)
        if known is None:
            known, searches[fraction] = search_mis_ratio(train, labels, scores, fraction, score, preset, seed, search_seeds, device)
        cuts[fraction] = known

    coresets: dict[tuple[str, float], Artifact] = {}
    trials = []
    for fraction in fractions:
        params = {"score": score, "mis_ratio": cuts[fraction], "upstream": upstream}
        kept = annotate(train, select(train, "elfs", fraction, params=params, seed=seed, scores=scores), f"elfs-{fraction:g}")
        coresets["elfs", fraction] = kept
        for each in seeds:
            trials.append(("elfs", fraction, each, train_on.submit(train, kept, test, preset.training, each, device)))
    for method in baselines:
        for fraction in (1.0,) if method == "full" else fractions:
            for each in seeds:
                redrawn = method == "random"  # for each seed; other baselines select once
                chosen = select(train, method, fraction, params=checks.baseline_params(method, score), seed=each if redrawn else seed,
                                scores=None if method in ("random", "full") else scores)  # fmt: skip
                kept = annotate(train, chosen, f"{method}-{fraction:g}")
                coresets.setdefault((method, fraction), kept)
                trials.append((method, fraction, each, train_on.submit(train, kept, test, preset.training, each, device)))

    settings = checks.settings(preset, embeddings, pseudo_labels, score=score, seed=seed, upstream=upstream)
    drawn = draw(
        f"ELFS on {dataset}" + (" (upstream=True)" if upstream else ""), dataset, train, "elfs",
        trials=[(method, fraction, each, future.result()) for method, fraction, each, future in trials],
        coresets=[(method, fraction, kept) for (method, fraction), kept in coresets.items()],
        scores=scores, score=score, history=recorded["history"], settings=settings, searches=searches,
        params={fraction: {"mis_ratio": cut} for fraction, cut in cuts.items()},
        pseudo_labels=labels, kmeans=kmeans, head_losses=None if clustered is None else clustered["losses"],
    )  # fmt: skip
    return publish(f"elfs-{dataset}", drawn, settings)


def search_mis_ratio(
    train: Artifact,
    labels: Artifact,
    scores: Artifact,
    fraction: float,
    score: str,
    preset: presets.ElfsPreset,
    seed: int,
    seeds: int,
    device: str,
) -> tuple[float, dict[str, Any]]:
    """mis_ratio for one fraction, chosen without true labels: by accuracy on the pseudo-labels of a random hold-out.

    Returns:
        the value, and the search for the report: every value tried with its accuracies.
    """
    held = hold_out(train, labels, share=0.1, seed=seed)
    futures = {}
    for value in preset.grid(fraction):
        chosen = select(train, "elfs", fraction, params={"score": score, "mis_ratio": value}, seed=seed, scores=scores, among=held["rest"])
        kept = with_pseudo_labels(chosen, labels)
        futures[value] = [train_on.submit(train, kept, held["held"], preset.training, seed + each, device) for each in range(seeds)]
    tried = {value: [future.result().meta["last_accuracy"] for future in runs] for value, runs in futures.items()}
    best = max(tried, key=lambda value: sum(tried[value]))  # the first of equals: the smallest cut
    return best, {"name": "mis_ratio", "tried": tried, "chosen": best, "judged_on": "held-out pseudo-labels", "text": SEARCH}
