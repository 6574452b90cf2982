"""Correctness: in how many epochs the sample was predicted correctly.

Ties in probability go to the lowest class.

>>> import numpy as np
>>> correctness(np.log([[[0.7, 0.3]], [[0.4, 0.6]]]), [0]).tolist()
[1.0]

References:
    Swayamdipta et al., Dataset Cartography, EMNLP 2020; Coverage-centric-coreset-selection
    generate_importance_score.py
"""

from winnow.tasks.score.reducer import summed

__all__ = ["correctness"]

correctness = summed("correct")
