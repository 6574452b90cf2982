"""DeepCore: any coreset method by name, with the library's options (Guo, Zhao and Bai, DEXA 2022)."""

from __future__ import annotations

from typing import Any

from prefect import flow

from winnow.flows.comparison import comparison, contest
from winnow.flows.experiment import experiment
from winnow.flows.forms import Fraction, Positive, Seed, Training, explained
from winnow.flows.trials import TRIALS
from winnow.tasks.artifacts import Artifact

__all__ = ["deepcore"]


@flow(name="deepcore", flow_run_name="deepcore-{dataset}-{method}", task_runner=TRIALS)
@explained
def deepcore(
    dataset: str,
    method: str = "k_center",
    fractions: tuple[Fraction, ...] = (0.1,),
    seeds: tuple[Seed, ...] = (0, 1, 2, 3, 4),
    balanced: bool = True,
    params: dict[str, Any] | None = None,
    baselines: tuple[str, ...] = ("random", "full"),
    training: Training | None = None,
    proxy: Training | None = None,
    repeats: Positive = 10,
    dataset_options: dict[str, Any] | None = None,
    device: str = "auto",
    upstream: bool = False,
) -> Artifact:
    """Any coreset method by name, with the options of DeepCore's command line (Guo, Zhao and Bai, DEXA 2022).

    For each seed, a proxy is trained on the whole set, the method selects from what that training records,
    and a network is trained on the coreset and compared with the baselines. The seed decides the proxy, the
    selection and the training.

    Parameters that are None come from the dataset's preset, the published recipe.

    Args:
        method: Registered selector; selector:score for another score.
        params: Parameters of the method, for example {"optimizer": "naive"}.
        proxy: Training, on the whole set, of the network that the method selects with.
        repeats: Trainings of the proxy per seed that GraNd is averaged over. Other methods read the first.
        upstream: Replay the published code: its selections, a cosine schedule one epoch late, a test every
            epoch, Tiny ImageNet at 32 pixels.

    References:
        Guo, Zhao and Bai, DeepCore: A Comprehensive Library for Coreset Selection in Deep Learning, DEXA
        2022.
        Upstream: DeepCore@74ec709.

    Differences from upstream:
        Methods do what their papers say (each page lists its differences); experiments differ in their seed;
        the proxy is trained once per seed for all methods; last and best test accuracy are both reported
        (upstream: best); a run resumes where it was interrupted.
    """
    run = experiment("deepcore", locals())
    entered = contest(run, [method, *baselines], {method.partition(":")[0]: params or {}})
    return comparison(run, method, f"deepcore-{dataset}-{method}", entered)
