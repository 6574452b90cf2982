"""One training step; on CUDA a captured graph, since launching kernels takes longer than running them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from winnow.tasks.hardware import compute_dtype
from winnow.tasks.train.optim import Optimizer
from winnow.tasks.train.problems import Batch, Problem
from winnow.tasks.train.recipe import Recipe

__all__ = ["Captured", "Step", "dtype_of"]

log = logging.getLogger("winnow.tasks.train")

Tensors = tuple[torch.Tensor, ...]

WARM_UP_CALLS = 3  # eager calls before capture, in which cuDNN chooses its kernels and all buffers are made

# Capturing synchronises the device and empties the allocator's cache: one at a time.
_capturing = threading.Lock()


class Captured:
    """A function of tensors, as a CUDA graph for each set of shapes that comes up often; elsewhere unchanged.

    A graph is captured on a stream of its own device, in the mode that lets other threads (a data loader's,
    another run's) go on with their work. Its results are in buffers that the next call overwrites.

    Args:
        function: takes tensors and numbers, returns tensors; called again, it does the same to the same
            state.
        device: of the tensors.
        moves: tensors that a call changes; a replay that changes none of them is refused.
    """

    def __init__(
        self, function: Callable[..., Tensors], device: torch.device, *, moves: Sequence[torch.Tensor]
    ) -> None:
        self._function, self._device, self._moves = function, device, list(moves)
        self._capturable = device.type == "cuda"
        self._calls: dict[Any, int] = {}
        self._graphs: dict[Any, tuple[torch.cuda.CUDAGraph, list[torch.Tensor], Tensors]] = {}

    def __call__(self, *inputs: Any) -> Tensors:
        if not self._capturable:
            return self._function(*inputs)
        tensors = [
            value if isinstance(value, torch.Tensor) else torch.full((), value, device=self._device)
            for value in inputs
        ]
        shapes = tuple((tuple(value.shape), value.dtype) for value in tensors)
        calls = self._calls[shapes] = self._calls.get(shapes, 0) + 1
        if calls <= WARM_UP_CALLS:
            return self._aside(tensors)
        if shapes not in self._graphs:
            return self._capture(shapes, tensors)
        graph, buffers, outputs = self._graphs[shapes]
        for buffer, value in zip(buffers, tensors, strict=True):
            buffer.copy_(value, non_blocking=True)
        graph.replay()
        return outputs

    def _aside(self, tensors: list[torch.Tensor]) -> Tensors:
        """An eager call on a side stream, as capturing requires."""
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            outputs = self._function(*tensors)
        torch.cuda.current_stream(self._device).wait_stream(stream)
        return outputs

    def _capture(self, shapes: Any, tensors: list[torch.Tensor]) -> Tensors:
        buffers = [value.clone(memory_format=torch.preserve_format) for value in tensors]
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self._graphs.values()))[0].pool() if self._graphs else None
        try:
            with _capturing, torch.cuda.device(self._device):
                stream = torch.cuda.Stream(self._device)
                with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                    outputs = self._function(*buffers)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            # a function that looks at values cannot be captured; nothing of it has run
            return self._give_up(str(error).splitlines()[0], tensors)
        before = [value.clone() for value in self._moves]
        graph.replay()
        if all(bool((value == then).all()) for value, then in zip(self._moves, before, strict=True)):
            return self._give_up("its graph is empty", tensors)
        self._graphs[shapes] = (graph, buffers, outputs)
        return outputs

    def _give_up(self, reason: str, tensors: list[torch.Tensor]) -> Tensors:
        log.warning("this step cannot be captured as a CUDA graph and runs eagerly, slower: %s", reason)
        self._capturable = False
        return self._function(*tensors)


class Step:
    """Forward, loss, backward and update on one batch.

    Args:
        problem: whose loss is minimised.
        network: trained in place.
        recipe: optimiser, dtype, label smoothing.
        device: of the network.
    """

    def __init__(self, problem: Problem, network: nn.Module, recipe: Recipe, device: torch.device) -> None:
        self.network, self.dtype = network, dtype_of(recipe, device)
        self._problem, self._recipe, self._device = problem, recipe, device
        self._parameters = [p for p in network.parameters() if p.requires_grad]
        self.optimizer = Optimizer(self._parameters, recipe)
        self._run = Captured(self._eager, device, moves=[*self._parameters, *self.optimizer.state])

    def _eager(
        self, inputs: torch.Tensor, targets: torch.Tensor, lr: Any, weights: torch.Tensor | None = None
    ) -> Tensors:
        for p in self._parameters:
            p.grad = None
        reduced = self.dtype != torch.float32
        with torch.autocast(self._device.type, dtype=self.dtype, enabled=reduced, cache_enabled=False):
            outputs = self.network(inputs)
        outputs = outputs.float()
        losses = self._problem.loss(outputs, targets, self._recipe)
        loss = losses.mean() if weights is None else (weights * losses).sum() / weights.sum()
        loss.backward()
        self.optimizer.update(lr)
        outputs = outputs.detach()
        return outputs, loss.detach(), self._problem.correct(outputs, targets).sum()

    def __call__(self, batch: Batch, weights: torch.Tensor | None, lr: float) -> Tensors:
        """One step.

        Returns:
            the network's outputs (valid until the next step), the loss and the number of correct predictions,
            all from before the update.
        """
        weighted = () if weights is None else (weights,)
        outputs, loss, correct = self._run(batch.inputs, batch.targets, lr, *weighted)
        if self._device.type == "cuda":  # a graph's buffers, which the next step overwrites
            loss, correct = loss.clone(), correct.clone()
        return outputs, loss, correct


def dtype_of(recipe: Recipe, device: torch.device) -> torch.dtype:
    """The dtype of matrix products."""
    reduced = recipe.amp == "bf16" or (recipe.amp == "auto" and compute_dtype(device) == torch.bfloat16)
    return torch.bfloat16 if reduced else torch.float32
