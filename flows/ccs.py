"""CCS: coverage-centric coreset selection (Zheng et al., ICLR 2023)."""

from __future__ import annotations

from typing import Any, Literal

from prefect import flow

from winnow.flows.experiment import experiment
from winnow.flows.forms import Fraction, MisRatio, Positive, Seed, Training, explained
from winnow.flows.trials import TRIALS
from winnow.tasks.artifacts import Artifact

__all__ = ["ccs"]


@flow(name="ccs", flow_run_name="ccs-{dataset}", task_runner=TRIALS)
@explained
def ccs(
    dataset: str,
    fractions: tuple[Fraction, ...] = (0.1, 0.2, 0.3, 0.5, 0.7),
    seeds: tuple[Seed, ...] = (0, 1, 2),
    labels: Literal["true", "pseudo"] = "true",
    pseudo_labels: str | None = None,
    score: str | None = None,
    mis_ratio: MisRatio | None = None,
    strata: Positive = 50,
    balanced: bool = False,
    search_seeds: Positive = 1,
    search_iterations: Positive | None = None,
    baselines: tuple[str, ...] = ("random", "aum", "forgetting", "el2n", "top:final_entropy", "full"),
    proxy: Training | None = None,
    training: Training | None = None,
    dataset_options: dict[str, Any] | None = None,
    device: str = "auto",
    seed: Seed = 0,
    upstream: bool = False,
) -> Artifact:
    """Coverage-centric coreset selection (Zheng et al., ICLR 2023).

    Train on the whole set and record how each sample is learnt; drop the hardest, which are mostly
    mislabelled; cut the range of the score into strata of equal width and give each the same budget; train on
    what is drawn and compare with the baselines.

    Parameters that are None come from the dataset's preset: published values where there are any.

    Args:
        labels: true, or pseudo: ELFS's pseudo-labels replace true labels; the method becomes label-free.
        score: Score that is cut into strata.
        strata: Number of strata.
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
    run = experiment("ccs", locals())
    method = run.method(fixed=["score", "strata"], searched=["mis_ratio"])
    rivals = run.baselines()
    train, test = run.load(method, *rivals)

    pseudo = run.pseudo_labels(train) if labels == "pseudo" else None
    targets = run.true_labels() if pseudo is None else pseudo.labels
    recorded = run.record(train, targets, normalised=not upstream)
    method, searches = run.search(train, method, recorded.signals)
    results = run.trials(train, test, [method, *rivals], recorded.signals)
    return run.report("CCS", train, results, method, recorded, searches, pseudo)
