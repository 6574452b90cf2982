"""Whether the sample was predicted correctly at its last visit, 0 or 1.

>>> import numpy as np
>>> last_correctness(np.log([[[0.7, 0.3]], [[0.4, 0.6]]]), [0]).tolist()
[0.0]

References:
    Coverage-centric-coreset-selection generate_importance_score.py (last_correctness)
"""

from dataclasses import replace

from winnow.tasks.score.forgetting import forgetting

__all__ = ["last_correctness"]

last_correctness = replace(forgetting, result=lambda state: state["previous"])
