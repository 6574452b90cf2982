"""The training loop: one recipe, any network and images, dynamics observed on the way, resumable at every epoch."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from winnow.tasks.errors import BadInput, WinnowError
from winnow.tasks.hardware import compute_dtype, torch_generator
from winnow.tasks.registry import networks
from winnow.tasks.train.loader import Loader, open_loader
from winnow.tasks.train.recipe import Recipe

__all__ = ["Observer", "Progress", "Scratch", "Trained", "build", "predict", "train"]

log = logging.getLogger("winnow.tasks.train")

CHECKPOINT_SECONDS = 2.0  # epochs may be shorter than the writing of a checkpoint
PROGRESS_SECONDS = 0.2
WARM_UP_STEPS = 3  # real steps before capture, in which cuDNN chooses its kernels and all buffers come to be
SINGLE_THREAD_WORK = (
    1e9  # below this many multiply-adds a step, waking a second thread costs more than it brings
)
IMAGENET_MARGIN = 256 / 224

Progress = Callable[[int, int, str], None]


class Observer(Protocol):
    """Sees every batch: positions in the training set, train-mode logits from before the optimiser's step, targets, epoch.

    The logits are only valid during the call. Optional: ``end_epoch()``, called after each epoch's last
    batch; ``state_dict()`` and ``load_state_dict(state)``, without which a training with a scratch is
    refused.
    """

    def __call__(
        self, rows: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor, epoch: int, /
    ) -> None: ...


class Scratch(Protocol):
    """Where checkpoints go: see ``winnow.tasks.artifacts.Scratch``."""

    def save(self, name: str, state: dict[str, Any]) -> None: ...

    def load(self, name: str) -> dict[str, Any] | None: ...


@dataclass(frozen=True)
class Trained:
    """A trained network and how it came to be.

    Attributes:
        network: state dict on the CPU, after the last step.
        recipe: that trained it.
        classes, channels, size: what the network was built for.
        history: rows of ``epoch, step, split, loss, accuracy, lr, seconds, samples_seen``. Training rows are
            of the augmented batches in train mode; ``lr`` is the last step's; ``seconds`` since the start,
            over all runs of a resumed training.
        last_accuracy, best_accuracy: on the test set, in [0, 1]; None without one. The published tables
            report the best, which chooses the checkpoint with the test set; the last is the honest figure.
        steps, epochs: optimiser steps and (begun) epochs.
        samples_seen: by the optimiser.
        seconds: of training and evaluation.
    """

    network: dict[str, torch.Tensor]
    recipe: Recipe
    classes: int
    channels: int
    size: int
    history: list[dict[str, Any]] = field(repr=False)
    last_accuracy: float | None
    best_accuracy: float | None
    steps: int
    epochs: int
    samples_seen: int
    seconds: float

    def module(self, device: torch.device | str = "cpu") -> nn.Module:
        """The network itself, in eval mode."""
        module = build(
            self.recipe.network, classes=self.classes, channels=self.channels, size=self.size, seed=0
        )
        module.load_state_dict(self.network)
        return module.to(device).eval()


_init_lock = threading.Lock()


def build(
    name: str, *, classes: int, channels: int, size: int, seed: int, pretrained: bool = False
) -> nn.Module:
    """The registered network of that name with weights drawn from ``seed``, on the CPU.

    torch's layers draw their weights from the global generator only; it is set for the moment, under a lock,
    and put back.

    Raises:
        UnknownName: no such network.

    >>> one, other = (build("mlp", classes=3, channels=1, size=4, seed=0) for _ in range(2))
    >>> all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters()))
    True
    """
    entry = networks.get(name)
    with _init_lock, torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(torch_generator(seed, "init").initial_seed())
        return entry(classes=classes, channels=channels, size=size, pretrained=pretrained)


def _placed(network: nn.Module, device: torch.device) -> nn.Module:
    return network.to(device).to(memory_format=torch.channels_last)


# -- one step ------------------------------------------------------------------------------------------------


class _Sgd:
    """torch's fused SGD. Its optimiser class would do the same, and import the compiler (four seconds) to be constructed."""

    def __init__(self, parameters: list[nn.Parameter], recipe: Recipe) -> None:
        self.parameters = parameters
        # zeros give the same first step as torch's own lazy start, and a captured graph finds its buffers in
        # place
        self.state = [torch.zeros_like(p) for p in parameters]
        self.options: dict[str, Any] = {
            "momentum": recipe.momentum,
            "nesterov": recipe.nesterov,
            "weight_decay": recipe.weight_decay,
        }

    @torch.no_grad()
    def update(self, lr: Any) -> None:
        used = [
            (p, p.grad, momentum)
            for p, momentum in zip(self.parameters, self.state, strict=True)
            if p.grad is not None
        ]
        parameters, grads, momenta = (list(group) for group in zip(*used, strict=True))
        sgd(
            parameters,
            grads,
            momenta if self.options["momentum"] else [],
            lr=lr,
            dampening=0.0,
            maximize=False,
            has_sparse_grad=False,
            foreach=False,
            fused=True,
            **self.options,
        )


class _Adam:
    """torch's fused Adam and AdamW."""

    def __init__(self, parameters: list[nn.Parameter], recipe: Recipe) -> None:
        self.parameters = parameters
        self._means, self._squares = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
        self._steps = [torch.zeros((), device=p.device) for p in parameters]
        self.state = [*self._means, *self._squares, *self._steps]
        self.options: dict[str, Any] = {
            "beta1": 0.9,
            "beta2": 0.999,
            "eps": 1e-8,
            "weight_decay": recipe.weight_decay,
            "decoupled_weight_decay": recipe.optimizer == "adamw",
        }

    @torch.no_grad()
    def update(self, lr: Any) -> None:
        state = zip(self.parameters, self._means, self._squares, self._steps, strict=True)
        used = [(p, p.grad, mean, square, step) for p, mean, square, step in state if p.grad is not None]
        parameters, grads, means, squares, steps = (list(group) for group in zip(*used, strict=True))
        adam(
            parameters,
            grads,
            means,
            squares,
            [],
            steps,
            lr=lr,
            amsgrad=False,
            maximize=False,
            foreach=False,
            fused=True,
            **self.options,
        )


class _Step:
    """Forward, loss, backward and update on one batch; on CUDA the whole of it is one captured graph.

    A graph needs fixed shapes, so that an epoch's last, smaller batch runs eagerly, on the same parameters
    and optimiser state.
    """

    def __init__(self, network: nn.Module, recipe: Recipe, device: torch.device, dtype: torch.dtype) -> None:
        self.network, self.device, self.dtype = network, device, dtype
        self.smoothing = recipe.label_smoothing
        self.batch_size = recipe.batch_size
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.optimizer = (
            _Sgd(self.parameters, recipe) if recipe.optimizer == "sgd" else _Adam(self.parameters, recipe)
        )
        # a captured step reads its learning rate from the device
        self.lr: Any = torch.tensor(recipe.lr, device=device) if device.type == "cuda" else recipe.lr
        self._full_steps = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._capture = device.type == "cuda"

    def _run(
        self, images: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None
    ) -> tuple[torch.Tensor, ...]:
        for p in self.parameters:
            p.grad = None
        with torch.autocast(
            self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32, cache_enabled=False
        ):
            logits = self.network(images)
        logits = logits.float()
        if weights is None:
            loss = F.cross_entropy(logits, targets, label_smoothing=self.smoothing)
        else:
            each = F.cross_entropy(logits, targets, label_smoothing=self.smoothing, reduction="none")
            loss = (weights * each).sum() / weights.sum()
        loss.backward()
        self.optimizer.update(self.lr)
        logits, loss = logits.detach(), loss.detach()
        return logits, loss, (logits.argmax(1) == targets).sum()

    def __call__(
        self, images: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None, lr: float
    ) -> tuple[torch.Tensor, ...]:
        """One step. Returns logits (valid until the next step), loss and number of correct predictions, all from before the update."""
        if isinstance(self.lr, torch.Tensor):
            self.lr.fill_(lr)
        else:
            self.lr = lr
        if not self._capture or len(targets) != self.batch_size:
            return self._run(images, targets, weights)
        logits, loss, correct = self._captured(images, targets, weights)
        return logits, loss.clone(), correct.clone()

    def _captured(
        self, images: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None
    ) -> tuple[torch.Tensor, ...]:
        self._full_steps += 1
        if self._full_steps <= WARM_UP_STEPS:
            side = torch.cuda.Stream(self.device)
            side.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(side):
                out = self._run(images, targets, weights)
            torch.cuda.current_stream(self.device).wait_stream(side)
            return out
        if self._graph is None:
            self._inputs = (
                images.clone(memory_format=torch.channels_last),
                targets.clone(),
                None if weights is None else weights.clone(),
            )
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph):
                    self._outputs = self._run(*self._inputs)
            except RuntimeError as error:  # a network whose forward looks at values cannot be captured
                log.warning(
                    "this network cannot be captured as a CUDA graph, training runs eagerly: %s",
                    str(error).splitlines()[0],
                )
                self._capture = False
                return self._run(images, targets, weights)
            self._graph = graph
        for buffer, value in zip(self._inputs, (images, targets, weights), strict=True):
            if buffer is not None and value is not None:
                buffer.copy_(value, non_blocking=True)
        self._graph.replay()
        return self._outputs


def _training_dtype(recipe: Recipe, device: torch.device) -> torch.dtype:
    if recipe.amp == "off":
        return torch.float32
    if recipe.amp == "bf16":
        return torch.bfloat16
    return torch.bfloat16 if compute_dtype(device) == torch.bfloat16 else torch.float32


_threads_lock = threading.Lock()
_threads_held = 0
_threads_before = 1


@contextlib.contextmanager
def _threads(work: float) -> Iterator[None]:
    """One thread for steps so small that a second one only waits; trainings side by side share the setting."""
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


def _work(network: nn.Module, shape: tuple[int, int, int], batch_size: int) -> float:
    """An upper bound of a forward pass's multiply-adds: every weight at every pixel."""
    return float(sum(p.numel() for p in network.parameters()) * shape[0] * shape[1] * batch_size)


# -- training ------------------------------------------------------------------------------------------------


def train(
    images: Any,
    targets: np.ndarray,
    *,
    classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    recipe: Recipe,
    seed: int,
    device: torch.device | str = "cpu",
    rows: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    test: tuple[Any, np.ndarray] | None = None,
    observe: Observer | None = None,
    scratch: Scratch | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
) -> Trained:
    """Train a network by a recipe.

    Each batch minimises the mean cross-entropy, or Σ w_i ℓ_i / Σ w_i with sample weights, by the recipe's
    optimiser. ``observe`` is given the very logits that the loss saw (augmented batch, train mode), so that
    dynamics cost no extra forward pass.

    Initialisation, order and augmentation draw from streams of their own that ``seed`` fixes. On the CPU a
    training that was killed and is run again with the same ``scratch`` ends bit-identical to one that was
    not, whenever checkpoints were written.

    Args:
        images: uint8 (N, H, W, C), or an object with ``shape``, ``len`` and ``read(rows)``
            (winnow.tasks.data).
        targets: int (n,), each in [0, classes), in the order of ``rows``.
        classes: outputs of the network.
        mean, std: of the channels, in units of [0, 1].
        recipe: network, length, optimiser, augmentation.
        seed: of everything that is drawn.
        device: where to train.
        rows: int (n,), rows of ``images`` to train on; None takes all.
        weights: float (n,), positive; None weighs all equally.
        test: images and targets to evaluate on.
        observe: called each step with (positions int64 (b,) in ``targets``, logits float32 (b, classes) from
            before the update, targets int64 (b,), epoch); a
            :class:`~winnow.tasks.score.dynamics.DynamicsAccumulator` fits.
        scratch: where to checkpoint and to continue from.
        progress: told (steps done, steps in all, note), a few times a second at most.
        workers: processes that read images which do not fit the device; None chooses.

    Returns:
        the network, its history and its accuracies.

    Raises:
        BadInput: arguments that do not fit each other, with the row.
        UnknownName: no such network.
        WinnowError: the loss became NaN or infinite; names epoch, step and learning rate.

    >>> rng = np.random.default_rng(0)
    >>> targets = np.arange(64) % 2
    >>> images = (rng.integers(0, 100, (64, 8, 8, 1)) + 100 * targets[:, None, None, None]).astype(np.uint8)
    >>> recipe = Recipe(network="mlp", iterations=10, batch_size=32, lr=0.05, augment="none")
    >>> trained = train(images, targets, classes=2, mean=(0.4,), std=(0.3,), recipe=recipe, seed=0, test=(images, targets))
    >>> trained.steps, trained.epochs, trained.last_accuracy
    (10, 5, 1.0)

    References:
        Coverage-centric-coreset-selection train.py, core/training/Trainer.py; elfs train.py; DeepCore
        utils.py (weighted loss)

    Differences from upstream:
        stops at exactly ``iterations`` (``recipe.upstream`` runs whole epochs); seeded; both last and best
        test accuracy are reported, upstream prints the best only. Augmentation and normalisation run on the
        device on uint8 images.
    """
    device = torch.device(device)
    targets = _checked_targets(targets, classes)
    n = len(targets)
    sample_weights = None if weights is None else torch.from_numpy(_checked_weights(weights, n)).to(device)
    rates = recipe.learning_rates(n).tolist()
    total, per_epoch = len(rates), recipe.steps_per_epoch(n)
    resumable = observe is None or (hasattr(observe, "state_dict") and hasattr(observe, "load_state_dict"))
    if scratch is not None and not resumable:
        raise BadInput(
            "observe has no state_dict and load_state_dict: it cannot continue from a scratch.",
            remedy="add them, or scratch=None",
        )
    margin = IMAGENET_MARGIN if recipe.augment == "imagenet" else 1.0
    loader = _open(images, targets, recipe, device, rows=rows, mean=mean, std=std, seed=seed, workers=workers)
    size, channels = loader.shape[0], loader.shape[2]
    exam = None
    if test is not None:
        test_targets = _checked_targets(test[1], classes, "test targets")
        exam = open_loader(
            test[0],
            test_targets,
            mean=mean,
            std=std,
            device=device,
            size=size,
            margin=margin,
            workers=workers,
        )
    network = build(
        recipe.network, classes=classes, channels=channels, size=size, seed=seed, pretrained=recipe.pretrained
    )
    network = _placed(network, device)
    step_of = _Step(network, recipe, device, _training_dtype(recipe, device))
    run = _Run([recipe.model_dump_json(), seed, n, classes, *map(_checksum, (targets, rows, weights))])

    start = run.load(scratch, network, step_of, observe)
    began = checkpointed = told = time.perf_counter()
    earlier = run.seconds
    evaluate_epochs = recipe.epochs_per_test(n)
    epochs = math.ceil(total / per_epoch)
    end_epoch = getattr(observe, "end_epoch", None)
    with contextlib.ExitStack() as stack:
        stack.callback(loader.close)
        if exam is not None:
            stack.callback(exam.close)
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))
            stack.enter_context(torch.backends.cudnn.flags(enabled=True, benchmark=True))
        else:
            stack.enter_context(_threads(_work(network, loader.shape, recipe.batch_size)))
        for epoch in range(start, epochs):
            network.train()
            losses, corrects, sizes = [], [], []
            first = run.step
            for positions, x, y in loader.epoch(epoch):
                w = None if sample_weights is None else sample_weights[positions]
                logits, loss, correct = step_of(x, y, w, rates[run.step])
                if observe is not None:
                    observe(positions, logits, y, epoch)
                losses.append(loss)
                corrects.append(correct)
                sizes.append(len(y))
                run.step += 1
                if run.step == total:
                    break
            each = torch.stack(losses).double().cpu()  # the epoch's one synchronisation
            if not bool(each.isfinite().all()):
                bad = int((~each.isfinite()).nonzero()[0])
                raise WinnowError(
                    f"the training diverged: loss {each[bad].item()} at epoch {epoch}, step {first + bad}, "
                    f"learning rate {rates[first + bad]:g} ({recipe.network}).",
                    kept=""
                    if scratch is None
                    else "the last checkpoint; it leads to the same end under the same recipe",
                    remedy="lower the recipe's lr",
                )
            if end_epoch is not None:
                end_epoch()
            seen = sum(sizes)
            run.samples += seen
            run.seconds = earlier + time.perf_counter() - began
            mean_loss = float((each * torch.tensor(sizes)).sum()) / seen
            accuracy = int(torch.stack(corrects).sum()) / seen
            run.record(epoch, "train", mean_loss, accuracy, rates[run.step - 1])
            if exam is not None and ((epoch + 1) % evaluate_epochs == 0 or epoch + 1 == epochs):
                test_loss, test_accuracy = _evaluate(network, exam, step_of.dtype)
                run.seconds = earlier + time.perf_counter() - began
                run.record(epoch, "test", test_loss, test_accuracy, rates[run.step - 1])
            now = time.perf_counter()
            if scratch is not None and now - checkpointed >= CHECKPOINT_SECONDS:
                run.save(scratch, epoch + 1, network, step_of, observe)
                checkpointed = time.perf_counter()
            if progress is not None and (now - told >= PROGRESS_SECONDS or epoch + 1 == epochs):
                progress(
                    run.step,
                    total,
                    f"epoch {epoch + 1}/{epochs}, loss {mean_loss:.4f}, accuracy {100 * accuracy:.1f} %",
                )
                told = now
    tests = [row["accuracy"] for row in run.history if row["split"] == "test"]
    return Trained(
        network={
            name: value.detach().cpu().clone().contiguous() for name, value in network.state_dict().items()
        },
        recipe=recipe,
        classes=classes,
        channels=channels,
        size=size,
        history=run.history,
        last_accuracy=tests[-1] if tests else None,
        best_accuracy=max(tests) if tests else None,
        steps=run.step,
        epochs=epochs,
        samples_seen=run.samples,
        seconds=run.seconds,
    )


def _open(images: Any, targets: np.ndarray, recipe: Recipe, device: torch.device, **options: Any) -> Loader:
    """The training loader; the padding may scale with a size that only the images tell."""
    shape = images.shape[1:] if isinstance(images, np.ndarray) else images.shape
    size = recipe.size or (224 if shape is None else int(min(shape[:2])))
    return open_loader(
        images,
        targets,
        device=device,
        batch_size=recipe.batch_size,
        augment=recipe.augment,
        pad=recipe.padding(size),
        size=recipe.size,
        drop_last=recipe.drop_last,
        **options,
    )


def _checked_targets(targets: np.ndarray, classes: int, name: str = "targets") -> np.ndarray:
    found = np.asarray(targets)
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise BadInput(f"{name} are {found.dtype} {found.shape}, not whole numbers (n,).")
    if len(found) == 0:
        raise BadInput(f"{name} are empty.")
    wrong = np.flatnonzero((found < 0) | (found >= classes))
    if len(wrong):
        raise BadInput(f"{name}[{wrong[0]}] = {found[wrong[0]]} is not one of {classes} classes.")
    return found.astype(np.int64)


def _checked_weights(weights: np.ndarray, n: int) -> np.ndarray:
    found = np.array(weights, np.float32)
    if found.shape != (n,):
        raise BadInput(f"weights have shape {found.shape}, there are {n} targets.")
    wrong = np.flatnonzero(~(np.isfinite(found) & (found > 0)))
    if len(wrong):
        raise BadInput(
            f"weights[{wrong[0]}] = {found[wrong[0]]} is not positive.",
            remedy="leave samples of weight 0 out of rows",
        )
    return found


def _checksum(array: np.ndarray | None) -> str:
    return "-" if array is None else f"{zlib.crc32(np.ascontiguousarray(array).tobytes()):08x}"


class _Run:
    """What a training has come to, beside its tensors: the part of a checkpoint that is plain values."""

    def __init__(self, work: list[Any]) -> None:
        self.same = " ".join(map(str, work))
        self.step = self.samples = 0
        self.seconds = 0.0
        self.history: list[dict[str, Any]] = []

    def record(self, epoch: int, split: str, loss: float, accuracy: float, lr: float) -> None:
        self.history.append(
            {
                "epoch": epoch,
                "step": self.step,
                "split": split,
                "loss": loss,
                "accuracy": accuracy,
                "lr": lr,
                "seconds": self.seconds,
                "samples_seen": self.samples,
            }
        )

    def save(self, scratch: Scratch, epochs_done: int, network: nn.Module, step: _Step, observe: Any) -> None:
        scratch.save(
            "train",
            {
                "same": self.same,
                "epochs_done": epochs_done,
                "step": self.step,
                "samples": self.samples,
                "seconds": self.seconds,
                "history": self.history,
                "network": {name: value.detach().cpu() for name, value in network.state_dict().items()},
                "optimizer": [value.cpu() for value in step.optimizer.state],
                "observer": None if observe is None else observe.state_dict(),
            },
        )

    def load(self, scratch: Scratch | None, network: nn.Module, step: _Step, observe: Any) -> int:
        """Continue from the scratch's checkpoint if it is of this very training; returns the epoch to go on with."""
        state = None if scratch is None else scratch.load("train")
        if state is None or state["same"] != self.same:
            return 0
        network.load_state_dict(state["network"])
        for buffer, value in zip(step.optimizer.state, state["optimizer"], strict=True):
            buffer.copy_(value)
        if observe is not None:
            observe.load_state_dict(state["observer"])
        self.step, self.samples, self.seconds, self.history = (
            state["step"],
            state["samples"],
            state["seconds"],
            state["history"],
        )
        return state["epochs_done"]


# -- evaluation ----------------------------------------------------------------------------------------------


def _inference_batch(shape: tuple[int, int, int]) -> int:
    return max(32, min(1024, (1 << 22) // math.prod(shape)))


def _evaluate(network: nn.Module, loader: Loader, dtype: torch.dtype) -> tuple[float, float]:
    """Mean cross-entropy and accuracy in eval mode; one synchronisation."""
    network.eval()
    total = torch.zeros(2, dtype=torch.float64)
    parts = []
    with torch.inference_mode():
        for _, x, y in loader.sequential(_inference_batch(loader.shape)):
            with torch.autocast(x.device.type, dtype=dtype, enabled=dtype != torch.float32):
                logits = network(x)
            logits = logits.float()
            parts.append(
                torch.stack(
                    [
                        F.cross_entropy(logits, y, reduction="sum").double(),
                        (logits.argmax(1) == y).sum().double(),
                    ]
                )
            )
        total += torch.stack(parts).sum(0).cpu()
    loss, correct = (total / loader.n).tolist()
    return loss, correct


def predict(
    network: nn.Module,
    images: Any,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str = "cpu",
    rows: np.ndarray | None = None,
    size: int | None = None,
    margin: float = 1.0,
    batch_size: int | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Logits and penultimate features of images in eval mode, without augmentation, in float32.

    This is the pass after training that the final scores, gradient methods and feature-based selectors read.

    Args:
        network: has ``features`` and ``head``; moved to ``device`` and left in eval mode.
        images: as in :func:`train`.
        mean, std: of the channels, those of the training.
        device: where to compute.
        rows: int (n,), rows of ``images``; None takes all.
        size: side of what the network sees; None keeps the images' own.
        margin: images are resized to ``size`` times this before their centre is taken (256/224 for ImageNet).
        batch_size: None chooses by the images' size.
        progress: told (images done, images in all, note).
        workers: processes that read images which do not fit the device; None chooses.

    Returns:
        logits float32 (n, C) and features float32 (n, D).

    Raises:
        BadInput: images, rows, mean and std that do not fit each other.

    >>> network = build("mlp", classes=3, channels=1, size=8, seed=0)
    >>> logits, features = predict(network, np.zeros((5, 8, 8, 1), np.uint8), mean=(0.5,), std=(0.5,))
    >>> logits.shape, features.shape
    ((5, 3), (5, 128))

    References:
        d2pruning generate_importance_score.py (post_training_metrics)

    Differences from upstream:
        images are normalised as in training; upstream's pass feeds them as they are (mean 0, std 1 replays
        it).
    """
    device = torch.device(device)
    n = len(images) if rows is None else len(rows)
    loader = open_loader(
        images,
        np.zeros(n, np.int64),
        mean=mean,
        std=std,
        device=device,
        rows=rows,
        size=size,
        margin=margin,
        workers=workers,
    )
    network = _placed(network, device).eval()
    logits, features = [], []
    done = 0
    told = time.perf_counter()
    try:
        with torch.inference_mode():
            for _, x, _ in loader.sequential(batch_size or _inference_batch(loader.shape)):
                penultimate = network.features(x)  # type: ignore[operator]
                logits.append(network.head(penultimate).float().cpu().numpy())  # type: ignore[operator]
                features.append(penultimate.float().cpu().numpy())
                done += len(x)
                if progress is not None and (time.perf_counter() - told >= PROGRESS_SECONDS or done == n):
                    progress(done, n, "predicting")
                    told = time.perf_counter()
    finally:
        loader.close()
    return np.concatenate(logits), np.concatenate(features)
