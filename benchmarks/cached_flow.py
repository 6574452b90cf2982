"""Overhead of a fully cached run of elfs/digits, and the start of `winnow ls`.

    python benchmarks/cached_flow.py

The cached run is split into its parts: starting Python and Prefect, the temporary server, and the flow itself
(steps looked up and the report drawn). `winnow ls` is compared with starting Python alone.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time

from _common import WINNOW, fresh_home, options, record

RUN = [*WINNOW, "run", "elfs/digits", "--plain", *options("fractions=[0.1,0.3]", "seeds=[0,1,2]")]
RUN += options("heads.heads=2", "heads.epochs=10", "training.iterations=50", "mis_ratio=0.2")


def seconds(command: list[str], environment: dict[str, str]) -> tuple[float, str]:
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return time.perf_counter() - start, done.stderr


def summary(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "min": round(ordered[0], 3),
        "median": round(ordered[len(ordered) // 2], 3),
        "max": round(ordered[-1], 3),
        "runs": len(ordered),
    }


def main() -> None:
    with fresh_home() as environment:
        first, _ = seconds(RUN, environment)
        cached, steps = [], 0
        for _ in range(3):
            elapsed, log = seconds(RUN, environment)
            cached.append(elapsed)
            steps, hits = map(int, re.search(r"(\d+) steps, (\d+) from the cache", log).groups())
        imports = [
            seconds([sys.executable, "-c", "import winnow.flows.elfs"], environment)[0] for _ in range(3)
        ]
        listing = [seconds([*WINNOW, "ls"], environment)[0] for _ in range(7)]
        bare = [seconds([sys.executable, "-c", ""], environment)[0] for _ in range(7)]
    record(
        "cached_flow",
        {
            "what": "elfs/digits again, all results from the cache; seconds of whole processes",
            "first_run": round(first, 2),
            "cached_run": summary(cached),
            "steps": steps,
            "steps_from_the_cache": hits,
            "importing_the_flow": summary(imports),
            "winnow_ls": summary(listing),
            "python_alone": summary(bare),
            "ls_over_python": round(summary(listing)["median"] - summary(bare)["median"], 3),
        },
    )


if __name__ == "__main__":
    main()
