"""Forgetting events: how often a correctly predicted sample was predicted wrongly at the next visit.

Σ_{t≥1} [c_{t−1} = 1 and c_t = 0]; a sample never predicted correctly scores 0, as in CCS, D2 and ELFS.

>>> import numpy as np
>>> forgetting(np.log([[[0.7, 0.3]], [[0.4, 0.6]], [[0.8, 0.2]], [[0.1, 0.9]]]), [0]).tolist()
[2.0]

References:
    Toneva et al., An Empirical Study of Example Forgetting during Deep Neural Network Learning, ICLR 2019,
    section 3; Coverage-centric-coreset-selection generate_importance_score.py

Differences from upstream:
    None; :func:`forgetting_toneva` counts never-learned samples as the hardest.
"""

from winnow.tasks.score.reducer import Reducer

__all__ = ["forgetting"]

forgetting = Reducer(
    ("total", "previous"),
    update=lambda state, visit: {
        "total": state["total"] + state["previous"] * (1 - visit.correct),
        "previous": visit.correct,
    },
    result=lambda state: state["total"],
)
