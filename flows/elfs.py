"""ELFS: label-free selection by proxy training dynamics (Zheng et al., ICLR 2025) on TEMI cluster heads."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from prefect import flow
from pydantic import Field

from winnow.flows.experiment import experiment
from winnow.flows.forms import Fraction, Heads, MisRatio, Positive, Seed, Training, explained
from winnow.flows.trials import TRIALS
from winnow.tasks.artifacts import Artifact

__all__ = ["elfs"]


@flow(name="elfs", flow_run_name="elfs-{dataset}", task_runner=TRIALS)
@explained
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
    heads: Heads | None = None,
    score: str | None = None,
    mis_ratio: MisRatio | None = None,
    search_seeds: Positive = 1,
    baselines: tuple[str, ...] = ("random", "full"),
    proxy: Training | None = None,
    training: Training | None = None,
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

    Parameters that are None come from the dataset's preset: published values where there are any.

    Args:
        embedder: Registered embedder.
        embedder_options: Options of the embedder, for example {"size": 128}.
        normalisation: How embeddings are normalised.
        neighbours: k of the kNN graph that cluster heads learn from.
        clusters: Number of clusters; None is the number of classes.
        heads: Training of the cluster heads.
        score: Training-dynamics score whose two ends are pruned.
        store_dynamics: Keep the dynamics of each sample in each epoch as an artifact.
        upstream: Replay the published code, including its choice of the epoch by test labels.

    References:
        Zheng et al., ELFS: Label-Free Coreset Selection with Proxy Training Dynamics, ICLR 2025; Adaloglou et
        al., BMVC 2023 (TEMI).
        Upstream: eltsai/elfs@089444b.

    Differences from upstream:
        Head and epoch of the cluster heads are chosen by the teacher's loss (upstream: the epoch by test
        labels); the kNN graph never contains the sample itself; ``score`` is honoured; seeds are set; last
        and best test accuracy are both reported (upstream: best).
    """
    run = experiment("elfs", locals())
    method = run.method(fixed=["score"], searched=["mis_ratio"], final_pass=False)
    rivals = run.baselines({"scores", "labels"}, final_pass=False)
    train, test = run.load(method, *rivals)

    pseudo = run.pseudo_labels(train, test if upstream else None)
    recorded = run.record(train, pseudo.labels, final_pass=False, store_dynamics=store_dynamics)
    method, searches = run.search(train, method, recorded.signals)
    results = run.trials(train, test, [method, *rivals], recorded.signals)
    return run.report("ELFS", train, results, method, recorded, searches, pseudo)
