"""Variability: spread of the label's probability over epochs (population standard deviation).

σ_i = sqrt( (1/E) Σ_t (p_t(y_i) − μ_i)² ); high is ambiguous. By Welford's algorithm.

>>> import numpy as np
>>> variability(np.log([[[0.7, 0.3]], [[0.5, 0.5]]]), [0]).round(4)
array([0.1], dtype=float32)

References:
    Swayamdipta et al., Dataset Cartography, EMNLP 2020, eq. 2; Welford, 1962
"""

from collections.abc import Mapping

from torch import Tensor

from winnow.tasks.score.reducer import Reducer, Visit

__all__ = ["variability"]


def _welford(state: Mapping[str, Tensor], visit: Visit) -> dict[str, Tensor]:
    probability = (-visit.loss).exp()
    deviation = probability - state["mean"]
    mean = state["mean"] + deviation / visit.count
    return {"mean": mean, "squares": state["squares"] + deviation * (probability - mean)}


variability = Reducer(
    ("mean", "squares"),
    update=_welford,
    result=lambda state: (state["squares"].clamp(min=0) / state["visits"]).sqrt(),
)
