"""From trials to means, spreads, paired differences and ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

from winnow.tasks.errors import BadInput

__all__ = ["Accuracy", "mean_ranks", "methods", "summarise"]

Accuracy = Literal["last", "best"]
LEVEL = 0.05  # a p below this is called a difference
WHOLE = 1.0 - 1e-9  # fractions above this are the whole dataset
_KINDS: tuple[Accuracy, ...] = ("last", "best")


def methods(trials: Sequence[Mapping[str, Any]], baseline: str = "random") -> list[str]:
    """Methods in the order of tables and legends: the baseline, the others in their order, ``full`` last."""
    names = dict.fromkeys(str(trial["method"]) for trial in trials)
    return sorted(names, key=lambda name: (name == "full", name != baseline))


def summarise(trials: Sequence[Mapping[str, Any]], *, baseline: str = "random") -> list[dict[str, Any]]:
    r"""Mean, spread and paired difference from a baseline, for each method at each fraction.

    With accuracies :math:`a_s` and the baseline's :math:`b_s` on their common seeds :math:`s`, the difference
    is :math:`\bar d = \frac1n \sum_s (a_s - b_s)`, its sd has :math:`n - 1` in the denominator, and p is that
    of the two-sided paired t-test, :math:`t = \bar d \sqrt n / \mathrm{sd}(d)`. A baseline that was trained
    on the whole dataset only (``full``, or a hiding run that hides nothing) is compared with every fraction.

    Args:
        trials: one mapping per training run with ``method``, ``fraction`` (kept), ``seed``, ``last_accuracy``
            and ``best_accuracy`` (fractions in [0, 1]), and, where known, ``samples``, ``seconds`` and
            ``selection_seconds``.
        baseline: the method to compare with.

    Returns:
        One dict per method and fraction, the baseline first, ``full`` last and fractions ascending:
        ``method, fraction, n, samples, seconds, selection_seconds`` (means), ``last_mean, last_sd,
        best_mean, best_sd``, ``baseline`` (None where there is none to compare with), ``pairs`` (common
        seeds), and ``last_difference, last_difference_sd, last_p`` and the same for best. What does not
        exist is None: the sd of one value, the p of fewer than two pairs or of differences without spread.

    Raises:
        BadInput: no trials, a missing or impossible value, or the same method, fraction and seed twice.

    >>> runs = [("random", 0, 0.90), ("random", 1, 0.92), ("elfs", 0, 0.93), ("elfs", 1, 0.94)]
    >>> trials = [
    ...     dict(method=m, fraction=0.1, seed=s, last_accuracy=a, best_accuracy=a) for m, s, a in runs
    ... ]
    >>> rows = summarise(trials)
    >>> [row["method"] for row in rows], round(rows[1]["last_difference"], 4), round(rows[1]["last_p"], 4)
    (['random', 'elfs'], 0.025, 0.1257)
    """
    _check(trials)
    cells: dict[tuple[str, float], dict[Any, Mapping[str, Any]]] = {}
    for trial in trials:
        name, fraction, seed = _key(trial)
        cells.setdefault((name, fraction), {})[seed] = trial
    baselines = [fraction for name, fraction in cells if name == baseline]
    only_whole = len(baselines) == 1 and baselines[0] > WHOLE
    order = methods(trials, baseline)
    rows = []
    for (name, fraction), runs in sorted(
        cells.items(), key=lambda cell: (order.index(cell[0][0]), cell[0][1])
    ):
        row: dict[str, Any] = {"method": name, "fraction": fraction, "n": len(runs)}
        for quantity in ("samples", "seconds", "selection_seconds"):
            measured = [run[quantity] for run in runs.values() if run.get(quantity) is not None]
            row[quantity] = float(np.mean(measured)) if measured else None
        against = baselines[0] if only_whole else fraction
        rivals = {} if name == baseline else cells.get((baseline, against), {})
        common = [seed for seed in runs if seed in rivals]
        row["baseline"] = baseline if rivals else None
        row["pairs"] = len(common)
        for kind in _KINDS:
            key = f"{kind}_accuracy"
            values = np.array([run[key] for run in runs.values()], np.float64)
            row[f"{kind}_mean"], row[f"{kind}_sd"] = float(values.mean()), _spread(values)
            ours = np.array([runs[seed][key] for seed in common], np.float64)
            differences = ours - np.array([rivals[seed][key] for seed in common], np.float64)
            spread = _spread(differences)
            row[f"{kind}_difference"] = float(differences.mean()) if common else None
            row[f"{kind}_difference_sd"] = spread
            # where differences agree up to rounding, t would be 0/0 or rounding noise
            row[f"{kind}_p"] = _paired_p(differences) if spread is not None and spread > 1e-12 else None
        rows.append(row)
    return rows


def _key(trial: Mapping[str, Any]) -> tuple[str, float, Any]:
    """Method, fraction and seed: what tells trials apart."""
    return str(trial["method"]), round(float(trial["fraction"]), 9), trial["seed"]


def _spread(values: NDArray[np.float64]) -> float | None:
    return float(values.std(ddof=1)) if len(values) > 1 else None


def _paired_p(differences: NDArray[np.float64]) -> float:
    """Two-sided p of a paired t-test; importing scipy.stats would take as long as running a cached flow."""
    t = differences.mean() / (differences.std(ddof=1) / np.sqrt(len(differences)))
    return float(2 * stdtr(len(differences) - 1, -abs(t)))


def _check(trials: Sequence[Mapping[str, Any]]) -> None:
    if not trials:
        raise BadInput(
            "trials is empty: there is no training run to report.", remedy="train on at least one coreset"
        )
    seen: dict[tuple[str, float, Any], int] = {}
    for i, trial in enumerate(trials):
        for name in ("method", "fraction", "seed", "last_accuracy", "best_accuracy"):
            if trial.get(name) is None:
                has = ", ".join(map(str, trial)) or "nothing"
                raise BadInput(f"trials[{i}] has no {name!r}; it has {has}.")
        if not 0 < trial["fraction"] <= 1:
            raise BadInput(f"trials[{i}]: fraction is {trial['fraction']!r}, not in (0, 1].")
        for name in ("last_accuracy", "best_accuracy"):
            if not 0 <= trial[name] <= 1:
                raise BadInput(
                    f"trials[{i}]: {name} is {trial[name]!r}, not in [0, 1].",
                    remedy="give accuracies as fractions: 0.931, not 93.1",
                )
        method, fraction, seed = key = _key(trial)
        if key in seen:
            raise BadInput(
                f"trials[{i}] repeats trials[{seen[key]}]: method {method!r}, fraction {fraction:g}, "
                f"seed {seed}.",
                remedy="give variants of a method names of their own, for example 'elfs (mis_ratio 0.3)'",
            )
        seen[key] = i


def mean_ranks(trials: Sequence[Mapping[str, Any]], *, accuracy: Accuracy = "last") -> dict[str, float]:
    """Rank of each method, 1 the best, averaged over fractions and seeds; ties share their mean rank.

    ``full``, and anything else trained on the whole dataset only, has no rank.

    >>> runs = [("random", 0.90), ("d2", 0.92), ("elfs", 0.92)]
    >>> mean_ranks([dict(method=m, fraction=0.1, seed=0, last_accuracy=a, best_accuracy=a) for m, a in runs])
    {'random': 3.0, 'd2': 1.5, 'elfs': 1.5}
    """
    _check(trials)
    races: dict[tuple[float, Any], dict[str, float]] = {}
    for trial in trials:
        if trial["fraction"] < WHOLE:
            method, fraction, seed = _key(trial)
            races.setdefault((fraction, seed), {})[method] = trial[f"{accuracy}_accuracy"]
    ranks: dict[str, list[float]] = {}
    for race in races.values():
        values = np.array(list(race.values()))
        for method, value in race.items():
            better, equal = (values > value).sum(), (values == value).sum()
            ranks.setdefault(method, []).append(float(better + (equal + 1) / 2))
    return {method: float(np.mean(those)) for method, those in ranks.items()}
