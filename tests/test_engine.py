"""Work over parts: each computed once for its content, whatever computes it; what was done stays done."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from winnow.tasks.artifacts import Artifact, joined, write
from winnow.tasks.engine import ENGINES, map_parts
from winnow.tasks.errors import BadInput, WinnowError

pytestmark = pytest.mark.usefixtures("empty_store")


@dataclass(frozen=True)
class Squares:
    """Squares of numbers; notes in a folder which parts it computed; fails or dies where it is told to."""

    folder: Path
    fails: tuple[int, ...] = ()
    dies: tuple[int, ...] = ()

    task: ClassVar[str] = "squares"
    version: ClassVar[str] = "1"

    def inputs(self, part: range) -> dict[str, Any]:
        return {"start": part.start, "stop": part.stop}

    def __call__(self, part: range) -> Artifact:
        (self.folder / f"{part.start}-{os.urandom(4).hex()}").touch()
        if part.start in self.fails:
            raise BadInput(f"part {part.start} is bad.")
        if part.start in self.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        numbers = np.arange(part.start, part.stop)
        return write("scores", {"id": numbers, "square": numbers**2.0}, facts={"power": 2})

    def computed(self) -> list[int]:
        return sorted(int(file.name.partition("-")[0]) for file in self.folder.glob("*-*"))


def parts(n: int = 20, size: int = 5) -> list[range]:
    return [range(start, min(start + size, n)) for start in range(0, n, size)]


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_gives_the_same(engine, tmp_path):
    work, told = Squares(tmp_path), []
    done = map_parts(work, parts(), engine=engine, workers=2, progress=lambda *word: told.append(word))
    whole = joined(done)
    assert whole.numpy("square").tolist() == [i**2 for i in range(20)]
    assert work.computed() == [0, 5, 10, 15]
    assert [word[:2] for word in told] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert map_parts(work, parts(), engine="here") == done, "from the records"
    assert joined(done).digest == whole.digest
    assert work.computed() == [0, 5, 10, 15]


def test_only_what_is_new_is_computed(tmp_path):
    work = Squares(tmp_path)
    map_parts(work, parts(20))
    map_parts(work, parts(27))
    assert work.computed() == [0, 5, 10, 15, 20, 25]


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_done_stays_done(engine, tmp_path):
    work = Squares(tmp_path, fails=(15,))
    with pytest.raises(BadInput, match="part 15 is bad"):
        map_parts(work, parts(), engine=engine, workers=1)
    done = map_parts(Squares(tmp_path), parts(), engine="here")
    assert joined(done).rows == 20
    assert work.computed() == [0, 5, 10, 15, 15]


def test_a_worker_that_dies_is_said(tmp_path):
    work = Squares(tmp_path, dies=(10,))
    with pytest.raises(WinnowError, match="squares: a worker process died") as error:
        map_parts(work, parts(), engine="processes", workers=1)
    assert "every part that was finished" in str(error.value)
    assert joined(map_parts(Squares(tmp_path), parts())).rows == 20
    assert work.computed().count(0) == 1


def test_a_damaged_part_is_made_anew(tmp_path):
    work = Squares(tmp_path)
    done = map_parts(work, parts())
    done[1].paths()[0].write_bytes(b"x")
    assert map_parts(work, parts()) == done
    assert work.computed() == [0, 5, 5, 10, 15]


def test_unknown_engine(tmp_path):
    with pytest.raises(BadInput, match="Did you mean 'threads'"):
        map_parts(Squares(tmp_path), parts(), engine="thread")
