"""Area under the margin: the lead of the label's probability over the best other one, summed over epochs.

AUM_i = Σ_t ( p_t(y_i) − max_{j≠y_i} p_t(j) ), in [−E, E]; high is easy, negative is likely mislabelled.

>>> import numpy as np
>>> aum(np.log([[[0.7, 0.2, 0.1]], [[0.3, 0.6, 0.1]]]), [0]).round(4)
array([0.2], dtype=float32)

References:
    Pleiss et al., Identifying Mislabeled Data using the Area Under the Margin Ranking, NeurIPS 2020, eq. 1-2;
    Coverage-centric-coreset-selection generate_importance_score.py (accumulated_margin)

Differences from upstream:
    None in value. As in CCS, D2 and ELFS, margins are of probabilities and summed; Pleiss et al. average
    those of logits.
"""

from winnow.tasks.score.reducer import summed

__all__ = ["aum"]

aum = summed("margin")
