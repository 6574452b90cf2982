"""The flows' parameters: their types, which Prefect's UI turns into a form, and what they mean."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from winnow.tasks.errors import BadInput
from winnow.tasks.train.recipe import HeadsConfig, Recipe

__all__ = [
    "NESTED",
    "At",
    "Fraction",
    "Gamma",
    "Heads",
    "MisRatio",
    "Neighbours",
    "Positive",
    "Seed",
    "Share",
    "Training",
    "explained",
    "merged",
    "rows",
    "value_at",
]

Fraction = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Width = Annotated[float, Field(ge=0)]
Auto = Literal["auto"]

Value = TypeVar("Value")
F = TypeVar("F", bound=Callable[..., Any])


class At(BaseModel, Generic[Value]):
    """A parameter's value at one fraction."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    fraction: Fraction
    """Share of the samples kept."""
    value: Value | Auto
    """The parameter's value there; auto: searched."""


def rows(value: Any) -> Any:
    """A table by fraction as rows, which forms can show.

    >>> rows({"0.1": 0.4})
    [{'fraction': '0.1', 'value': 0.4}]
    """
    if isinstance(value, Mapping):
        return [{"fraction": fraction, "value": inner} for fraction, inner in value.items()]
    return value


_ROWS = BeforeValidator(rows)
MisRatio = Share | Auto | Annotated[list[At[Share]], _ROWS]
Neighbours = Positive | Auto | Annotated[list[At[Positive]], _ROWS]
Gamma = Width | Auto | Annotated[list[At[Width]], _ROWS]


def value_at(value: Any, fraction: float) -> Any:
    """A parameter's value at a fraction: a number, or ``"auto"`` where it is to be searched.

    >>> value_at([At(fraction=0.1, value=0.4)], 0.1), value_at(0.2, 0.1), value_at(None, 0.1)
    (0.4, 0.2, 'auto')
    """
    if isinstance(value, list):
        return next((at.value for at in value if math.isclose(at.fraction, fraction)), "auto")
    return "auto" if value is None else value


def _changes(model: type[BaseModel], *, without: Iterable[str] = ()) -> Any:
    """The type of a parameter that sets some fields of a model; a form shows all of them."""
    schema = model.model_json_schema()
    properties = {name: field for name, field in schema["properties"].items() if name not in set(without)}
    return Annotated[
        dict[str, Any], WithJsonSchema({"type": "object", "title": model.__name__, "properties": properties})
    ]


NESTED: dict[str, type[BaseModel]] = {"heads": HeadsConfig, "proxy": Recipe, "training": Recipe}
Training = _changes(Recipe)
Heads = _changes(HeadsConfig, without=["neighbours"])  # the graph's


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters overridden by others; in a nested one, only the fields that are named.

    A training's length in epochs replaces one in iterations, and vice versa.

    >>> merged({"seed": 0, "training": {"lr": 0.1, "epochs": 9}}, {"training": {"iterations": 300}})
    {'seed': 0, 'training': {'lr': 0.1, 'iterations': 300}}

    Raises:
        BadInput: both lengths are given.
    """
    result = dict(base)
    for name, value in changes.items():
        if name not in NESTED or not isinstance(value, Mapping):
            result[name] = value
            continue
        named = {key: inner for key, inner in value.items() if inner is not None}
        length = {"epochs", "iterations"} & set(named)
        if NESTED[name] is Recipe and len(length) == 2:
            raise BadInput(
                f"{name}: iterations and epochs are both given.", remedy="give its length in one of them"
            )
        replaced = {"epochs", "iterations"} if NESTED[name] is Recipe and length else set()
        kept = {key: inner for key, inner in dict(base.get(name) or {}).items() if key not in replaced}
        result[name] = {**kept, **named}
    return result


COMMON = {
    "dataset": "Registered dataset, or imagefolder:PATH, webdataset:PATTERN, pool:PATH.",
    "fractions": "Shares of the samples to keep.",
    "seeds": "Seeds of the trainings on each coreset, and of the random baseline's draws.",
    "pseudo_labels": "Your own pseudo-labels (.parquet, .npy, .npz, .csv, …) in place of cluster heads.",
    "embeddings": "Your own embeddings (.parquet, .npy, .npz, .pt, …) in place of an embedder.",
    "balanced": "Give each class its share of the budget.",
    "mis_ratio": (
        "Share of hardest samples (by AUM) to drop: a number, one per fraction, or auto (searched). None: "
        "the preset's, else auto."
    ),
    "search_seeds": "Trainings per setting that the search tries.",
    "search_iterations": "Steps of each of these trainings; None: as many as on the coresets.",
    "baselines": "Selectors to compare with; selector:score for another score.",
    "proxy": "Training of the network whose dynamics, scores and features are recorded.",
    "training": "Training on the coresets.",
    "dataset_options": 'Options of the dataset, for example {"verify": false}.',
    "device": "auto, cpu, cuda or cuda:<index>.",
    "seed": "Seed of everything before the trainings on the coresets.",
}


def explained(flow: F) -> F:
    """Complete the Args of a flow's docstring with ``COMMON``, which explains shared parameters once.

    >>> @explained
    ... def toy(dataset: str, size: int) -> None:
    ...     '''A flow.
    ...
    ...     Args:
    ...         size: In pixels.
    ...     '''
    >>> print(toy.__doc__)
    A flow.
    <BLANKLINE>
    Args:
        dataset: Registered dataset, or imagefolder:PATH, webdataset:PATTERN, pool:PATH.
        size: In pixels.
    """
    before, args, after = (inspect.getdoc(flow) or "").partition("Args:\n")
    section, blank, rest = after.partition("\n\n")
    entries: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \w)", section):
        entries[entry.strip().partition(":")[0]] = entry
    lines = [
        entries.get(name) or f"    {name}: {COMMON[name]}" for name in inspect.signature(flow).parameters
    ]
    flow.__doc__ = before + args + "\n".join(lines) + blank + rest
    return flow
