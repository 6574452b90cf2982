"""CCS on a million samples; the floor is one sort of the AUM, measured in the same run.

``python benchmarks/ccs.py [--n 1281167]`` prints and records one JSON line.
"""

from __future__ import annotations

import argparse

import _common
import numpy as np
import torch

from winnow.tasks.select.ccs import ccs
from winnow.tasks.select.signals import Signals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=1_281_167)
    asked = parser.parse_args()
    torch.set_num_threads(1)

    aum = np.random.default_rng(0).normal(0, 10, asked.n).astype(np.float32)
    signals = Signals(n=asked.n, scores={"aum": aum})
    cells = []
    for mis_ratio in (0.0, 0.3):
        runs = {
            "ccs": lambda beta=mis_ratio: ccs(
                signals, int(0.3 * asked.n), generator=np.random.default_rng(0), mis_ratio=beta
            ),
            "floor": lambda: np.argsort(aum),
        }
        seconds = _common.compare(runs, 5)
        cells.append(
            {
                "mis_ratio": mis_ratio,
                "seconds": round(seconds["ccs"][0], 4),
                "cpu_seconds": round(seconds["ccs"][1], 4),
                "sort_cpu_seconds": round(seconds["floor"][1], 4),
                "over_floor": round(seconds["ccs"][1] / seconds["floor"][1], 2),
            }
        )
    _common.record("ccs", {"n": asked.n, "kept": 0.3, "strata": 50, "cells": cells})


if __name__ == "__main__":
    main()
