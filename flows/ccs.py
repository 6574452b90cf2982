"""CCS: coverage-centric coreset selection (Zheng et al., ICLR 2023)."""

from __future__ import annotations

from typing import Any, Literal

from prefect import flow

from winnow.flows import checks, presets
from winnow.flows.steps import TRIALS, Fraction, Method, Positive, Seed, Share, parameters, record, run_trials
from winnow.tasks.artifacts import Artifact
from winnow.tasks.data.task import load
from winnow.tasks.report.task import draw, publish

__all__ = ["ccs"]


@flow(name="ccs", flow_run_name="ccs-{dataset}", task_runner=TRIALS)
def ccs(
    dataset: str,
    fractions: tuple[Fraction, ...] = (0.1, 0.2, 0.3, 0.5, 0.7),
    seeds: tuple[Seed, ...] = (0, 1, 2),
    labels: Literal["true", "pseudo"] = "true",
    pseudo_labels: str | None = None,
    score: str | None = None,
    mis_ratio: Share | Literal["auto"] | dict[Fraction, Share] | None = None,
    strata: Positive = 50,
    balanced: bool = False,
    search_seeds: Positive = 1,
    search_iterations: Positive | None = None,
    baselines: tuple[str, ...] = ("random", "aum", "forgetting", "el2n", "top:final_entropy", "full"),
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
    """Coverage-centric coreset selection (Zheng et al., ICLR 2023).

    Train on the whole set and record how each sample is learnt; drop the hardest, which are mostly
    mislabelled; cut the range of the score into strata of equal width and give each the same budget; train on
    what is drawn and compare with the baselines.

    What is None comes from the dataset's preset, the published values where there are any.

    Args:
        dataset: Registered dataset, or imagefolder:PATH, webdataset:PATTERN.
        fractions: Shares of the samples to keep.
        seeds: Seeds of the trainings on each coreset, and of the random baseline's draws.
        labels: true, or pseudo: ELFS's pseudo-labels stand in for them, and the method becomes label-free.
        pseudo_labels: Your own pseudo-labels (.parquet, .npy, .npz) in place of cluster heads; with
            labels=pseudo.
        score: Score that is cut into strata.
        mis_ratio: Share of hardest samples (by AUM) to drop: a number, one a fraction, or auto (searched).
            None: preset, else auto.
        strata: Number of strata.
        balanced: Give each class its share of the budget.
        search_seeds: Trainings of each value that the search tries.
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
        upstream: Replay the published code: images not normalised in the final pass, upper edge of the strata
            as published.

    References:
        Zheng et al., Coverage-centric Coreset Selection for High Pruning Rates, ICLR 2023.
        Upstream: Coverage-centric-coreset-selection@b37f166.

    Differences from upstream:
        Images are normalised when the trained network scores them; no sample falls out of the strata; a
        fraction and a mis_ratio that do not fit together are refused; mis_ratio is searched on a tenth of the
        training set (upstream: on the test set); balanced honours every class's size; seeds are set; last and
        best test accuracy are both reported (upstream: best).
    """
    checks.common(dataset, fractions, seeds, device)
    checks.pseudo_labels_are_wanted(pseudo_labels, labels)
    preset = checks.selection_preset(
        presets.ccs(dataset),
        score=score,
        proxy={"network": proxy_network, "epochs": proxy_epochs},
        training={"network": network, "iterations": iterations, "epochs": epochs},
    )
    rivals = checks.baselines(baselines, preset.score, checks.EVERYTHING, method="ccs", fractions=fractions)
    plan = checks.plan(
        fractions,
        {"score": preset.score, "strata": strata, "upstream": upstream},
        {"mis_ratio": mis_ratio},
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
    trial_recipe = checks.shortened(preset.training, search_iterations)
    params, searches = parameters(
        train, recorded.signals, "ccs", plan, trial_recipe, seed=seed, seeds=search_seeds, device=device
    )
    methods = [Method("ccs", "ccs", params, balanced), *rivals]
    trials = run_trials(
        train,
        test,
        methods,
        recorded.signals,
        fractions=fractions,
        seeds=seeds,
        recipe=preset.training,
        seed=seed,
        device=device,
    )

    settings = checks.settings(
        preset, labels=labels, strata=strata, balanced=balanced, seed=seed, upstream=upstream
    )
    title = (
        f"CCS on {dataset}"
        + (", without labels" if labels == "pseudo" else "")
        + (" (upstream=True)" if upstream else "")
    )
    drawn = draw(
        title,
        dataset,
        train,
        "ccs",
        **trials.results(),
        scores=recorded.signals["scores"],
        score=preset.score,
        history=recorded.history,
        params=params,
        settings=settings,
        searches=searches,
        **recorded.pseudo_report(),
    )
    return publish(f"ccs-{dataset}", drawn, settings)
