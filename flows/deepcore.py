"""DeepCore: any coreset method by name, with the options of the library's command line (Guo, Zhao and Bai, DEXA 2022)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from prefect import flow
from pydantic import Field

from winnow.flows import checks, presets
from winnow.flows.steps import TRIALS, Fraction, Positive, Rate, Seed, Share, run_comparison
from winnow.tasks.artifacts import Artifact
from winnow.tasks.data.task import load
from winnow.tasks.report.task import draw_comparison, publish

__all__ = ["deepcore"]

Decay = Annotated[float, Field(ge=0)]
Optimizer = Literal["sgd", "adam", "adamw"]
Scheduler = Literal["cosine", "step", "multistep", "onecycle", "constant"]


@flow(name="deepcore", flow_run_name="deepcore-{dataset}-{method}", task_runner=TRIALS)
def deepcore(
    dataset: str,
    method: str = "k_center",
    fractions: tuple[Fraction, ...] = (0.1,),
    seeds: tuple[Seed, ...] = (0, 1, 2, 3, 4),
    balanced: bool = True,
    params: dict[str, Any] | None = None,
    baselines: tuple[str, ...] = ("random", "full"),
    network: str | None = None,
    pretrained: bool = False,
    epochs: Positive | None = None,
    iterations: Positive | None = None,
    batch_size: Positive | None = None,
    optimizer: Optimizer | None = None,
    lr: Rate | None = None,
    min_lr: Decay | None = None,
    momentum: Share | None = None,
    weight_decay: Decay | None = None,
    nesterov: bool | None = None,
    scheduler: Scheduler | None = None,
    gamma: Rate | None = None,
    step_size: Positive | None = None,
    test_interval: Positive | None = None,
    selection_network: str | None = None,
    selection_epochs: Positive | None = None,
    selection_batch_size: Positive | None = None,
    selection_optimizer: Optimizer | None = None,
    selection_lr: Rate | None = None,
    selection_momentum: Share | None = None,
    selection_weight_decay: Decay | None = None,
    selection_nesterov: bool | None = None,
    repeats: Positive = 10,
    dataset_options: dict[str, Any] | None = None,
    device: str = "auto",
    upstream: bool = False,
) -> Artifact:
    """Any coreset method by name, with the options of DeepCore's command line (Guo, Zhao and Bai, DEXA 2022).

    For each seed a proxy is trained on the whole set; the method selects from what it tells; a network is
    trained on the coreset and compared with the baselines. The seed decides the proxy, the selection and the
    training.

    What is None comes from the dataset's preset, the published recipe.

    Args:
        dataset: Registered dataset, or imagefolder:PATH, webdataset:PATTERN.
        method: Registered selector; selector:score for another score.
        fractions: Shares of the samples to keep.
        seeds: One experiment each.
        balanced: Give each class its share of the budget.
        params: Parameters of the method, for example {"optimizer": "naive"}.
        baselines: Selectors to compare with.
        network: Network trained on the coreset.
        pretrained: Start both networks from pretrained weights.
        epochs: Of the training on the coreset.
        iterations: Or its steps.
        batch_size: Of that training.
        optimizer: Of that training.
        lr: Its peak learning rate.
        min_lr: Where its cosine ends.
        momentum: Of SGD.
        weight_decay: Of that training.
        nesterov: Of SGD.
        scheduler: Of the learning rate.
        gamma: Factor of the schedulers step and multistep.
        step_size: Epochs (or steps, with iterations) between the steps of the scheduler step.
        test_interval: Epochs (or steps, with iterations) from one test of that training to the next. None:
            800 steps, as others in this library; with upstream 1 epoch.
        selection_network: Network that the method selects with; None: the one that is trained on the coreset.
        selection_epochs: Its epochs on the whole set.
        selection_batch_size: Of that training.
        selection_optimizer: Of that training.
        selection_lr: Its learning rate, which is constant.
        selection_momentum: Of its SGD.
        selection_weight_decay: Of that training.
        selection_nesterov: Of its SGD.
        repeats: Trainings of that network, per seed, that GraNd is averaged over. Other methods read the
            first.
        dataset_options: Options of the dataset, for example {"verify": false}.
        device: auto, cpu, cuda or cuda:<index>.
        upstream: Replay the published code: its selections, a cosine that is an epoch late, a test every
            epoch, Tiny ImageNet at 32 pixels.

    References:
        Guo, Zhao and Bai, DeepCore: A Comprehensive Library for Coreset Selection in Deep Learning, DEXA
        2022.
        Upstream: DeepCore@74ec709.

    Differences from upstream:
        Methods do what their papers say (each page lists its differences); experiments differ in their seed;
        the proxy is trained once a seed for all methods; last and best test accuracy are both reported
        (upstream: best); a run resumes where it was cut off.
    """
    checks.common(dataset, fractions, seeds, device)
    preset = presets.deepcore(dataset, upstream=upstream)
    training = checks.recipe(
        preset.training,
        {
            "network": network,
            "pretrained": pretrained or None,
            "epochs": epochs,
            "iterations": iterations,
            "batch_size": batch_size,
            "optimizer": optimizer,
            "lr": lr,
            "min_lr": min_lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "scheduler": scheduler,
            "gamma": gamma,
            "step_size": step_size,
            "test_interval": test_interval,
            "whole_epochs": upstream or None,
        },
    )
    proxy = checks.recipe(
        preset.proxy,
        {
            "network": selection_network or network,
            "pretrained": pretrained or None,
            "epochs": selection_epochs,
            "batch_size": selection_batch_size,
            "optimizer": selection_optimizer,
            "lr": selection_lr,
            "momentum": selection_momentum,
            "weight_decay": selection_weight_decay,
            "nesterov": selection_nesterov,
        },
    )
    own = {method.partition(":")[0]: params} if params else {}
    batch = proxy.batch_size if upstream else None
    entrants = checks.entrants(
        [method, *baselines], dataset, fractions, balanced=balanced, params=own, upstream_batch=batch
    )

    train = load(dataset, "train", options=dataset_options)
    test = load(dataset, "test", labels=True, options=dataset_options)
    classes = checks.fits(train, {fraction: ({}, {}) for fraction in fractions})
    checks.sizes(train, entrants, fractions)

    found = run_comparison(
        train,
        test,
        entrants,
        classes=classes,
        fractions=fractions,
        seeds=seeds,
        proxy=proxy,
        training=training,
        repeats=repeats,
        dataset_options=dataset_options,
        grand_batch=batch,
        device=device,
    )
    settings = checks.flat(
        proxy=proxy.model_dump(),
        training=training.model_dump(),
        balanced=balanced,
        repeats=repeats,
        upstream=upstream,
    )
    title = f"{method} on {dataset}" + (" (upstream=True)" if upstream else "")
    drawn = draw_comparison(
        title,
        dataset,
        train,
        **found,
        params={one.name: dict(one.params) for one in entrants},
        settings=settings,
    )
    return publish(f"deepcore-{dataset}-{method}", drawn, settings)
