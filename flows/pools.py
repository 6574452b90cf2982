"""A run on a pool of one's own: what it is, what is known of it, what a method needs to be made."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from winnow.flows import presets
from winnow.flows.experiment import Experiment, experiment
from winnow.tasks import lists
from winnow.tasks.artifacts import Artifact
from winnow.tasks.data.task import bring_already, bring_embeddings, bring_scores, load
from winnow.tasks.embed.task import knn
from winnow.tasks.errors import BadInput, UnknownName
from winnow.tasks.registry import datasets, selectors
from winnow.tasks.score.task import bring_logits
from winnow.tasks.select.budget import check_parameters

__all__ = ["Choice", "choice", "dataset_of"]


def dataset_of(pool: str) -> str:
    """The dataset that a pool's name stands for: a registered one, else the files of that name.

    Raises:
        UnknownName: neither.

    >>> dataset_of("digits"), dataset_of("s3://bucket/{000..009}.tar")
    ('digits', 'pool:s3://bucket/{000..009}.tar')
    """
    family, colon, _ = pool.partition(":")
    if colon and f"{family}:*" in datasets.names():
        return pool
    if os.path.exists(os.path.expanduser(pool)) or any(sign in pool for sign in "*{/"):
        return f"pool:{pool}"
    try:
        return datasets.get(pool).name
    except UnknownName as error:
        raise UnknownName(f"{pool} is neither a file or folder here nor a dataset. {error}") from error


def choice(arguments: Mapping[str, Any]) -> Choice:
    """A run of ``select``: its arguments, all checked before anything is read.

    Raises:
        BadInput: naming the parameter.
    """
    dataset = dataset_of(arguments["pool"])
    in_a_worker = "PREFECT__FLOW_RUN_ID" in os.environ
    for name in ("output", "link"):
        path = arguments[name]
        if path is not None and in_a_worker and not Path(path).expanduser().is_absolute():
            raise BadInput(
                f"{name} = {path}: a worker runs flows in a temporary folder.", remedy="give an absolute path"
            )
    if arguments["output"] is not None:
        lists.check_output(Path(arguments["output"]).expanduser(), arguments["output_format"])
    elif arguments["output_format"] is not None:
        raise BadInput("output_format is given, but no output.", remedy="pass output=FILE")
    method = selectors.get(arguments["method"])
    check_parameters(method, arguments["params"] or {}, upstream=arguments["upstream"])
    if arguments["scores"] is not None and arguments["logits"] is not None:
        raise BadInput("scores and logits are both given.", remedy="give one of them")
    base = experiment("select", {**arguments, "dataset": dataset})
    return Choice(**{field.name: getattr(base, field.name) for field in fields(base)})


@dataclass(frozen=True)
class Choice(Experiment):
    """A run of ``select``."""

    def samples(self) -> Artifact:
        """The pool, with labels where it has any."""
        options = self.values["dataset_options"]
        pool = load(self.dataset, "train", options=options)
        return load(self.dataset, "train", labels=True, options=options) if pool.facts["labelled"] else pool

    def before(self, samples: Artifact) -> Artifact | None:
        """What is there already; with it, the budget must fit the pool.

        Raises:
            BadInput: it does not, or the selection would not fit into memory.
        """
        from winnow.tasks.select.allocation import check_fits
        from winnow.tasks.select.budget import check_room, check_size, count

        file, params, n = self.values["already"], self.params(samples), samples.rows
        before = None if file is None else bring_already(samples, file)
        budget = count(self.values["budget"], n)
        check_room(budget, n, 0 if before is None else before.rows)
        check_fits(n, budget, params.get("mis_ratio") or 0.0)
        if not self.values["balanced"]:
            check_size(selectors.get(self.values["method"]), n, budget, params)
        return before

    def params(self, samples: Artifact) -> dict[str, Any]:
        """Parameters of the selector, with the flow's score and upstream; a large pool's kernel is sparse."""
        balanced = self.values["balanced"]
        kernels = presets.kernels_of(samples.rows, balanced=balanced, upstream=self.upstream)
        params = {**kernels.get(self.values["method"], {}), **(self.values["params"] or {})}
        accepted = selectors.get(self.values["method"]).parameters(upstream=self.upstream)
        if "score" in accepted and "score" not in params:
            params["score"] = self.values["score"]
        return {**params, **({"upstream": True} if self.upstream else {})}

    def choice(self, samples: Artifact) -> dict[str, Any]:
        """The selection itself, for its receipt."""
        names = ("method", "budget", "seed", "balanced")
        return {**{name: self.values[name] for name in names}, "params": self.params(samples)}

    def signals(self, samples: Artifact) -> dict[str, Any]:
        """What the method reads: brought by the user, else made."""
        method, values = selectors.get(self.values["method"]), self.values
        needs, wanted = set(method.needs), {*method.needs, *method.uses}
        if values["balanced"]:
            needs.add("labels")
        signals: dict[str, Artifact] = {}
        if values["embeddings"] is not None:
            signals["embeddings"] = bring_embeddings(samples, values["embeddings"])
        if values["scores"] is not None:
            signals["scores"] = bring_scores(samples, values["scores"])
        dynamics = "scores" in needs and "scores" not in signals and values["logits"] is None
        trained = bool(needs & {"probabilities", "residuals"})
        known = "labels" in wanted and samples.facts["labelled"]
        if known or "labels" in needs or dynamics or trained or values["logits"] is not None:
            signals["labels"] = self._labels(samples)
        if values["logits"] is not None:
            signals["scores"] = bring_logits(samples, signals["labels"], values["logits"])
        if dynamics or trained:
            recorded = self.record(samples, signals["labels"], final_pass=trained)
            signals = {**recorded.signals, **signals}
        if "features" in wanted and "embeddings" not in signals and "graph" not in signals:
            signals["embeddings"] = self.embeddings(samples)
        if method.name != "d2" and "graph" in wanted and (k := self.params(samples).get("neighbours")):
            signals["graph"] = knn(signals["embeddings"], k, device=self.device)
        reads = {"features": "embeddings", "probabilities": "logits", "residuals": "logits"}
        names = {reads.get(name, name) for name in {*wanted, *needs}}
        names |= {"labels"} if "residuals" in wanted else set()
        return {name: artifact for name, artifact in signals.items() if name in names}

    def shown(self, signals: Mapping[str, Artifact]) -> dict[str, Any]:
        """The signals that reasons are told from."""
        return {name: signals[name] for name in ("scores", "embeddings") if name in signals}

    def _labels(self, samples: Artifact) -> Artifact:
        """The pool's own labels, else pseudo-labels."""
        if self.values["pseudo_labels"] is None and samples.facts["labelled"]:
            return samples
        if self.values["pseudo_labels"] is None and self.values["clusters"] is None:
            raise BadInput(
                f"{self.values['method']} needs labels or pseudo-labels, and {self.dataset} has no labels.",
                remedy="pass clusters=<about as many as there are classes>, or labels in a file: "
                "-p dataset_options.labels=FILE",
            )
        return self.pseudo_labels(samples).labels
