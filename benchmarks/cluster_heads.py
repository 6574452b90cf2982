"""One training step of H cluster heads: all heads in one computation against a loop over heads.

    python benchmarks/cluster_heads.py [--heads 50] [--dim 384] [--batch 256] [--classes 10] [--threads 2]
    [--device cpu]

The loop is the plain way: H ``nn.Sequential``, a loss for each, one AdamW. Both start equal and their losses
are compared before timing. ``operators`` are those that an eager step dispatches, views left out; on a GPU
the batched step is timed as the captured graph that training runs.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from itertools import count

import _common
import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torch.utils._python_dispatch import TorchDispatchMode

from winnow.tasks.train.heads import ClusterHeads, HeadsConfig, class_prior
from winnow.tasks.train.heads_step import HeadsTrainer
from winnow.tasks.train.step import WARM_UP_CALLS

STEPS = 10_000  # of the schedule


class Operators(TorchDispatchMode):
    """Counts dispatched operators that are not views."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def operators_of(step: Callable[[], torch.Tensor]) -> int:
    with Operators() as operators:
        step()
    return operators.count


class Unit(torch.nn.Module):
    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return F.normalize(z, dim=-1)


class Loop:
    """The same training, head by head."""

    def __init__(
        self,
        start: ClusterHeads,
        config: HeadsConfig,
        classes: int,
        lr: float,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.config, self.lr, self.dtype, self.device = config, lr, dtype, device
        heads, hidden, dim = start.w1.shape
        self.student = torch.nn.ModuleList()
        for h in range(heads):
            last = weight_norm(torch.nn.Linear(config.bottleneck, classes, bias=False))
            head = torch.nn.Sequential(
                torch.nn.Linear(dim, hidden),
                torch.nn.GELU(),
                torch.nn.Linear(hidden, config.bottleneck),
                Unit(),
                last,
            )
            with torch.no_grad():
                for parameter, all_heads in (
                    (head[0].weight, start.w1),
                    (head[0].bias, start.b1),
                    (head[2].weight, start.w2),
                    (head[2].bias, start.b2),
                    (last.parametrizations.weight.original0, start.g),
                    (last.parametrizations.weight.original1, start.v),
                ):
                    parameter.copy_(all_heads[h])
            self.student.append(head)
        self.student.to(device)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        parameters = list(self.student.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim > 1]},
            {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
        ]
        self.adam = torch.optim.AdamW(groups, lr=lr, weight_decay=config.weight_decay)
        self.prior = [torch.full((1, classes), 1.0 / classes, device=device) for _ in range(heads)]

    def step(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            with torch.no_grad():
                taught = [head(x).float()[None] for head in self.teacher]
                weight = 0.0
                for h, z in enumerate(taught):
                    self.prior[h] = class_prior(self.prior[h], z)
                    first, second = (z[0] / 0.1).softmax(-1).chunk(2)
                    weight = weight + (first * second).sum(-1)
                weight = weight / len(taught)
            losses = []
            for h, head in enumerate(self.student):
                log_student = F.log_softmax(head(x).float() / 0.1, dim=-1)
                log_teacher = F.log_softmax(taught[h][0] / 0.1, dim=-1)
                halves = []
                for view, other in zip(log_student.chunk(2), log_teacher.chunk(2)[::-1], strict=True):
                    pmi = torch.logsumexp(self.config.beta * (view + other) - self.prior[h].log(), dim=-1)
                    halves.append(-(weight * pmi).mean())
                losses.append(torch.stack(halves).mean())
        stacked = torch.stack(losses)
        self.adam.zero_grad()
        stacked.mean().backward()
        self.adam.step()
        with torch.no_grad():
            for quick, slow in zip(self.student.parameters(), self.teacher.parameters(), strict=True):
                slow.lerp_(quick, 1.0 - self.config.momentum)
        return stacked.detach()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--heads", type=int, default=50)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--repeats", type=int, default=7)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    device = torch.device(asked.device)
    dtype = torch.bfloat16 if asked.bfloat16 else torch.float32

    config = HeadsConfig(
        heads=asked.heads, epochs=1, warmup_epochs=0, frozen_epochs=0, batch_size=asked.batch
    )
    start = ClusterHeads(asked.heads, asked.dim, asked.classes)
    x = torch.from_numpy(
        np.random.default_rng(0).normal(size=(2 * asked.batch, asked.dim)).astype(np.float32)
    ).to(device)
    batched = HeadsTrainer(start, config, asked.batch, STEPS, device, dtype)
    loop = Loop(start, config, asked.classes, config.lr * asked.batch / 256, device, dtype)
    numbers = count()

    def step_batched() -> torch.Tensor:
        batched.losses.zero_()
        batched.step(x, next(numbers), frozen=False)
        return batched.losses[0]

    steps = {"batched": step_batched, "loop": lambda: loop.step(x)}
    for step in steps.values():  # the first makes the optimiser's state
        step()
    operators = {name: operators_of(step) for name, step in steps.items()}
    for _ in range(WARM_UP_CALLS):  # a GPU's graph is captured after so many
        difference = float((step_batched() - loop.step(x)).abs().max())

    taken = _common.compare(steps, asked.repeats, asked.device)
    _common.record(
        "cluster_heads",
        {
            "heads": asked.heads,
            "dim": asked.dim,
            "batch": asked.batch,
            "classes": asked.classes,
            "dtype": str(dtype).removeprefix("torch."),
            "largest_loss_difference": float(f"{difference:.2e}"),
            "batched_seconds": round(taken["batched"][0], 4),
            "loop_seconds": round(taken["loop"][0], 4),
            "batched_cpu_seconds": round(taken["batched"][1], 4),
            "loop_cpu_seconds": round(taken["loop"][1], 4),
            "speedup": round(taken["loop"][0] / taken["batched"][0], 2),
            "speedup_by_cpu_time": round(taken["loop"][1] / taken["batched"][1], 2),
            "batched_operators": operators["batched"],
            "loop_operators": operators["loop"],
            "operators_ratio": round(operators["loop"] / operators["batched"], 1),
        },
        asked.device,
    )


if __name__ == "__main__":
    main()
