"""Many selection methods side by side, on shared artifacts, with seeds and significance."""

from __future__ import annotations

from typing import Any

from prefect import flow

from winnow.flows.comparison import comparison, contest
from winnow.flows.experiment import experiment
from winnow.flows.forms import Fraction, Positive, Seed, Training, explained
from winnow.flows.trials import TRIALS
from winnow.tasks.artifacts import Artifact
from winnow.tasks.registry import selectors

__all__ = ["compare"]


@flow(name="compare", flow_run_name="compare-{dataset}", task_runner=TRIALS)
@explained
def compare(
    dataset: str,
    methods: tuple[str, ...] | None = None,
    fractions: tuple[Fraction, ...] = (0.1, 0.3, 0.5),
    seeds: tuple[Seed, ...] = (0, 1, 2),
    balanced: bool = False,
    params: dict[str, dict[str, Any]] | None = None,
    pseudo_labels: str | None = None,
    proxy: Training | None = None,
    training: Training | None = None,
    repeats: Positive = 1,
    dataset_options: dict[str, Any] | None = None,
    device: str = "auto",
    upstream: bool = False,
) -> Artifact:
    """Compare selection methods on shared artifacts: accuracy, rank, cost, difference from random.

    For each seed, a proxy is trained once, every method selects from what that records, and a network is
    trained on every coreset. The seed decides the proxy, the selection and the training, so that the spread
    is that of the whole method.

    Args:
        methods: Selectors; selector:score for another score. None: all registered ones except top, which by
            default is the same as el2n.
        params: Parameters by selector, for example {"d2": {"neighbours": 10}}; others take their preset's or
            their own defaults.
        repeats: Trainings of the proxy per seed that GraNd is averaged over; its paper uses 10. Other methods
            read the first.
        upstream: Replay the published code of every method that has such a mode.
    """
    run = experiment("compare", locals())
    names = [name for name in selectors.names() if name != "top"] if methods is None else methods
    entered = contest(run, names, params or {})
    return comparison(run, "Comparison", f"compare-{dataset}", entered, normalised=not upstream)
