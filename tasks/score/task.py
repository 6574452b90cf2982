"""Tasks of the scoring stage: dynamics of a proxy; scores that need another pass or several proxies."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from winnow.tasks.artifacts import Artifact, ArtifactWriter, write
from winnow.tasks.cache import cached_task, context, uncached_task
from winnow.tasks.data.task import aligned, labels_of, open_split
from winnow.tasks.errors import BadInput
from winnow.tasks.progress import progress
from winnow.tasks.registry import ScoreEntry
from winnow.tasks.registry import scores as registered
from winnow.tasks.train.recipe import Recipe
from winnow.tasks.train.task import TRAINING, history_columns, trained_by, write_network

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np
    import torch

    from winnow.tasks.data.split import Split
    from winnow.tasks.train.loop import Trained

__all__ = ["add_score", "average_score", "bring_logits", "final_scores", "record_dynamics", "takes_a_pass"]

PASS_BATCH = 256  # most images whose gradients are computed at a time

log = logging.getLogger("winnow.tasks.score")


def takes_a_pass(name: str) -> bool:
    """Whether a score comes from a pass through the trained network rather than from its training."""
    return name in registered and "network" in registered.get(name).needs


def final_scores() -> list[ScoreEntry]:
    """The scores computed from the trained network's logits and features."""
    sources = {"logits", "residuals"}
    return [entry for entry in registered if sources & set(entry.needs)]


def _recorded_by(recipe: Recipe) -> Any:
    """A recipe as it enters a key, with the versions of all scores that its training yields."""
    every = [entry.identity for entry in registered if not takes_a_pass(entry.name)]
    return {**trained_by(recipe), "scores": every}


@cached_task(
    version="5",
    name="dynamics",
    run_name="dynamics",
    ignore=("device",),
    seen_as={"recipe": _recorded_by},
    modules=("winnow.tasks.score.dynamics", *TRAINING),
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
        final_pass: also pass all images, unaugmented, through the trained network: scores of that pass,
            GraNd, features and logits.
        normalised: whether that pass normalises images as the training does; the published CCS and D2 do not.
        grand_batch: batch size; each sample's GraNd is divided by its batch's size, as in the published
            DeepCore.
        device: to run on.

    Returns:
        ``scores``, ``history``; ``dynamics`` if stored; ``features`` (penultimate), ``logits`` and
        ``network`` of the final pass.
    """
    import numpy as np

    from winnow.tasks.hardware import describe, leased_device
    from winnow.tasks.score.dynamics import DynamicsAccumulator
    from winnow.tasks.train.loop import train as run_training
    from winnow.tasks.train.problems.images import ImageProblem

    split = open_split(samples)
    targets, classes = labels_of(labels, split.ids), labels.facts["classes"]
    n = len(targets)
    with leased_device(device) as where, progress(f"dynamics of {recipe.network}") as tell:
        context().notes |= {"device": describe(where), "seed": seed}
        log.info("dynamics: %s on %s samples, %s, seed %d", recipe.network, f"{n:,}", describe(where), seed)
        spill = context().scratch if store_dynamics else None  # finished epochs leave memory and checkpoints
        accumulator = DynamicsAccumulator(n, classes, where, keep_rows=store_dynamics, spill=spill)
        problem = ImageProblem(split.images, targets, classes=classes, mean=split.mean, std=split.std)
        trained = run_training(
            problem,
            recipe,
            seed=seed,
            device=where,
            observe=accumulator,
            scratch=context().scratch,
            progress=tell,
        )
        values = accumulator.scores()
        written: dict[str, Artifact] = {}
        if final_pass:
            final, written = _final_pass(split, targets, trained, normalised, grand_batch, where, tell)
            values |= final
    columns = {"id": split.ids, **{name: value.astype(np.float32) for name, value in values.items()}}
    written |= {
        "scores": write("scores", columns, column_notes=_polarity(values)),
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
                        **rows.columns,
                        "correct": rows.columns["correct"] > 0,
                    }
                )
            written["dynamics"] = writer.finish()
    return written


def _computed(entry: ScoreEntry, signals: Mapping[str, Any]) -> np.ndarray:
    """A score of the signals that it needs."""
    return entry.direct(**{need: signals[need] for need in entry.needs})


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
    from winnow.tasks.score.gradients import residuals_of, softmax
    from winnow.tasks.train.evaluate import predict

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
    signals: dict[str, Any] = {
        "logits": logits,
        "labels": targets,
        "features": features,
        "residuals": residuals_of(softmax(logits), targets),
    }
    scores = {entry.name: _computed(entry, signals) for entry in final_scores()}
    if grand_batch is not None:
        published = registered.get("grand").published
        scores["grand"] = published(signals["residuals"], features, batch=grand_batch)
    notes = {"embedder": f"proxy {trained.recipe.network}"}
    return scores, {
        "features": write("embeddings", {"id": split.ids, "vector": features}, notes=notes),
        "logits": write("logits", {"id": split.ids, "logits": logits}),
        "network": write_network(trained),
    }


@cached_task(
    version="2",
    name="add-score",
    run_name="score-{name}",
    ignore=("device",),
    seen_as={"recipe": trained_by, "name": lambda name: registered.get(name).identity},
    modules=TRAINING,
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
    """The scores plus one that needs a pass through the trained network (:func:`takes_a_pass`).

    Args:
        samples: their images go through the network.
        labels: pseudo-labels, or samples loaded with labels.
        scores: of the same samples.
        network: trained, as ``record_dynamics`` returns it.
        recipe: the one it was trained with.
        name: of the score.
        device: to run on.
    """
    import numpy as np
    import torch

    from winnow.tasks.hardware import describe, leased_device
    from winnow.tasks.train.problems.images import ImageProblem
    from winnow.tasks.train.task import read_network

    entry, split = registered.get(name), open_split(samples)
    targets, classes = labels_of(labels, split.ids), labels.facts["classes"]
    problem = ImageProblem(split.images, targets, classes=classes, mean=split.mean, std=split.std)
    with leased_device(device) as where, progress(name) as tell:
        context().notes |= {"device": describe(where)}
        loader = problem.open(recipe, torch.device(where), seed=0, training=False)
        values: list[np.ndarray] = []
        try:
            module = read_network(network, where)
            for batch in loader.plain(PASS_BATCH):
                signals = {"network": module, "images": batch.inputs.float(), "labels": batch.targets}
                values.append(_computed(entry, signals))
                tell(sum(map(len, values)), problem.n, "")
        finally:
            loader.close()
    return _with_column(scores, name, np.concatenate(values))


@cached_task(version="1", name="average-score", run_name="average-{name}")
def average_score(scores: list[Artifact], name: str) -> Artifact:
    """The first of these, with one score replaced by its mean over all: GraNd averages several trainings."""
    import numpy as np

    return _with_column(
        scores[0], name, np.stack([artifact.numpy(name) for artifact in scores]).mean(0, dtype=np.float64)
    )


def _with_column(scores: Artifact, name: str, values: np.ndarray) -> Artifact:
    names = [other for other in scores.arrow_schema().names if other not in ("id", name)]
    columns = {other: scores.numpy(other) for other in names} | {name: values.astype("float32")}
    return write("scores", {"id": scores.numpy("id"), **columns}, column_notes=_polarity(columns))


def _polarity(names: Iterable[str]) -> dict[str, dict[str, str]]:
    from winnow.tasks.score import higher_is

    return {name: {"higher_is": direction} for name in names if (direction := higher_is(name)) is not None}


@uncached_task(name="bring-logits", run_name="bring-logits")
def bring_logits(samples: Artifact, labels: Artifact, path: str) -> Artifact:
    """Scores of the user's own training: logits of every sample after each epoch, float (E, N, C)."""
    import numpy as np

    from winnow.tasks.data.arrays import open_arrays
    from winnow.tasks.score.dynamics import scores_from_log_probs
    from winnow.tasks.score.gradients import softmax

    file, _, wanted = path.partition("#")
    source = open_arrays(file)
    name = source.choose(wanted, ("logits", "log_probs"))
    values = np.asarray(source.read(name if isinstance(name, str) else name[0]))
    if values.ndim != 3 or values.dtype.kind != "f":
        raise BadInput(
            f"{path}: expected logits (epochs, samples, classes), found {values.dtype} of shape "
            f"{values.shape}."
        )
    by_row = aligned(file, samples, np.moveaxis(values, 1, 0), source.ids())
    bad = np.flatnonzero(~np.isfinite(by_row).all(axis=(1, 2)))
    if len(bad):
        raise BadInput(f"{path}: sample {bad[0]} has a NaN or infinite logit ({len(bad):,} such samples).")
    ids = samples.numpy("id")
    log_probs = np.log(np.maximum(softmax(np.moveaxis(by_row, 0, 1)), 1e-30)).astype(np.float32)
    scores = scores_from_log_probs(log_probs, labels_of(labels, ids))
    return write("scores", {"id": ids, **scores}, notes={"source": Path(file).name})
