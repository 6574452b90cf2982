"""Scores: how easy or hard each sample is to learn, as one number; ``higher_is`` says which end is which."""

from typing import Literal

from winnow.tasks.registry import scores

_dynamics = {"needs": ("labels", "dynamics")}
scores.add("aum", ".aum:aum", higher_is="easier", **_dynamics)
scores.add("confidence", ".confidence:confidence", higher_is="easier", **_dynamics)
scores.add("correctness", ".correctness:correctness", higher_is="easier", **_dynamics)
scores.add("el2n", ".el2n:el2n", higher_is="harder", **_dynamics)
scores.add("entropy", ".entropy:entropy", higher_is="harder", **_dynamics)
scores.add("forgetting", ".forgetting:forgetting", higher_is="harder", **_dynamics)
scores.add("forgetting_toneva", ".forgetting_toneva:forgetting_toneva", higher_is="harder", **_dynamics)
scores.add("last_correctness", ".last_correctness:last_correctness", higher_is="easier", **_dynamics)
scores.add("loss", ".loss:loss", higher_is="harder", **_dynamics)
scores.add("variability", ".variability:variability", higher_is="harder", **_dynamics)

_final = {"needs": ("labels", "logits")}
scores.add("final_confidence", ".final:final_confidence", higher_is="easier", **_final)
scores.add("final_entropy", ".final:final_entropy", higher_is="harder", **_final)
scores.add("final_loss", ".final:final_loss", higher_is="harder", **_final)
scores.add("max_logit", ".final:max_logit", higher_is="easier", needs=("logits",))

# GraNd's paper averages these over trainings
scores.add(
    "grand",
    ".gradients:grand",
    higher_is="harder",
    needs=("residuals", "features"),
    averaged=True,
    upstream=".upstream.grand:grand",
)
scores.add(
    "grand_full",
    ".gradients:grand_full",
    higher_is="harder",
    needs=("network", "images", "labels"),
    averaged=True,
)
scores.add("deepfool", ".deepfool:deepfool", higher_is="easier", needs=("network", "images"))
scores.add("prototypicality", ".prototypicality:prototypicality", higher_is="harder", needs=("features",))


def higher_is(name: str) -> Literal["easier", "harder"] | None:
    """Which end of a score is hard; None where the score is not registered.

    >>> higher_is("aum"), higher_is("my_loss")
    ('easier', None)
    """
    return scores.get(name).higher_is if name in scores else None
