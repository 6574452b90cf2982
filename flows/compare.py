"""Many selection methods side by side, on shared artifacts, with seeds and significance."""

from __future__ import annotations

from typing import Any

from prefect import flow

from winnow.flows import checks, presets
from winnow.flows.steps import TRIALS, Fraction, Positive, Rate, Seed, run_comparison
from winnow.tasks.artifacts import Artifact
from winnow.tasks.data.task import load
from winnow.tasks.registry import selectors
from winnow.tasks.report.task import draw_comparison, publish

__all__ = ["compare"]


@flow(name="compare", flow_run_name="compare-{dataset}", task_runner=TRIALS)
def compare(
    dataset: str,
    methods: tuple[str, ...] | None = None,
    fractions: tuple[Fraction, ...] = (0.1, 0.3, 0.5),
    seeds: tuple[Seed, ...] = (0, 1, 2),
    balanced: bool = False,
    params: dict[str, dict[str, Any]] | None = None,
    proxy_network: str | None = None,
    proxy_epochs: Positive | None = None,
    repeats: Positive = 1,
    pseudo_labels: str | None = None,
    network: str | None = None,
    iterations: Positive | None = None,
    epochs: Positive | None = None,
    lr: Rate | None = None,
    dataset_options: dict[str, Any] | None = None,
    device: str = "auto",
    upstream: bool = False,
) -> Artifact:
    """Compare selection methods on shared artifacts: accuracy, rank, cost, difference from random.

    For each seed a proxy is trained once; every method selects from what it tells; a network is trained on
    every coreset. The seed decides the proxy, the selection and the training, so that the spread is that of
    the whole method.

    Args:
        dataset: Registered dataset, or imagefolder:PATH, webdataset:PATTERN.
        methods: Selectors; selector:score for another score. None: all that are registered, but top, which is
            el2n unless told otherwise.
        fractions: Shares of the samples to keep.
        seeds: Seeds of proxy, selection and training.
        balanced: Give each class its share of every method's budget.
        params: Parameters of selectors by name, for example {"d2": {"neighbours": 10}}; others have their
            preset's or their own defaults.
        proxy_network: Network trained on the whole set.
        proxy_epochs: Its epochs.
        repeats: Trainings of the proxy, per seed, that GraNd is averaged over; its paper has 10. Other
            methods read the first.
        pseudo_labels: Your own pseudo-labels (.parquet, .npy, .npz) for elfs, in place of cluster heads.
        network: Network trained on the coreset.
        iterations: Steps of that training, whatever the coreset's size.
        epochs: Or its epochs.
        lr: Peak learning rate of both trainings.
        dataset_options: Options of the dataset, for example {"verify": false}.
        device: auto, cpu, cuda or cuda:<index>.
        upstream: Replay the published code of every method that has such a mode.
    """
    checks.common(dataset, fractions, seeds, device)
    checks.existing(pseudo_labels)
    base = presets.elfs(dataset)
    proxy = checks.recipe(base.proxy, {"network": proxy_network, "epochs": proxy_epochs, "lr": lr})
    training = checks.recipe(
        base.training, {"network": network, "iterations": iterations, "epochs": epochs, "lr": lr}
    )
    named = [name for name in selectors.names() if name != "top"] if methods is None else methods
    batch = proxy.batch_size if upstream else None
    entrants = checks.entrants(
        named, dataset, fractions, balanced=balanced, params=params or {}, upstream_batch=batch
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
        pseudo_labels=pseudo_labels,
        dataset_options=dataset_options,
        normalised=not upstream,
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
    title = f"Comparison on {dataset}" + (" (upstream=True)" if upstream else "")
    drawn = draw_comparison(
        title,
        dataset,
        train,
        **found,
        params={one.name: dict(one.params) for one in entrants},
        settings=settings,
    )
    return publish(f"compare-{dataset}", drawn, settings)
