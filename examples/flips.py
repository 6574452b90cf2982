"""A score in one file: how often the prediction for a sample turned from right to wrong or back.

WINNOW_PLUGINS=examples/flips.py winnow run ccs/digits -p score=flips
"""

from __future__ import annotations

import numpy as np

from winnow.tasks.registry import scores
from winnow.tasks.score.reducer import Reducer

flips = Reducer(
    ("before", "count"),
    update=lambda state, visit: {
        "before": visit.correct,
        "count": state["count"] + ((visit.correct != state["before"]) & (visit.count > 1)),
    },
    result=lambda state: state["count"],
)


def logs(*right: int) -> np.ndarray:
    """Log-probabilities (E, 1, 2) of a sample that was predicted correctly in these epochs, label 0.

    >>> flips(logs(0, 1, 1, 0, 1), [0])
    array([3.], dtype=float32)
    """
    return np.log([[[0.9, 0.1] if epoch else [0.1, 0.9]] for epoch in right])


scores.add("flips", f"{__name__}:flips", needs=("labels", "dynamics"), higher_is="harder")
