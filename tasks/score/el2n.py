"""EL2N: length of the error vector, summed over the first epochs.

EL2N_i = Σ_{t<10} ‖p_t(i) − onehot(y_i)‖₂

>>> import numpy as np
>>> el2n(np.log([[[0.5, 0.5]]]), [0]).round(4)
array([0.7071], dtype=float32)

References:
    Paul et al., Deep Learning on a Data Diet, NeurIPS 2021, definition 2.2;
    Coverage-centric-coreset-selection generate_importance_score.py (EL2N)

Differences from upstream:
    None from CCS, D2 and ELFS, which sum over 10 epochs of one run; Paul et al. average one epoch of 10 runs.
"""

from winnow.tasks.score.reducer import Reducer

__all__ = ["el2n", "el2n_of"]


def el2n_of(epochs: int) -> Reducer:
    """EL2N over the first ``epochs`` epochs."""
    return Reducer(
        ("total",),
        update=lambda state, visit: {"total": state["total"] + visit.el2n * (visit.epoch < epochs)},
        result=lambda state: state["total"],
    )


el2n = el2n_of(10)
