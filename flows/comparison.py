"""Comparisons of selectors: who takes part with which parameters, and what each of them reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from winnow.flows import presets
from winnow.flows.experiment import Experiment, Recorded
from winnow.flows.methods import Method, methods_by_name
from winnow.flows.trials import Entrant, trials
from winnow.tasks.artifacts import Artifact
from winnow.tasks.errors import BadInput
from winnow.tasks.hardware import child_seed
from winnow.tasks.registry import scores, selectors
from winnow.tasks.report.task import draw_comparison, publish
from winnow.tasks.score.task import add_score, average_score, takes_a_pass

__all__ = ["comparison", "contest"]


def contest(run: Experiment, names: Sequence[str], params: Mapping[str, Mapping[str, Any]]) -> list[Method]:
    """The methods of a comparison, with the presets' parameters overridden by the user's.

    If the run is ``upstream``, the published code of methods that have such a mode is replayed.

    Args:
        names: selectors; ``selector:score`` for another score.
        params: the user's, by selector.

    Raises:
        BadInput: no names, or one twice; parameters for a method that does not take part, or that it does
            not have.
    """
    if not names:
        raise BadInput("methods is empty.", remedy='give at least one, for example methods=["random", "d2"]')
    if twice := [name for name in names if list(names).count(name) > 1]:
        raise BadInput(f"methods names {twice[0]!r} twice.")
    taking_part = {name.partition(":")[0] for name in names}
    if stray := sorted(set(params) - taking_part):
        raise BadInput(f"params names {stray[0]!r}, which is not among the methods {', '.join(names)}.")
    balanced = bool(run.values["balanced"])
    published = presets.selectors_of(run.dataset, balanced=balanced, upstream=run.upstream)
    chosen = {
        name: {**_replay(run, name, params.get(name, {})), **published.get(name, {}), **params.get(name, {})}
        for name in taking_part
    }
    fractions = run.values["fractions"]
    return methods_by_name(names, fractions, passes=True, params=chosen, balanced=balanced)


def _replay(run: Experiment, name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters that replay a selector's published code, which may need the proxy's batch size."""
    from winnow.tasks.select.budget import check_parameters

    entry = selectors.get(name)
    replay = run.upstream and entry.replays
    check_parameters(entry, params, upstream=replay)
    if not replay:
        return {}
    batch = {"batch": run.proxy.batch_size} if "batch" in entry.parameters(upstream=True) else {}
    return {"upstream": True, **batch}


def comparison(
    run: Experiment, title: str, name: str, methods: Sequence[Method], *, normalised: bool = True
) -> Artifact:
    """Every method at every fraction on shared artifacts, with the whole pipeline anew for each seed.

    All methods of a seed read the same proxy's labels, features, residuals, probabilities and dynamics, with
    three exceptions: methods whose paper selects with pseudo-labels read a proxy trained on those; scores
    that need it, another pass of the trained network over all images; averaged scores, the mean over
    ``repeats`` proxies.
    """
    train, test = run.load(*methods)
    batch = run.proxy.batch_size if run.upstream else None
    entrants, histories = [], []
    for seed in run.values["seeds"]:
        seeded = run.seeded(seed)
        shared = seeded.record(train, seeded.true_labels(), normalised=normalised, grand_batch=batch)
        histories.append(shared.history)
        signals: dict[str | None, dict[str, Artifact]] = {None: shared.signals}
        for method in methods:
            source = _source(run, method)
            if source is not None and source not in signals:
                signals[source] = _signals(
                    seeded, source, train, shared, normalised=normalised, grand_batch=batch
                )
            entrants.append(Entrant(method, signals[source], (seed,), seed))
    results = trials(train, test, entrants, run.training, run.device)
    order = [method.name for method in methods]
    drawn = draw_comparison(
        run.dataset,
        train,
        trials=sorted(results, key=lambda trial: order.index(trial["method"])),
        histories=[{"seed": s, "history": h} for s, h in zip(run.values["seeds"], histories, strict=True)],
    )
    chosen = [
        {"method": method.name, "fraction": s.fraction, "params": dict(s.params)}
        for method in methods
        for s in method.settings
    ]
    return publish(name, run.titled(title), train, drawn, chosen, run.settings())


def _source(run: Experiment, method: Method) -> str | None:
    """What a method reads that others do not: ``pseudo`` labels, or a score by name."""
    if selectors.get(method.selector).labels == "pseudo":
        return "pseudo"
    score = method.score
    if score is None:
        return None
    averaged = scores.get(score).averaged and run.values["repeats"] > 1
    return score if takes_a_pass(score) or averaged else None


def _signals(
    run: Experiment, source: str, train: Artifact, shared: Recorded, **options: Any
) -> dict[str, Artifact]:
    """The signals of a source; see ``comparison``."""
    if source == "pseudo":
        return run.record(train, run.pseudo_labels(train).labels, final_pass=False).signals
    labels = shared.signals["labels"]
    repeats = run.values["repeats"] if scores.get(source).averaged else 1
    again = (run.seeded(child_seed(run.seed, "repeat", str(i))) for i in range(1, repeats))
    proxies = [shared, *(other.record(train, labels, **options) for other in again)]
    measured = [proxy.signals["scores"] for proxy in proxies]
    if takes_a_pass(source):
        measured = [
            add_score(train, labels, before, proxy.network, run.proxy, source, device=run.device)
            for before, proxy in zip(measured, proxies, strict=True)
            if proxy.network is not None
        ]
    mean = measured[0] if len(measured) == 1 else average_score(measured, source)
    return {**shared.signals, "scores": mean}
