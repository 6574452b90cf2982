"""The training loop: one recipe, any problem, dynamics observed on the way, resumable within an epoch.

Training = problem × plan × step × observer. The :class:`~winnow.tasks.train.problems.Problem` says what
inputs and losses are, an :class:`~winnow.tasks.train.plan.EpochPlan` which rows an epoch trains on, the
:class:`~winnow.tasks.train.step.Step` moves the network, and the observer records what each visit showed.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from winnow.tasks.errors import BadInput
from winnow.tasks.hardware import torch_generator
from winnow.tasks.train.checkpoint import Run, Scratch
from winnow.tasks.train.evaluate import evaluate, placed
from winnow.tasks.train.networks.build import build
from winnow.tasks.train.plan import EpochPlan, Everything, Policy, shuffled
from winnow.tasks.train.problems import Loader, Problem
from winnow.tasks.train.recipe import Recipe
from winnow.tasks.train.schedule import learning_rates
from winnow.tasks.train.step import Step

__all__ = ["Observer", "Progress", "Trained", "train"]

TICK_SECONDS = 0.2  # between checks of losses, clock and Ctrl-C
SINGLE_THREAD_WORK = 1e9  # multiply-adds per step below which waking a second thread costs more than it saves

Progress = Callable[[int, int, str], None]


class Observer(Protocol):
    """Sees every batch: rows of the set, outputs from before the optimiser's step, targets, epoch.

    The outputs are only valid during the call. Optional: ``end_epoch()``, called after each epoch's last
    batch; ``seen``, what the last visit of each row showed, which policies plan by; ``state_dict()`` and
    ``load_state_dict(state)``, without which a run with a scratch is refused.
    """

    def __call__(
        self, rows: torch.Tensor, outputs: torch.Tensor, targets: torch.Tensor, epoch: int, /
    ) -> None: ...


@dataclass(frozen=True)
class Trained:
    """A trained network and how it came to be.

    Attributes:
        network: state dict on the CPU, after the last step.
        recipe: the one it was trained by.
        shape: what the network was built for.
        history: rows of ``epoch, step, split, loss, accuracy, lr, seconds, samples_seen``. Training rows are
            for augmented batches in train mode; ``lr`` is the last step's; ``seconds`` counts from the start,
            over all processes of a resumed run.
        last_accuracy, best_accuracy: on the test set, in [0, 1]; None without one. The published tables
            report the best, which chooses the checkpoint with the test set; the last is the honest figure.
        steps, epochs: optimiser steps, and epochs started.
        samples_seen: by the optimiser.
        seconds: of training and evaluation.
    """

    network: dict[str, torch.Tensor]
    recipe: Recipe
    shape: dict[str, Any]
    history: list[dict[str, Any]] = field(repr=False)
    last_accuracy: float | None
    best_accuracy: float | None
    steps: int
    epochs: int
    samples_seen: int
    seconds: float

    def module(self, device: torch.device | str = "cpu") -> nn.Module:
        """The network itself, in eval mode."""
        module = build(self.recipe.network, seed=0, **self.shape)
        module.load_state_dict(self.network)
        return module.to(device).eval()


def train(
    problem: Problem,
    recipe: Recipe,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    policy: Policy | None = None,
    test: Problem | None = None,
    observe: Observer | None = None,
    scratch: Scratch | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train a network on a problem by a recipe.

    Each batch minimises Σ w_i ℓ_i / Σ w_i, with the plan's weights, by the recipe's optimiser. ``observe``
    gets the same outputs as the loss (augmented batch, train mode), so dynamics cost no extra forward pass.

    Initialisation, order, augmentation and plans draw from separate streams fixed by ``seed``. On a CPU, a
    run that was killed and restarted with the same ``scratch`` ends bit-identical to an undisturbed one,
    whenever checkpoints were written.

    Args:
        problem: the set to train on, its loss and its measures.
        recipe: network, length, optimiser, augmentation.
        seed: for all random draws.
        device: where to train.
        policy: which rows each epoch trains on, with which weights; None: all, equally.
        test: the set to evaluate on.
        observe: called each step with (rows int64 (b,), outputs float32 (b, …) from before the update,
            targets, epoch); a :class:`~winnow.tasks.score.dynamics.DynamicsAccumulator` fits.
        scratch: where to write checkpoints and resume from.
        progress: called with (steps done, steps in all, note), at most a few times a second.

    Returns:
        the network, its history and its accuracies.

    Raises:
        BadInput: arguments that do not match; names the row.
        UnknownName: no such network.
        WinnowError: the loss became NaN or infinite; names epoch, step and learning rate.

    >>> from winnow.tasks.train.problems.images import ImageProblem
    >>> rng = np.random.default_rng(0)
    >>> targets = np.arange(64) % 2
    >>> images = (rng.integers(0, 100, (64, 8, 8, 1)) + 100 * targets[:, None, None, None]).astype(np.uint8)
    >>> problem = ImageProblem(images, targets, classes=2, mean=(0.4,), std=(0.3,))
    >>> recipe = Recipe(network="mlp", iterations=10, batch_size=32, lr=0.05, augment="none")
    >>> trained = train(problem, recipe, seed=0, test=problem)
    >>> trained.steps, trained.epochs, trained.last_accuracy
    (10, 5, 1.0)

    References:
        Coverage-centric-coreset-selection train.py, core/training/Trainer.py; elfs train.py; DeepCore
        utils.py (weighted loss)

    Differences from upstream:
        stops at exactly ``iterations`` (``recipe.whole_epochs`` runs whole ones); seeded; both last and best
        test accuracy are reported (upstream: the best only). Augmentation and normalisation run on the device
        on uint8 images.
    """
    if scratch is not None and not _resumes(observe):
        raise BadInput(
            "observe has no state_dict and load_state_dict: it cannot continue from a scratch.",
            remedy="add them, or scratch=None",
        )
    device, n = torch.device(device), problem.n
    policy = policy or Everything(n)
    total, per_epoch = recipe.total_steps(n), recipe.steps_per_epoch(n)
    shape = problem.shape(recipe)
    run = Run(f"{recipe.model_dump_json()} {seed} {problem.identity()} {policy.identity()}", scratch)
    with contextlib.ExitStack() as stack:

        def opened(problem: Problem, *, training: bool) -> Loader:
            loader = problem.open(recipe, device, seed=seed, training=training)
            return stack.enter_context(contextlib.closing(loader))

        loader = opened(problem, training=True)
        exam = None if test is None else (test, opened(test, training=False))
        network = build(recipe.network, seed=seed, pretrained=recipe.pretrained, **shape)
        network = placed(network, device)
        step = Step(problem, network, recipe, device)
        stack.enter_context(_settings(network, loader, recipe, device))
        run.resume(network, step, observe)
        tell = _Ticker(run, total, progress)
        while run.position < total:
            plan = _plan(policy, recipe, run.epoch, seed, observe)
            steps = recipe.steps_per_epoch(len(plan.rows))
            at = run.position + np.arange(steps) * (per_epoch / steps)
            rates = learning_rates(recipe, at[at < total], total, per_epoch).tolist()
            weights = (
                [None] * steps if plan.weights is None else plan.weights.to(device).split(recipe.batch_size)
            )
            network.train()
            done = run.batch * recipe.batch_size  # of a resumed epoch
            batches = loader.training(plan.rows[done:], run.epoch, recipe.batch_size)
            for lr, weight, batch in zip(rates[run.batch :], weights[run.batch :], batches, strict=False):
                outputs, loss, correct = step(batch, weight, lr)
                if observe is not None:
                    observe(batch.rows, outputs, batch.targets, run.epoch)
                run.add(loss, correct, len(batch.rows))
                if tell.due():
                    run.check(lr)
                    tell(f"epoch {run.epoch + 1}, loss {float(loss):.4f}")
                    run.save_when_due(network, step, observe)
            run.check(rates[-1])
            if observe is not None and hasattr(observe, "end_epoch"):
                observe.end_epoch()
            mean_loss, accuracy = run.close_epoch(rates[-1])
            last = run.position + per_epoch >= total
            if exam is not None and (last or (run.epoch + 1) % recipe.epochs_per_test(n) == 0):
                run.record("test", *evaluate(network, *exam, recipe, step.dtype, device), rates[-1])
            if last or tell.due():
                tell(f"epoch {run.epoch + 1}, loss {mean_loss:.4f}, accuracy {100 * accuracy:.1f} %")
            run.next_epoch(per_epoch)
            run.save_when_due(network, step, observe)
    tests = [row["accuracy"] for row in run.history if row["split"] == "test"]
    return Trained(
        network={name: v.detach().cpu().clone().contiguous() for name, v in network.state_dict().items()},
        recipe=recipe,
        shape=shape,
        history=run.history,
        last_accuracy=tests[-1] if tests else None,
        best_accuracy=max(tests) if tests else None,
        steps=run.step,
        epochs=run.epoch,
        samples_seen=run.samples,
        seconds=run.seconds,
    )


def _resumes(observe: Any) -> bool:
    return observe is None or (hasattr(observe, "state_dict") and hasattr(observe, "load_state_dict"))


def _plan(policy: Policy, recipe: Recipe, epoch: int, seed: int, observe: Any) -> EpochPlan:
    """The epoch's plan in training order, without an incomplete last batch if the recipe drops it."""
    seen: Mapping[str, torch.Tensor] = getattr(observe, "seen", {})
    plan = shuffled(policy.plan(epoch, seen, torch_generator(seed, "plan", str(epoch))), seed, epoch)
    if recipe.drop_last:
        whole = recipe.steps_per_epoch(len(plan.rows)) * recipe.batch_size
        plan = plan.at(slice(whole))
    return plan


class _Ticker:
    """Reports progress a few times a second; Ctrl-C or a termination signal ends the training here."""

    def __init__(self, run: Run, total: int, progress: Progress | None) -> None:
        self._run, self._total, self._progress = run, total, progress
        self._last = time.perf_counter()

    def due(self) -> bool:
        now = time.perf_counter()
        if now - self._last < TICK_SECONDS:
            return False
        self._last = now
        return True

    def __call__(self, note: str) -> None:
        if self._progress is not None:
            self._progress(self._run.step, self._total, note)


@contextlib.contextmanager
def _settings(network: nn.Module, loader: Loader, recipe: Recipe, device: torch.device) -> Iterator[None]:
    """Makes a GPU the current device; on a CPU, sets the number of threads that suits the step's size."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            yield
        return
    weights = sum(p.numel() for p in network.parameters())
    with _threads(float(weights * loader.sites * recipe.batch_size)):  # every weight at every site
        yield


_threads_lock = threading.Lock()
_threads_held = 0
_threads_before = 1


@contextlib.contextmanager
def _threads(work: float) -> Iterator[None]:
    """One thread for steps so small that a second would only wait; concurrent runs share the setting."""
    global _threads_held, _threads_before
    if work >= SINGLE_THREAD_WORK:
        yield
        return
    with _threads_lock:
        if not _threads_held:
            _threads_before = torch.get_num_threads()
        _threads_held += 1
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _threads_lock:
            _threads_held -= 1
            if not _threads_held:
                torch.set_num_threads(_threads_before)
