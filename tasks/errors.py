"""Errors that a user can act on: what failed, what is kept, the next command."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "ArtifactCorrupt",
    "BadInput",
    "DeviceUnavailable",
    "MissingData",
    "MissingLabels",
    "MissingSignal",
    "StoreUnusable",
    "TooLarge",
    "UnknownName",
    "WinnowError",
    "did_you_mean",
]


class WinnowError(Exception):
    """Base of Winnow's own errors.

    Args:
        what: what failed, naming the argument, file or row.
        kept: what is safe on disk and will be reused; empty where nothing was computed yet.
        remedy: the next command or change that fixes it.

    >>> print(WinnowError("k = 12 neighbours of 10 samples.", remedy="pass k <= 9"))
    k = 12 neighbours of 10 samples.
      next: pass k <= 9
    """

    __module__ = "winnow"  # where users find them

    def __init_subclass__(cls) -> None:
        if cls.__module__ == __name__:
            cls.__module__ = "winnow"

    def __init__(self, what: str, *, kept: str = "", remedy: str = "") -> None:
        self.what, self.kept, self.remedy = what, kept, remedy
        lines = [what] + [f"  {name}: {text}" for name, text in (("kept", kept), ("next", remedy)) if text]
        super().__init__("\n".join(lines))

    def __reduce__(self):  # keyword arguments survive pickling between processes
        return (_rebuild, (type(self), self.what, self.kept, self.remedy))

    def __str__(self) -> str:  # KeyError would show the repr
        return str(self.args[0])


def _rebuild(kind: type[WinnowError], what: str, kept: str, remedy: str) -> WinnowError:
    return kind(what, kept=kept, remedy=remedy)


class BadInput(WinnowError, ValueError):
    """An argument, parameter or array that cannot be worked with; nothing was computed.

    >>> import numpy as np
    >>> import winnow
    >>> winnow.select(np.eye(3), method="k_center", budget=1.5)
    Traceback (most recent call last):
    winnow.BadInput: fraction = 1.5 is outside (0, 1].
      next: the fraction is the share that is kept: 0.1 keeps 10 %
    """


class UnknownName(BadInput, KeyError):
    """A name that no registry entry has.

    >>> from winnow.tasks.registry import Entry, Registry
    >>> selectors = Registry("selector", Entry)
    >>> selectors.add("d2", ".d2:d2")
    >>> selectors.get("d3")
    Traceback (most recent call last):
    winnow.UnknownName: 'd3' is not a selector. Did you mean 'd2'? Available: d2
    """


class MissingSignal(BadInput):
    """A selector needs a signal (labels, features, a graph, …) that the caller did not give.

    >>> import winnow
    >>> winnow.select(winnow.Signals(n=3), method="k_center", budget=1)
    Traceback (most recent call last):
    winnow.MissingSignal: k_center needs features; none is given.
      next: give embeddings (`winnow ls embedders`) or penultimate features
    """


class TooLarge(BadInput):
    """Work that does not fit into memory or on the disk.

    >>> issubclass(TooLarge, BadInput)
    True
    """


class MissingLabels(BadInput):
    """A labelled method was asked to work on unlabelled data.

    >>> issubclass(MissingLabels, BadInput)
    True
    """


class MissingData(WinnowError, FileNotFoundError):
    """A dataset or weights file that is neither on disk nor downloadable from here.

    >>> issubclass(MissingData, FileNotFoundError)
    True
    """


class DeviceUnavailable(WinnowError, RuntimeError):
    """The requested device is not there.

    >>> from winnow.tasks.hardware import device
    >>> device("cuda:99")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    winnow.DeviceUnavailable: device=cuda:99: no such GPU (...).
      next: `winnow doctor` shows what torch sees; device=cpu always works
    """


class ArtifactCorrupt(WinnowError):
    """A stored file whose content is not what its digest says; the cache recomputes it.

    >>> print(ArtifactCorrupt("objects/8b is cut off.", remedy="run the same command again"))
    objects/8b is cut off.
      next: run the same command again
    """


class StoreUnusable(WinnowError):
    """The artifact store cannot be written: full disk, no permission, read-only.

    >>> print(StoreUnusable("/data: no space left.", kept="all finished steps"))
    /data: no space left.
      kept: all finished steps
    """


def did_you_mean(name: object, choices: Iterable[str]) -> str:
    """The choices nearest to a name, as a sentence with a leading space; empty if none is near.

    >>> did_you_mean("tset", ["train", "test"])
    " Did you mean 'test'?"
    """
    import difflib

    close = difflib.get_close_matches(str(name), list(choices), n=3, cutoff=0.5)
    nearness = [difflib.SequenceMatcher(None, other, str(name)).ratio() for other in close]
    close = [other for other, ratio in zip(close, nearness, strict=True) if ratio > nearness[0] - 0.05]
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
