"""Scores of one pass with the trained network, without augmentation."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from winnow.tasks.score.reducer import Array, checked
from winnow.tasks.train.problems.classification import COLUMNS, measure

__all__ = ["final_confidence", "final_entropy", "final_loss", "final_scores", "max_logit"]


def final_scores(logits: Array, labels: Array) -> dict[str, np.ndarray]:
    """Entropy, loss and confidence of one pass with the trained network.

    Args:
        logits: float (N, C), from eval mode, without augmentation.
        labels: int (N,).

    Returns:
        ``entropy, loss, confidence``, float32 (N,) each.

    Raises:
        BadInput: wrong shapes, NaN, or a label outside the classes.

    >>> {name: f"{values[0]:.4f}" for name, values in final_scores(np.array([[0.0, 0.0]]), [1]).items()}
    {'entropy': '0.6931', 'loss': '0.6931', 'confidence': '0.5000'}

    References:
        d2pruning generate_importance_score.py (post_training_metrics)

    Differences from upstream:
        Upstream feeds unnormalised images to a network trained on normalised ones; pass such logits to replay
        that. Its entropy adds 1e-10 inside the logarithm.
    """
    outputs, targets = checked(torch.as_tensor(logits).unsqueeze(0), labels, "logits")
    columns = measure(F.log_softmax(outputs[0].float(), dim=1), targets.to(outputs.device)).cpu().numpy()
    entropy, loss = (columns[:, COLUMNS.index(name)].copy() for name in ("entropy", "loss"))
    return {"entropy": entropy, "loss": loss, "confidence": np.exp(-loss)}


def final_entropy(logits: Array, labels: Array) -> np.ndarray:
    """Predictive entropy after training, in nats: CCS's and D2's ``entropy``.

    Args, errors and differences as in :func:`final_scores`; returns float32 (N,).

    >>> final_entropy(np.array([[0.0, 0.0]]), [1]).round(4)
    array([0.6931], dtype=float32)

    References:
        Coverage-centric-coreset-selection generate_importance_score.py (post_training_metrics)
    """
    return final_scores(logits, labels)["entropy"]


def final_loss(logits: Array, labels: Array) -> np.ndarray:
    """Cross-entropy after training: CCS's and D2's ``loss``.

    Args, errors and differences as in :func:`final_scores`; returns float32 (N,).

    >>> final_loss(np.array([[0.0, 0.0]]), [1]).round(4)
    array([0.6931], dtype=float32)

    References:
        Coverage-centric-coreset-selection generate_importance_score.py (post_training_metrics)
    """
    return final_scores(logits, labels)["loss"]


def final_confidence(logits: Array, labels: Array) -> np.ndarray:
    """The label's probability after training: D2's ``confidence``.

    Args, errors and differences as in :func:`final_scores`; returns float32 (N,).

    >>> final_confidence(np.array([[0.0, 0.0]]), [1]).tolist()
    [0.5]

    References:
        d2pruning generate_importance_score.py (post_training_metrics)
    """
    return final_scores(logits, labels)["confidence"]


def max_logit(logits: Array) -> np.ndarray:
    """The largest logit after training: DeepCore's least confidence ranks by it, not by probability.

    Args:
        logits: float (N, C), from eval mode, without augmentation.

    Returns:
        float32 (N,).

    >>> max_logit(np.array([[0.5, 2.0]])).tolist()
    [2.0]

    References:
        PatrickZH/DeepCore@74ec709 deepcore/methods/uncertainty.py (LeastConfidence)
    """
    return torch.as_tensor(logits).float().amax(1).cpu().numpy()
