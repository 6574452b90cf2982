"""Mean predictive entropy over epochs, in nats.

(1/E) Σ_t −Σ_j p_t(j) log p_t(j)

>>> import numpy as np
>>> entropy(np.log([[[0.5, 0.5]]]), [0]).round(4)
array([0.6931], dtype=float32)

References:
    Coleman et al., Selection via Proxy, ICLR 2020, section 3.1

Differences from upstream:
    CCS and D2 take the entropy of one pass after training: ``final_entropy``.
"""

from winnow.tasks.score.reducer import averaged

__all__ = ["entropy"]

entropy = averaged("entropy")
