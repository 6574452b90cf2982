"""The front door to datasets: a name, a split and options give a Split."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from winnow.tasks.data.fetch import UNVERIFIED
from winnow.tasks.data.split import Split
from winnow.tasks.errors import BadInput, did_you_mean
from winnow.tasks.hardware import data_root
from winnow.tasks.registry import datasets

__all__ = ["candidates", "check_count", "check_split", "data_folder", "load_split", "options_of"]

_RESERVED = {"split", "variant"}


def options_of(name: str) -> dict[str, Any]:
    """Options of a dataset with their defaults.

    Raises:
        UnknownName: no such dataset.

    >>> options_of("cifar10")["verify"]
    True
    """
    parameters = inspect.signature(datasets.get(name).function).parameters
    return {key: parameter.default for key, parameter in parameters.items() if key not in _RESERVED}


def load_split(name: str, split: str = "train", **options: Any) -> Split:
    """Load one split of a dataset.

    Args:
        name: a registered name, for example ``cifar10`` or ``imagefolder:/path``.
        split: ``train``, ``test`` or one of the dataset's own.
        options: ``root`` (default: the data root), ``download`` (default True; ``WINNOW_OFFLINE=1`` forbids
            it) and the dataset's own.

    Raises:
        UnknownName: no such dataset.
        BadInput: no such split or option, or damaged files.
        MissingData: files are missing and cannot be fetched.

    >>> split = load_split("digits", "test")
    >>> len(split), split.images.shape
    (355, (8, 8, 1))
    """
    accepted = options_of(name)
    for option in options:
        if option not in accepted:
            raise BadInput(
                f"{name} has no option {option!r}.{did_you_mean(option, accepted)} Options: "
                f"{', '.join(sorted(accepted))}."
            )
    return datasets.get(name)(split=split, **options)


def data_folder(root: Path | str | None) -> Path:
    """``root``, else the data root; absolute."""
    return data_root() if root is None else Path(root).expanduser().absolute()


def candidates(path: str, root: Path | None) -> list[Path]:
    """Where a user's path may lead; a relative one under ``root`` or the working folder."""
    wanted = Path(path).expanduser()
    return [wanted] if wanted.is_absolute() else [data_folder(root) / wanted, wanted.absolute()]


def check_split(name: str, split: str, splits: Iterable[str] | None = None) -> None:
    """Refuse a split that the dataset does not have.

    Raises:
        BadInput: naming the splits.

    >>> check_split("cifar10", "tset")
    Traceback (most recent call last):
    winnow.BadInput: cifar10 has no split 'tset'. Did you mean 'test'? Splits: train, test.
    """
    offered = list(datasets.get(name).splits if splits is None else splits)
    if split not in offered:
        raise BadInput(
            f"{name} has no split {split!r}.{did_you_mean(split, offered)} Splits: {', '.join(offered)}."
        )


def check_count(name: str, split: str, found: int, folder: Path, *, expected: int | None = None) -> None:
    """Refuse a published split with missing images, as an interrupted unpacking leaves it.

    Raises:
        BadInput: with both numbers.
    """
    expected = datasets.get(name).samples[split] if expected is None else expected
    if found != expected:
        raise BadInput(
            f"{name}/{split}: {found:,} images in {folder}, the published split has {expected:,}.",
            remedy=f"unpack or fetch it again (an interrupted run leaves a part), or pass {UNVERIFIED} to "
            "use what is there",
        )
