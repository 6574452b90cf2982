"""Select from a pool of one's own: a pool in, a list out; no test set, no training on labels."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from prefect import flow
from pydantic import Field

from winnow.flows.forms import Heads, Positive, Seed, Training, explained
from winnow.flows.pools import choice
from winnow.flows.trials import TRIALS
from winnow.tasks.artifacts import Artifact
from winnow.tasks.select.task import deliver, explain
from winnow.tasks.select.task import select as select_from

__all__ = ["select"]

Budget = Positive | Annotated[float, Field(gt=0, le=1)]


@flow(name="select", flow_run_name="select-{method}", task_runner=TRIALS)
@explained
def select(
    pool: str,
    budget: Budget = 0.1,
    method: str = "facility_location",
    already: str | None = None,
    output: str | None = None,
    output_format: str | None = None,
    everything: bool = False,
    link: str | None = None,
    link_as: Literal["symlink", "hardlink", "copy"] = "symlink",
    embeddings: str | None = None,
    embedder: str | None = None,
    embedder_options: dict[str, Any] | None = None,
    scores: str | None = None,
    logits: str | None = None,
    pseudo_labels: str | None = None,
    params: dict[str, Any] | None = None,
    balanced: bool = False,
    clusters: Annotated[int, Field(ge=2)] | None = None,
    normalisation: Literal["none", "l2", "zscore"] | None = None,
    neighbours: Positive | None = None,
    heads: Heads | None = None,
    score: str | None = None,
    proxy: Training | None = None,
    dataset_options: dict[str, Any] | None = None,
    device: str = "auto",
    seed: Seed = 0,
    upstream: bool = False,
) -> Artifact:
    """Which samples of a pool to label, or to keep: a list of files, in order, each with its reason.

    What the method reads is made from the pool (embeddings; for methods that look at training dynamics,
    pseudo-labels and a proxy's training), unless it is given. No test set is needed, and no label.

    Args:
        pool: A folder of images, a list of paths (.txt, .csv, .tsv, .jsonl, .parquet), .tar shards, Parquet
            with an image column, a file of arrays, or a registered dataset.
        budget: Samples to choose, or the share of the pool in (0, 1].
        method: Registered selector.
        already: A list of what is labelled or kept already; the choice goes on from there.
        output: File to write the choice to (.csv, .tsv, .jsonl, .parquet, .txt).
        output_format: label-studio, cvat, coco, yolo, fiftyone; None is by the suffix.
        everything: List what was dropped, too, and why.
        link: Folder to link the chosen files into.
        link_as: symlink, hardlink or copy.
        embedder: Registered embedder.
        embedder_options: Options of the embedder, for example {"size": 128}.
        scores: Your own scores, one column each (.parquet, .npz, .csv, …).
        logits: Logits of your own training, (epochs, samples, classes), from which scores are made.
        params: Parameters of the selector, for example {"mis_ratio": 0.1}.
        clusters: Number of pseudo-classes for methods that look at training dynamics.
        normalisation: How embeddings are normalised before cluster heads learn from them.
        neighbours: k of the kNN graph that cluster heads learn from.
        heads: Training of the cluster heads.
        score: Score of methods that have one.
        upstream: Replay the published selector.
    """
    run = choice(locals())
    samples = run.samples()
    before = run.before(samples)
    signals = run.signals(samples)

    how: dict[str, Any] = {"params": run.params(samples), "already": before}
    chosen = select_from(samples, method, budget, seed=seed, balanced=balanced, **how, **signals)
    told = explain(samples, chosen, method, **how, **run.shown(signals))
    return deliver(
        samples,
        chosen,
        told,
        choice=run.choice(samples),
        signals=signals,
        already=before,
        output=output,
        output_format=output_format,
        everything=everything,
        link=link,
        link_as=link_as,
        settings=run.settings(),
    )
