"""Mean cross-entropy over epochs.

(1/E) Σ_t −log p_t(y_i)

>>> import numpy as np
>>> loss(np.log([[[0.5, 0.5]]]), [0]).round(4)
array([0.6931], dtype=float32)

References:
    Jiang et al., Accelerating Deep Learning by Focusing on the Biggest Losers, 2019

Differences from upstream:
    CCS and D2 take the loss of one pass after training: ``final_loss``.
"""

from winnow.tasks.score.reducer import averaged

__all__ = ["loss"]

loss = averaged("loss")
