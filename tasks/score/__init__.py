"""Scores: one number a sample that says how easy or hard it is to learn. ``higher_is`` is each score's polarity."""

from typing import Literal

from winnow.tasks.registry import scores

_dynamics = {"needs": ("labels", "dynamics")}
scores.add("aum", ".dynamics:aum", higher_is="easier", **_dynamics)
scores.add("confidence", ".dynamics:confidence", higher_is="easier", **_dynamics)
scores.add("correctness", ".dynamics:correctness", higher_is="easier", **_dynamics)
scores.add("el2n", ".dynamics:el2n", higher_is="harder", **_dynamics)
scores.add("entropy", ".dynamics:entropy", higher_is="harder", **_dynamics)
scores.add("forgetting", ".dynamics:forgetting", higher_is="harder", **_dynamics)
scores.add("forgetting_toneva", ".dynamics:forgetting_toneva", higher_is="harder", **_dynamics)
scores.add("last_correctness", ".dynamics:last_correctness", higher_is="easier", **_dynamics)
scores.add("loss", ".dynamics:loss", higher_is="harder", **_dynamics)
scores.add("variability", ".dynamics:variability", higher_is="harder", **_dynamics)

_final = {"needs": ("labels", "logits")}
scores.add("final_confidence", ".dynamics:final_confidence", higher_is="easier", **_final)
scores.add("final_entropy", ".dynamics:final_entropy", higher_is="harder", **_final)
scores.add("final_loss", ".dynamics:final_loss", higher_is="harder", **_final)
scores.add("max_logit", ".dynamics:max_logit", higher_is="easier", needs=("logits",))

scores.add("grand", ".gradients:grand", higher_is="harder", needs=("residuals", "features"))
scores.add("grand_full", ".gradients:grand_full", higher_is="harder", needs=("network", "images", "labels"))
scores.add("deepfool", ".deepfool:deepfool", higher_is="easier", needs=("network", "images"))
scores.add("prototypicality", ".prototypicality:prototypicality", higher_is="harder", needs=("features",))


def higher_is(name: str) -> Literal["easier", "harder"] | None:
    """Which end of a score is hard; None where the score is not registered.

    >>> higher_is("aum"), higher_is("my_loss")
    ('easier', None)
    """
    return scores.get(name).higher_is if name in scores else None
