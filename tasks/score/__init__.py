"""Scores: one number a sample that says how easy or hard it is to learn. ``higher_is`` is each score's polarity."""

from typing import Literal

from tasks.registry import scores

_dynamics = {"needs": ("labels", "dynamics")}
scores.add("aum", "tasks.score.dynamics:aum", higher_is="easier", **_dynamics)
scores.add("confidence", "tasks.score.dynamics:confidence", higher_is="easier", **_dynamics)
scores.add("correctness", "tasks.score.dynamics:correctness", higher_is="easier", **_dynamics)
scores.add("el2n", "tasks.score.dynamics:el2n", higher_is="harder", **_dynamics)
scores.add("entropy", "tasks.score.dynamics:entropy", higher_is="harder", **_dynamics)
scores.add("forgetting", "tasks.score.dynamics:forgetting", higher_is="harder", **_dynamics)
scores.add("forgetting_toneva", "tasks.score.dynamics:forgetting_toneva", higher_is="harder", **_dynamics)
scores.add("last_correctness", "tasks.score.dynamics:last_correctness", higher_is="easier", **_dynamics)
scores.add("loss", "tasks.score.dynamics:loss", higher_is="harder", **_dynamics)
scores.add("variability", "tasks.score.dynamics:variability", higher_is="harder", **_dynamics)

_final = {"needs": ("labels", "logits")}
scores.add("final_confidence", "tasks.score.dynamics:final_confidence", higher_is="easier", **_final)
scores.add("final_entropy", "tasks.score.dynamics:final_entropy", higher_is="harder", **_final)
scores.add("final_loss", "tasks.score.dynamics:final_loss", higher_is="harder", **_final)
scores.add("max_logit", "tasks.score.dynamics:max_logit", higher_is="easier", needs=("logits",))

scores.add("grand", "tasks.score.gradients:grand", higher_is="harder", needs=("residuals", "features"))
scores.add("grand_full", "tasks.score.gradients:grand_full", higher_is="harder", needs=("network", "images", "labels"))
scores.add("deepfool", "tasks.score.deepfool:deepfool", higher_is="easier", needs=("network", "images"))
scores.add("prototypicality", "tasks.score.prototypicality:prototypicality", higher_is="harder", needs=("features",))


def higher_is(name: str) -> Literal["easier", "harder"] | None:
    """Which end of a score is hard; None where the score is not registered.

    >>> higher_is("aum"), higher_is("my_loss")
    ('easier', None)
    """
    return scores.get(name).facts["higher_is"] if name in scores else None
