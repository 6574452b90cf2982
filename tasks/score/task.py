"""Tasks of the scoring stage: train a proxy and record how it learns each sample; scores that take another pass, or several proxies."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from winnow.tasks.artifacts import Artifact, ArtifactWriter, write
from winnow.tasks.cache import cached_task, context
from winnow.tasks.data.task import labels_of, open_split
from winnow.tasks.progress import progress
from winnow.tasks.train.recipe import Recipe
from winnow.tasks.train.task import TRAINING, history_columns, trained_by, write_network

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np
    import torch
    from torch import nn

    from winnow.tasks.data.split import Split
    from winnow.tasks.train.loop import Trained

__all__ = ["PASSES", "add_score", "average_score", "record_dynamics"]

PASSES = ("deepfool", "grand_full")  # scores that a training does not give: they take a pass of their own

log = logging.getLogger("winnow.tasks.score")


@cached_task(
    version="4",
    name="dynamics",
    run_name="dynamics",
    ignore=("device",),
    seen_as={"recipe": trained_by},
    modules=("winnow.tasks.score.dynamics", "winnow.tasks.score.gradients", *TRAINING),
)
def record_dynamics(
    samples: Artifact,
    labels: Artifact,
    recipe: Recipe,
    *,
    seed: int = 0,
    store_dynamics: bool = False,
    final_pass: bool = False,
    normalised: bool = True,
    grand_batch: int | None = None,
    device: str = "auto",
) -> dict[str, Artifact]:
    """Train a proxy network on (pseudo-)labels and score every sample by its training dynamics.

    Args:
        samples: all of them are trained on.
        labels: pseudo-labels, or samples loaded with labels.
        recipe: of the proxy's training.
        seed: of the proxy.
        store_dynamics: also keep each epoch's margin, loss, correctness, EL2N and entropy of each sample.
        final_pass: also pass all images, not augmented, through the trained network: scores of that pass,
            GraNd, features, logits.
        normalised: whether that pass normalises images as the training does; the published CCS and D2 do not.
        grand_batch: divide GraNd by the size of each sample's batch of so many, as the published DeepCore
            does.
        device: where.

    Returns:
        ``scores``, ``history``; ``dynamics`` if stored; ``features`` (penultimate), ``logits`` and
        ``network`` of the final pass.
    """
    import numpy as np

    from winnow.tasks.hardware import describe, leased_device
    from winnow.tasks.score.dynamics import DynamicsAccumulator
    from winnow.tasks.train.loop import train as run_training

    split = open_split(samples)
    targets = labels_of(labels, split.ids)
    classes = labels.facts["classes"]
    with leased_device(device) as where, progress(f"dynamics of {recipe.network}") as tell:
        context().notes |= {"device": describe(where), "seed": seed}
        log.info(
            "dynamics: %s on %s samples, %s, seed %d",
            recipe.network,
            f"{len(targets):,}",
            describe(where),
            seed,
        )
        spill = context().scratch if store_dynamics else None  # finished epochs leave memory and checkpoints
        accumulator = DynamicsAccumulator(len(targets), classes, where, keep_rows=store_dynamics, spill=spill)
        trained = run_training(
            split.images,
            targets,
            classes=classes,
            mean=split.mean,
            std=split.std,
            recipe=recipe,
            seed=seed,
            device=where,
            observe=accumulator,
            scratch=context().scratch,
            progress=tell,
        )
        values = accumulator.scores()
        written: dict[str, Artifact] = {}
        if final_pass:
            found, written = _final_pass(split, targets, trained, normalised, grand_batch, where, tell)
            values |= found
    written |= {
        "scores": write(
            "scores",
            {"id": split.ids, **{name: value.astype(np.float32) for name, value in values.items()}},
            column_notes=_polarity(values),
        ),
        "history": write("metrics", history_columns(trained.history)),
    }
    if store_dynamics:
        with ArtifactWriter("dynamics") as writer:
            for rows in accumulator.epoch_rows():
                writer.write(
                    {
                        "epoch": np.full(len(rows.ids), rows.epoch, np.int16),
                        "id": split.ids[rows.ids],
                        "label": targets[rows.ids].astype(np.int32),
                        "margin": rows.margin,
                        "loss": rows.loss,
                        "correct": rows.correct,
                        "el2n": rows.el2n,
                        "entropy": rows.entropy,
                    }
                )
            written["dynamics"] = writer.finish()
    return written


def _final_pass(
    split: Split,
    targets: np.ndarray,
    trained: Trained,
    normalised: bool,
    grand_batch: int | None,
    where: torch.device,
    tell: Any,
) -> tuple[dict[str, np.ndarray], dict[str, Artifact]]:
    """Scores of the trained network, and its features and logits as artifacts."""
    from winnow.tasks.score.dynamics import final_scores, max_logit
    from winnow.tasks.score.gradients import grand, residuals_of, softmax
    from winnow.tasks.train.loop import predict

    channels = split.images.shape[-1] if split.images.shape else 3
    mean, std = (split.mean, split.std) if normalised else ((0.0,) * channels, (1.0,) * channels)
    logits, features = predict(
        trained.module(where),
        split.images,
        mean=mean,
        std=std,
        device=where,
        size=trained.recipe.size,
        progress=tell,
    )
    scores = {f"final_{name}": values for name, values in final_scores(logits, targets).items()}
    scores["max_logit"] = max_logit(logits)
    scores["grand"] = grand(residuals_of(softmax(logits), targets), features, upstream_batch=grand_batch)
    return scores, {
        "features": write(
            "embeddings",
            {"id": split.ids, "vector": features},
            notes={"embedder": f"proxy {trained.recipe.network}"},
        ),
        "logits": write("logits", {"id": split.ids, "logits": logits}),
        "network": write_network(trained),
    }


@cached_task(
    version="1",
    name="add-score",
    run_name="score-{name}",
    ignore=("device",),
    seen_as={"recipe": trained_by},
    modules=("winnow.tasks.score.deepfool", "winnow.tasks.score.gradients", *TRAINING),
)
def add_score(
    samples: Artifact,
    labels: Artifact,
    scores: Artifact,
    network: Artifact,
    recipe: Recipe,
    name: str,
    *,
    device: str = "auto",
) -> Artifact:
    """The scores with one more, for which the trained network's gradients at each image are needed: see ``PASSES``.

    Args:
        samples: whose images go through the network.
        labels: pseudo-labels, or samples loaded with labels.
        scores: of the same samples.
        network: trained, as ``record_dynamics`` gives it.
        recipe: that it was trained with.
        name: of the score.
        device: where.
    """
    import numpy as np

    from winnow.tasks.hardware import describe, leased_device
    from winnow.tasks.train.loader import open_loader
    from winnow.tasks.train.task import read_network

    split = open_split(samples)
    targets = labels_of(labels, split.ids)
    with leased_device(device) as where, progress(name) as tell:
        context().notes |= {"device": describe(where)}
        loader = open_loader(
            split.images, targets, mean=split.mean, std=split.std, device=where, size=recipe.size
        )
        measure, values = _pass(name), []
        try:
            module = read_network(network, where)
            for _, images, truth in loader.sequential(256):
                values.append(measure(module, images.float(), truth))
                tell(sum(map(len, values)), len(split), "")
        finally:
            loader.close()
    return _with_column(scores, name, np.concatenate(values))


def _pass(name: str) -> Callable[[nn.Module, torch.Tensor, torch.Tensor], np.ndarray]:
    from winnow.tasks.score.deepfool import deepfool
    from winnow.tasks.score.gradients import grand_full

    return {"deepfool": lambda network, images, labels: deepfool(network, images), "grand_full": grand_full}[
        name
    ]


@cached_task(version="1", name="average-score", run_name="average-{name}")
def average_score(scores: list[Artifact], name: str) -> Artifact:
    """The first of these with one score's mean over all of them: GraNd is that of several trainings."""
    import numpy as np

    return _with_column(
        scores[0], name, np.stack([one.numpy(name) for one in scores]).mean(0, dtype=np.float64)
    )


def _with_column(scores: Artifact, name: str, values: np.ndarray) -> Artifact:
    names = [other for other in scores.arrow_schema().names if other not in ("id", name)]
    columns = {other: scores.numpy(other) for other in names} | {name: values.astype("float32")}
    return write("scores", {"id": scores.numpy("id"), **columns}, column_notes=_polarity(columns))


def _polarity(names: Iterable[str]) -> dict[str, dict[str, str]]:
    from winnow.tasks.score import higher_is

    return {name: {"higher_is": direction} for name in names if (direction := higher_is(name)) is not None}
