"""Methods as they enter a run: a selector, and its parameters at each fraction."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from winnow.flows.forms import value_at
from winnow.tasks.errors import BadInput
from winnow.tasks.registry import scores, selectors

__all__ = ["EVERYTHING", "Method", "Setting", "check_score", "methods_by_name"]

# what a training with true labels, and a pass of the trained network over all images, yield
EVERYTHING = frozenset({"scores", "labels", "features", "probabilities", "residuals"})


@dataclass(frozen=True)
class Setting:
    """A selector's parameters at one fraction.

    Attributes:
        fraction: share kept.
        params: those that are settled.
        grid: values to try for the others.
    """

    fraction: float
    params: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def candidates(self) -> list[dict[str, Any]]:
        """The settings to choose from; a cut that leaves less than the fraction is skipped.

        >>> Setting(0.7, {"strata": 50}, {"mis_ratio": (0.2, 0.4)}).candidates()
        [{'strata': 50, 'mis_ratio': 0.2}]
        """
        tried = (
            dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())
        )
        return [
            {**self.params, **values}
            for values in tried
            if values.get("mis_ratio", 0) + self.fraction <= 1 + 1e-9
        ]


@dataclass(frozen=True)
class Method:
    """A selector as it enters a run.

    Attributes:
        name: in tables and figures.
        selector: registered name.
        settings: one per fraction.
        balanced: split the budget over the classes.
    """

    name: str
    selector: str
    settings: tuple[Setting, ...]
    balanced: bool = False

    @property
    def score(self) -> str | None:
        """The score that it selects by, if any."""
        chosen = next((s.params["score"] for s in self.settings if "score" in s.params), None)
        return chosen or (self.selector if self.selector in scores else None)


def methods_by_name(
    names: Iterable[str],
    fractions: Sequence[float],
    *,
    signals: Iterable[str] = EVERYTHING,
    final_pass: bool = True,
    passes: bool = False,
    score: str | None = None,
    params: Mapping[str, Mapping[str, Any]] | None = None,
    balanced: bool = False,
) -> list[Method]:
    """Selectors by name; ``selector:score`` selects by another score.

    Args:
        names: of registered selectors.
        fractions: shares to keep; ``full`` keeps everything once.
        signals: those that the flow makes.
        final_pass: whether the trained network's scores are among them.
        passes: whether scores that need another pass through the network can be made.
        score: for methods whose score can be chosen; None leaves each its own.
        params: parameters by selector: a value, or a table by fraction.
        balanced: split their budgets over the classes.

    Raises:
        BadInput: a selector needs something that the flow does not make.
        UnknownName: no such selector or score.
    """
    methods = []
    for name in names:
        selector, _, other = name.partition(":")
        entry = selectors.get(selector)
        if missing := set(entry.needs) - set(signals):
            raise BadInput(f"{name!r} needs {', '.join(sorted(missing))}, which this flow does not make.")
        takes_score = "score" in entry.parameters()
        if other and not takes_score:
            raise BadInput(f"{name!r}: {selector} does not select by a score of choice.")
        if other or (selector in scores and "scores" in entry.needs):  # or a selector named after its score
            check_score(other or selector, final_pass=final_pass, passes=passes)
        by = {"score": other or score} if takes_score and (other or score) else {}
        settings = []
        for fraction in (1.0,) if selector == "full" else fractions:
            at = {key: value_at(value, fraction) for key, value in (params or {}).get(selector, {}).items()}
            settings.append(
                Setting(fraction, by | {key: value for key, value in at.items() if value != "auto"})
            )
        methods.append(Method(name, selector, tuple(settings), balanced and selector != "full"))
    return methods


def check_score(score: str, *, final_pass: bool, passes: bool = False) -> None:
    """Refuse a score that neither the proxy's training gives nor, with ``passes``, another pass through it.

    Raises:
        BadInput: listing the scores that are recorded.
    """
    sources = {
        "dynamics",
        *(("logits", "residuals") if final_pass else ()),
        *(("network",) if passes else ()),
    }
    recorded = [entry.name for entry in scores if sources & set(entry.needs)]
    if score not in recorded:
        kind = "the proxy's training" if final_pass else "training dynamics"
        raise BadInput(f"score = {score!r} is not recorded from {kind}. Scores: {', '.join(recorded)}")
