"""D2 Pruning: message passing that balances difficulty and diversity (Maharana et al., ICLR 2024)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from prefect import flow
from pydantic import Field

from winnow.flows import checks, presets
from winnow.flows.steps import TRIALS, Fraction, Method, Positive, Seed, Share, parameters, record, run_trials
from winnow.tasks.artifacts import Artifact
from winnow.tasks.data.task import bring_embeddings, load
from winnow.tasks.embed.task import checkpoint_digest, embed
from winnow.tasks.report.task import draw, publish

__all__ = ["d2"]

Gamma = Annotated[float, Field(ge=0)]


@flow(name="d2", flow_run_name="d2-{dataset}", task_runner=TRIALS)
def d2(
    dataset: str,
    fractions: tuple[Fraction, ...] = (0.1, 0.2, 0.3, 0.5, 0.7),
    seeds: tuple[Seed, ...] = (0, 1, 2),
    labels: Literal["true", "pseudo"] = "true",
    pseudo_labels: str | None = None,
    embedder: str | None = None,
    embeddings: str | None = None,
    score: str | None = None,
    neighbours: Positive | Literal["auto"] | dict[Fraction, Positive] | None = None,
    gamma_forward: Gamma = 1.0,
    gamma_reverse: Gamma | Literal["auto"] | dict[Fraction, Gamma] | None = None,
    mis_ratio: Share | Literal["auto"] | dict[Fraction, Share] | None = None,
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
    proxy_network: str | None = None,
    proxy_epochs: Positive | None = None,
    network: str | None = None,
    iterations: Positive | None = None,
    epochs: Positive | None = None,
    dataset_options: dict[str, Any] | None = None,
    device: str = "auto",
    seed: Seed = 0,
    upstream: bool = False,
) -> Artifact:
    """D2 Pruning: message passing that balances difficulty and diversity (Maharana et al., ICLR 2024).

    Train on the whole set: how each sample is learnt gives its difficulty, the trained network its place
    among its neighbours. Each sample takes up its neighbours' difficulty; then the highest is kept, again and
    again, and what is kept lowers its neighbours.

    What is None comes from the dataset's preset, the published values where there are any; what that does not
    have is searched.

    Args:
        dataset: Registered dataset, or imagefolder:PATH, webdataset:PATTERN.
        fractions: Shares of the samples to keep.
        seeds: Seeds of the trainings on each coreset, and of the random baseline's draws.
        labels: true, or pseudo: ELFS's pseudo-labels stand in for them, and the method becomes label-free.
        pseudo_labels: Your own pseudo-labels (.parquet, .npy, .npz) in place of cluster heads; with
            labels=pseudo.
        embedder: Registered embedder whose features link the samples; None: the trained network's.
        embeddings: Your own embeddings (.parquet, .npy, .npz) in place of an embedder.
        score: Difficulty of a sample.
        neighbours: k of the graph: a number, one a fraction, or auto (searched). None: preset, else auto.
        gamma_forward: Width of the messages that gather difficulty.
        gamma_reverse: Width of those that lower a kept sample's neighbours: a number, one a fraction, or
            auto. None: preset, else auto.
        mis_ratio: Share of hardest samples (by AUM) to drop: a number, one a fraction, or auto. None: preset,
            else auto.
        graph_mode: symmetric (paper), directed (published ImageNet), per_class (published CIFAR).
        search_seeds: Trainings of each setting that the search tries.
        search_iterations: Steps of each of these trainings; None: as long as those on the coresets.
        baselines: Selectors to compare with; selector:score for another score.
        proxy_network: Network trained on the whole set.
        proxy_epochs: Its epochs.
        network: Network trained on the coreset.
        iterations: Steps of that training, whatever the coreset's size.
        epochs: Or its epochs.
        dataset_options: Options of the dataset, for example {"verify": false}.
        device: auto, cpu, cuda or cuda:<index>.
        seed: Seed of the proxy and of selection.
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
    checks.common(dataset, fractions, seeds, device)
    checks.pseudo_labels_are_wanted(pseudo_labels, labels)
    checks.existing(embeddings)
    checks.embedder_exists(embedder, embeddings)
    preset = checks.selection_preset(
        presets.d2(dataset),
        score=score,
        proxy={"network": proxy_network, "epochs": proxy_epochs},
        training={"network": network, "iterations": iterations, "epochs": epochs},
    )
    rivals = checks.baselines(
        baselines,
        preset.score,
        checks.EVERYTHING,
        method="d2",
        fractions=fractions,
        params={"ccs": presets.ccs(dataset).params},
    )
    plan = checks.plan(
        fractions,
        {
            "score": preset.score,
            "gamma_forward": gamma_forward,
            "graph_mode": graph_mode,
            "upstream": upstream,
        },
        {"neighbours": neighbours, "gamma_reverse": gamma_reverse, "mis_ratio": mis_ratio},
        preset.params,
        dict.fromkeys(fractions, preset.grid),
    )

    train = load(dataset, "train", options=dataset_options)
    test = load(dataset, "test", labels=True, options=dataset_options)
    classes = checks.fits(train, plan)

    recorded = record(
        train,
        preset.proxy,
        labels,
        classes,
        pseudo_labels=pseudo_labels,
        dataset_options=dataset_options,
        normalised=not upstream,
        seed=seed,
        device=device,
    )
    signals = recorded.signals
    if embeddings is not None:
        signals = {**signals, "embeddings": bring_embeddings(train, embeddings)}
    elif embedder is not None:
        signals = {
            **signals,
            "embeddings": embed(
                train, embedder, checkpoint=checkpoint_digest(embedder), seed=seed, device=device
            ),
        }
    trial_recipe = checks.shortened(preset.training, search_iterations)
    params, searches = parameters(
        train, signals, "d2", plan, trial_recipe, seed=seed, seeds=search_seeds, device=device
    )
    methods = [Method("d2", "d2", params), *rivals]
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

    settings = checks.settings(
        preset,
        labels=labels,
        features=embedder or (embeddings and Path(embeddings).name) or "the proxy's",
        gamma_forward=gamma_forward,
        graph_mode=graph_mode,
        seed=seed,
        upstream=upstream,
    )
    title = (
        f"D2 Pruning on {dataset}"
        + (", without labels" if labels == "pseudo" else "")
        + (" (upstream=True)" if upstream else "")
    )
    drawn = draw(
        title,
        dataset,
        train,
        "d2",
        **trials.results(),
        scores=signals["scores"],
        score=preset.score,
        history=recorded.history,
        params=params,
        settings=settings,
        searches=searches,
        **recorded.pseudo_report(),
    )
    return publish(f"d2-{dataset}", drawn, settings)
