"""Forgetting events, where samples that were never learned count as forgotten in every epoch.

As :func:`forgetting`, but E (the number of epochs) for samples never predicted correctly: those that were
never forgotten and are wrong at the end.

>>> import numpy as np
>>> forgetting_toneva(np.log([[[0.3, 0.7], [0.9, 0.1]]] * 4), [0, 0]).tolist()
[4.0, 0.0]

References:
    Toneva et al., ICLR 2019, section 3; example_forgetting order_examples_by_forgetting.py
"""

from dataclasses import replace

from winnow.tasks.score.forgetting import forgetting

__all__ = ["forgetting_toneva"]

forgetting_toneva = replace(
    forgetting,
    result=lambda state: state["total"].where(state["total"] + state["previous"] > 0, state["epochs"]),
)
