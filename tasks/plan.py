"""Going through a flow without running it: tasks are handed to a planner, which says what each would give.

A flow is an ordinary function over tasks. In :func:`planned_by`, a call of a task reaches the planner instead
of Prefect; what has not been made yet is :class:`Pending`, and so is all that would be made from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

__all__ = ["Done", "Pending", "Planner", "pending", "planned_by", "planner"]

Planner = Callable[[Any, dict[str, Any]], Any]  # (task, arguments) to what it would return

_planner: ContextVar[Planner | None] = ContextVar("winnow-planner", default=None)


def planner() -> Planner | None:
    """What plans in place of running, if anything does."""
    return _planner.get()


@contextmanager
def planned_by(planner: Planner) -> Iterator[None]:
    """Tasks that are called in this block are planned."""
    token = _planner.set(planner)
    try:
        yield
    finally:
        _planner.reset(token)


class Pending:
    """What a step that has not run would give; of it, at most rows and some facts are known.

    >>> told = Pending(rows=100)
    >>> told["scores"].rows, told["scores"].facts["classes"]
    (100, ?)
    """

    def __init__(
        self,
        rows: int | None = None,
        facts: dict[str, Any] | None = None,
        parts: dict[str, Any] | None = None,
    ) -> None:
        self.rows, self.facts, self.parts, self.kind = rows, _Facts(facts or {}), parts or {}, ""

    def __getitem__(self, name: str) -> Any:
        return self.parts.get(name, self)

    def get(self, name: str, default: Any = None) -> Any:
        return self[name]

    def __repr__(self) -> str:
        return "?"

    def __format__(self, _: str) -> str:
        return "?"


class _Facts(dict[str, Any]):
    def __missing__(self, name: str) -> Pending:
        return Pending()


class Done:
    """A task's future whose result is there."""

    def __init__(self, result: Any) -> None:
        self._result = result

    def result(self) -> Any:
        return self._result


def pending(value: Any) -> bool:
    """Whether something that is not made yet is in a task's arguments."""
    if isinstance(value, dict):
        return any(map(pending, value.values()))
    if isinstance(value, list | tuple):
        return any(map(pending, value))
    return isinstance(value, Pending)
