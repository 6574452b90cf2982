"""Submodular selection as published: DeepCore@74ec709 deepcore/methods/submodular.py and methods_utils/.

On gradients only; ties go to the first row.
"""

from __future__ import annotations

import numpy as np

from winnow.tasks.errors import BadInput
from winnow.tasks.select.greedy import greedy
from winnow.tasks.select.set_functions import FacilityLocation, Function, GraphCut
from winnow.tasks.select.signals import Selection, Signals
from winnow.tasks.select.similarity import UNIT, Kernel, check_dense, dense
from winnow.tasks.select.submodular import check_factor

__all__ = ["check_optimizer", "facility_location", "graph_cut", "log_determinant"]


def check_optimizer(optimizer: str, kernel: str = "gradients") -> None:
    """Refuse an optimiser whose published output is not worth replaying, and a kernel that was not published.

    Raises:
        BadInput: naming it.
    """
    if kernel != "gradients":
        raise BadInput(f"kernel = {kernel!r} with upstream=True: the published one is of gradients.")
    if optimizer not in ("lazy", "naive"):
        raise BadInput(
            f"optimizer = {optimizer!r} with upstream=True: the published one picks at random or may never "
            "end.",
            remedy="pass optimizer='lazy' or 'naive', or leave upstream out",
        )


def facility_location(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    kernel: str = "gradients",
    optimizer: str = "lazy",
) -> Selection:
    """Facility location on gradients, ties to the first row."""
    check_optimizer(optimizer, kernel)
    check_dense(signals.n, budget, upstream=True)
    return _greedy(FacilityLocation(dense(Kernel.of(signals, "gradients"))), budget, optimizer, generator)


def graph_cut(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    kernel: str = "gradients",
    optimizer: str = "lazy",
) -> Selection:
    """Graph cut on gradients, ties to the first row."""
    check_optimizer(optimizer, kernel)
    return _greedy(GraphCut(Kernel.of(signals, "gradients")), budget, optimizer, generator)


def _greedy(function: Function, budget: int, optimizer: str, generator: np.random.Generator) -> Selection:
    first = np.arange(len(function), dtype=np.float64)
    picks, gains = greedy(function, budget, optimizer, first, generator)
    return Selection.of(picks, gains=gains / UNIT)


def log_determinant(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    kernel: str = "gradients",
    optimizer: str = "lazy",
) -> Selection:
    """Gain s_xA S_A⁺ s_Ax on gradients, which rises from 0: lazy greedy takes the first it looks at."""
    check_optimizer(optimizer, kernel)
    check_factor(signals.n, budget, upstream=True)
    similarity = Kernel.of(signals, "gradients")
    n = len(similarity)
    picks: list[int] = []
    gains = np.zeros(budget)
    columns = np.empty((budget, n))
    for step in range(budget):
        rows = np.array([step]) if optimizer == "lazy" else np.setdiff1d(np.arange(n), picks)
        value = np.zeros(len(rows))
        if picks:
            to_picks = columns[:step, rows]
            value = np.einsum("an,an->n", np.linalg.pinv(columns[:step, picks]) @ to_picks, to_picks)
        row = int(rows[value.argmax()])
        gains[step] = value.max()
        picks.append(row)
        columns[step] = similarity.tile(np.array([row]), slice(None))[0] / UNIT
        columns[step, row] = 1
    return Selection.of(np.array(picks), gains=gains)
