"""Confidence: the label's mean probability over epochs.

μ_i = (1/E) Σ_t p_t(y_i)

>>> import numpy as np
>>> confidence(np.log([[[0.7, 0.3]], [[0.5, 0.5]]]), [0]).round(4)
array([0.6], dtype=float32)

References:
    Swayamdipta et al., Dataset Cartography, EMNLP 2020, eq. 1
"""

from dataclasses import replace

from winnow.tasks.score.variability import variability

__all__ = ["confidence"]

confidence = replace(variability, result=lambda state: state["mean"])
