"""Scores: how easy or hard each sample is to learn, as one number; ``higher_is`` says which end is which."""

from typing import Literal

from winnow.tasks.registry import scores

_DYNAMICS = ("labels", "dynamics")
scores.add("aum", higher_is="easier", needs=_DYNAMICS)
scores.add("confidence", higher_is="easier", needs=_DYNAMICS)
scores.add("correctness", higher_is="easier", needs=_DYNAMICS)
scores.add("el2n", higher_is="harder", needs=_DYNAMICS)
scores.add("entropy", higher_is="harder", needs=_DYNAMICS)
scores.add("forgetting", higher_is="harder", needs=_DYNAMICS)
scores.add("forgetting_toneva", higher_is="harder", needs=_DYNAMICS)
scores.add("last_correctness", higher_is="easier", needs=_DYNAMICS)
scores.add("loss", higher_is="harder", needs=_DYNAMICS)
scores.add("variability", higher_is="harder", needs=_DYNAMICS)

_FINAL = ("labels", "logits")
scores.add("final_confidence", ".final", higher_is="easier", needs=_FINAL)
scores.add("final_entropy", ".final", higher_is="harder", needs=_FINAL)
scores.add("final_loss", ".final", higher_is="harder", needs=_FINAL)
scores.add("max_logit", ".final", higher_is="easier", needs=("logits",))

# GraNd's paper averages these over trainings
scores.add(
    "grand",
    ".gradients",
    higher_is="harder",
    needs=("residuals", "features"),
    averaged=True,
    upstream=".upstream.grand",
)
scores.add(
    "grand_full", ".gradients", higher_is="harder", needs=("network", "images", "labels"), averaged=True
)
scores.add("deepfool", higher_is="easier", needs=("network", "images"))
scores.add("prototypicality", higher_is="harder", needs=("features",))


def higher_is(name: str) -> Literal["easier", "harder"] | None:
    """Which end of a score is hard; None where the score is not registered.

    >>> higher_is("aum"), higher_is("my_loss")
    ('easier', None)
    """
    return scores.get(name).higher_is if name in scores else None
