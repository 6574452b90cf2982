"""What the shell completes: names, found without loading anything that computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from winnow.flows import FLOWS, catalogue
from winnow.tasks import registry

__all__ = ["datasets", "embedders", "kinds", "runnable", "selectors"]


def _beginning(incomplete: str, names: Callable[[], Iterable[str]]) -> list[str]:
    """Those that begin like this; none where they cannot be listed, since nobody reads an error here."""
    try:
        return [name for name in names() if name.startswith(incomplete)]
    except Exception:
        return []


def runnable(incomplete: str) -> list[str]:
    """Deployments and flows.

    >>> runnable("elfs/d")
    ['elfs/digits']
    """
    return _beginning(incomplete, lambda: [*catalogue.deployments(), *FLOWS])


def kinds(incomplete: str) -> list[str]:
    """What `winnow ls` lists.

    >>> kinds("s")
    ['scores', 'selectors']
    """
    return _beginning(incomplete, lambda: catalogue.KINDS)


def datasets(incomplete: str) -> list[str]:
    return _beginning(incomplete, registry.datasets.names)


def embedders(incomplete: str) -> list[str]:
    return _beginning(incomplete, registry.embedders.names)


def selectors(incomplete: str) -> list[str]:
    """Selectors; the last of a list that is separated by commas.

    >>> selectors("random,moder")
    ['random,moderate']
    """
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in _beginning(last, registry.selectors.names)]
