"""Checks before the first step: what can be known to be wrong by then is refused."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from pydantic import BaseModel, ValidationError

from winnow.flows.forms import NESTED
from winnow.flows.methods import Method
from winnow.tasks import upkeep
from winnow.tasks.artifacts import Artifact
from winnow.tasks.errors import BadInput, MissingLabels, StoreUnusable, did_you_mean
from winnow.tasks.registry import datasets, embedders, networks, selectors
from winnow.tasks.store import store

__all__ = ["arguments", "fits", "model", "storage", "table"]

log = logging.getLogger("winnow.flows.checks")

FILES = ("embeddings", "pseudo_labels", "scores", "logits", "already")


def storage() -> None:
    """Refuse a store that cannot be used or would vanish with the run; warn of content that is not read.

    Raises:
        StoreUnusable: with a one-line reason.
    """
    in_a_worker = "PREFECT__FLOW_RUN_ID" in os.environ
    if in_a_worker and not os.environ.get("WINNOW_STORE") and Path(store().root).is_relative_to(gettempdir()):
        raise StoreUnusable(
            f"WINNOW_STORE is not set, and {store().root} is deleted after the run: a worker runs flows in a "
            "temporary folder.",
            remedy="set WINNOW_STORE where the worker is started, and start the run again",
        )
    store().check()
    what, remedy = upkeep.outdated()
    if what:
        log.warning("%s %s.", what, remedy)


def arguments(given: Mapping[str, Any]) -> None:
    """Check the dataset, fractions, seeds, device, embedder and files of any flow.

    Raises:
        BadInput: naming the parameter.
        UnknownName: no such dataset or embedder.
    """
    from winnow.tasks import hardware

    datasets.get(given["dataset"])
    if given["device"] not in ("auto", "cpu"):  # always there: a fully cached run need not load torch
        hardware.device(given["device"])
    for name, example in (("fractions", "[0.1]"), ("seeds", "[0]")):
        if name not in given:
            continue
        values = list(given[name])
        if not values:
            raise BadInput(f"{name} is empty.", remedy=f"give at least one, for example {name}={example}")
        if len(set(values)) != len(values):
            raise BadInput(f"{name} names {next(v for v in values if values.count(v) > 1)} twice.")
    files = {name: given[name] for name in FILES if given.get(name) is not None}
    if "pseudo_labels" in files and given.get("labels") == "true":
        raise BadInput(
            "pseudo_labels is given, but labels = 'true'.",
            remedy="pass labels=pseudo to select without true labels",
        )
    for name, path in files.items():
        file = path.partition("#")[0]  # path#name picks one of its arrays
        if "://" not in file and not Path(file).expanduser().exists():
            raise BadInput(f"{name}: {path}: no such file.", remedy="give the path of a file of arrays")
    if given.get("embedder") is not None:
        embedders.get(given["embedder"])
        if "embeddings" in files:
            raise BadInput("embedder and embeddings are both given.", remedy="give one of them")


def table(name: str, value: Any, fractions: Iterable[float], published: Any) -> None:
    """Refuse a row for a fraction that is not kept, unless it is a published one.

    Raises:
        BadInput: naming parameter and fraction.
    """
    in_preset = {(at.fraction, at.value) for at in published or ()}
    for at in value if isinstance(value, list) else ():
        if (at.fraction, at.value) in in_preset or any(math.isclose(at.fraction, f) for f in fractions):
            continue
        kept = ", ".join(f"{fraction:g}" for fraction in fractions)
        raise BadInput(
            f"{name} is given for fraction {at.fraction:g}, which is not among the fractions {kept}."
        )


def model(name: str, values: Mapping[str, Any]) -> Any:
    """The recipe that a nested parameter describes.

    Raises:
        BadInput: naming the field.
        UnknownName: no such network.
    """
    kind: type[BaseModel] = NESTED[name]
    if unknown := sorted(set(values) - set(kind.model_fields)):
        raise BadInput(
            f"{name} has no field {unknown[0]!r}.{did_you_mean(unknown[0], kind.model_fields)} "
            f"Fields: {', '.join(kind.model_fields)}"
        )
    if "network" in values:
        networks.get(values["network"])
    try:
        return kind(**values)
    except ValidationError as error:  # pydantic's first reason, without its URL
        reason = error.errors()[0]
        where = ".".join(map(str, (name, *reason["loc"])))
        raise BadInput(f"{where}: {reason['msg'].removeprefix('Value error, ')}.") from error


def fits(train: Artifact, methods: Iterable[Method], *, clusters: int | None, neighbours: int) -> None:
    """Refuse what does not fit the data, before anything is trained for it.

    Args:
        train: the samples.
        methods: those that will select.
        clusters: their number; None is the number of classes.
        neighbours: k of the flow's kNN graph, 0 where there is none.

    Raises:
        BadInput: k ≥ N; a cut and a budget that do not fit together; a selection that would not fit into
            memory (classes of equal size are assumed where budgets are balanced).
        MissingLabels: there is nothing to annotate the coreset with.
    """
    from winnow.tasks.select.allocation import check_fits
    from winnow.tasks.select.budget import check_size, count

    n = train.rows
    if not train.facts["labelled"]:
        raise MissingLabels(
            f"{train.notes['dataset']}/train has no labels to annotate a coreset with.",
            remedy="run the flow on labelled data: the coreset is annotated and trained on to be compared",
        )
    if not 2 <= (clusters or train.facts["classes"]) <= n:
        raise BadInput(
            f"clusters = {clusters} for {n} samples.",
            remedy="pass 2 or more clusters, at most one per sample",
        )
    if neighbours >= n:
        raise BadInput(f"neighbours = {neighbours} of {n} samples.", remedy=f"pass neighbours <= {n - 1}")
    for method, setting in ((m, setting) for m in methods for setting in m.settings):
        budget = count(setting.fraction, n)
        check_fits(n, budget, setting.params.get("mis_ratio", 0.0))
        parts = train.facts["classes"] if method.balanced else 1
        entry, share = selectors.get(method.selector), max(1, budget // parts)
        try:
            check_size(entry, n // parts, share, dict(setting.params))
        except BadInput as error:
            raise type(error)(
                f"{method.name} at {setting.fraction:g} kept: {error.what}", remedy=error.remedy
            ) from error
