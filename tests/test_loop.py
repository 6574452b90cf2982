import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from sklearn.datasets import load_digits
from torch.nn import functional as F
from torchvision.transforms import RandomResizedCrop

from winnow.tasks.errors import BadInput, UnknownName, WinnowError
from winnow.tasks.score.dynamics import DynamicsAccumulator
from winnow.tasks.store import Scratch
from winnow.tasks.train import checkpoint, loop
from winnow.tasks.train import step as stepping
from winnow.tasks.train.evaluate import predict
from winnow.tasks.train.networks.build import build
from winnow.tasks.train.plan import EpochPlan, Everything, shuffled
from winnow.tasks.train.problems.augment import View, crop_flip, draws_of, random_resized_crop
from winnow.tasks.train.problems.images import ImageProblem, ResidentImages, open_images
from winnow.tasks.train.problems.streamed import StreamedImages
from winnow.tasks.train.recipe import Recipe
from winnow.tasks.train.schedule import learning_rates

GREY = {"mean": (0.3,), "std": (0.35,)}
FAST = Recipe(network="mlp", iterations=12, batch_size=16, lr=0.05, augment="crop", pad=1)


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    images = np.round(data.images * 255 / 16).astype(np.uint8)[..., None]
    order = np.random.default_rng(0).permutation(len(images))
    return images, data.target.astype(np.int64), order[:1437], order[1437:]


def toy(n=50, size=8, classes=3, channels=1, seed=0):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, n)
    images = rng.integers(0, 120, (n, size, size, channels)) + 60 * targets[:, None, None, None]
    return images.astype(np.uint8), targets


def train(
    images,
    targets,
    *,
    classes,
    recipe,
    seed,
    mean,
    std,
    rows=None,
    weights=None,
    test=None,
    workers=None,
    **options,
):
    """Train on arrays."""
    shared = {"classes": classes, "mean": mean, "std": std, "workers": workers}
    problem = ImageProblem(images, targets, rows=rows, **shared)
    policy = None if weights is None else Everything(problem.n, weights)
    exam = None if test is None else ImageProblem(*test, **shared)
    return loop.train(problem, recipe, seed=seed, policy=policy, test=exam, **options)


def toy_train(recipe=FAST, *, seed=0, n=50, **options):
    images, targets = toy(n)
    return train(images, targets, classes=3, recipe=recipe, seed=seed, **{**GREY, **options})


def rates_of(recipe, n):
    """Learning rate of every step of a training on n samples."""
    total = recipe.total_steps(n)
    return learning_rates(recipe, np.arange(total, dtype=float), total, recipe.steps_per_epoch(n))


CPU = torch.device("cpu")


def epoch_of(loader, epoch, *, seed, batch_size=16):
    """An epoch's batches on all rows, as the loop draws them: (rows, images, targets)."""
    plan = shuffled(Everything(loader.n).plan(epoch, {}, torch.Generator()), seed, epoch)
    return [(b.rows, b.inputs, b.targets) for b in loader.training(plan.rows, epoch, batch_size)]


def same_weights(one, other):
    return all(torch.equal(one.network[name], other.network[name]) for name in one.network)


class Listed:
    """Images that are read by row, of any size."""

    def __init__(self, images, shape=None):
        self.images, self.shape = images, shape

    def __len__(self):
        return len(self.images)

    def read(self, rows):
        if self.shape is not None:
            return self.images[rows]
        return [Image.fromarray(self.images[row]) for row in rows]


# -- recipe --------------------------------------------------------------------------------------------------


def torch_rates(make, steps):
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    scheduler = make(optimiser)
    rates = []
    for step in range(steps):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        if step + 1 < steps:
            scheduler.step()
    return rates


def warmed(optimiser, steps, after):
    """torch's linear warm-up of that many steps, then another schedule from its start."""
    schedulers = torch.optim.lr_scheduler
    rise = schedulers.LinearLR(optimiser, start_factor=1 / (steps + 1), total_iters=steps)
    return schedulers.SequentialLR(optimiser, [rise, after], milestones=[steps])


def test_deepcores_cosine_is_an_epoch_late():
    """Its driver sets last_epoch = (start_epoch − 1) · len(loader) on a fresh scheduler."""
    steps, epochs = 20, 200
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps * epochs, eta_min=1e-4)
    scheduler.last_epoch = -steps
    theirs = []
    for _ in range(steps * epochs):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    ours = rates_of(Recipe(epochs=epochs, batch_size=50, scheduler="deepcore"), 50 * steps)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert ours.max() > 0.1, "it rises at first"
    assert ours[-1] == pytest.approx(1.06e-4, rel=0.01), "and does not quite end"
    for wrong in ({"iterations": 10}, {"epochs": 3, "warmup": 1}, {"epochs": 1}):
        with pytest.raises(ValueError, match="'deepcore' needs epochs of 2 or more"):
            Recipe(scheduler="deepcore", **wrong)


@pytest.mark.parametrize(
    ("recipe", "n", "make"),
    [
        (
            Recipe(iterations=100, batch_size=30),
            210,
            lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 100, 1e-4),
        ),
        (
            Recipe(iterations=100, batch_size=30, whole_epochs=True),
            210,
            lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 100, 1e-4),
        ),
        (
            Recipe(iterations=97, scheduler="onecycle"),
            1000,
            lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, 97),
        ),
        (
            Recipe(iterations=50, scheduler="multistep", milestones=(10, 30)),
            9,
            lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [10, 30]),
        ),
        (
            Recipe(epochs=9, batch_size=50, scheduler="multistep", milestones=(3, 6)),
            100,
            lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [6, 12]),
        ),
        (Recipe(epochs=3, scheduler="constant"), 1000, lambda o: torch.optim.lr_scheduler.ConstantLR(o, 1.0)),
        (
            Recipe(epochs=9, batch_size=50, scheduler="step", step_size=4, gamma=0.5),
            100,
            lambda o: torch.optim.lr_scheduler.StepLR(o, step_size=8, gamma=0.5),
        ),
        (
            Recipe(iterations=9, scheduler="step", step_size=4),
            300,
            lambda o: torch.optim.lr_scheduler.StepLR(o, step_size=4),
        ),
        (
            Recipe(epochs=9, batch_size=50, warmup=2),
            100,
            lambda o: warmed(o, 4, torch.optim.lr_scheduler.CosineAnnealingLR(o, 14, 1e-4)),
        ),
        (
            Recipe(iterations=20, warmup=7, scheduler="constant"),
            100,
            lambda o: torch.optim.lr_scheduler.LinearLR(o, start_factor=1 / 8, total_iters=7),
        ),
    ],
)
def test_learning_rates_are_torchs(recipe, n, make):
    rates = rates_of(recipe, n)
    assert len(rates) == recipe.total_steps(n)
    np.testing.assert_allclose(rates, torch_rates(make, len(rates)), rtol=1e-9, atol=1e-15)


def test_steps_and_milestones_count_from_the_start():
    step = rates_of(Recipe(epochs=6, batch_size=50, warmup=2, scheduler="step", step_size=3), 50)
    milestones = rates_of(
        Recipe(epochs=6, batch_size=50, warmup=2, scheduler="multistep", milestones=(3,)), 50
    )
    assert step == pytest.approx(milestones)
    assert step == pytest.approx([0.1 / 3, 0.2 / 3, 0.1, 0.01, 0.01, 0.01])


def test_published_length():
    thirty = Recipe(iterations=40_000)
    assert (thirty.steps_per_epoch(15_000), thirty.total_steps(15_000)) == (59, 40_000)
    assert thirty.model_copy(update={"whole_epochs": True}).total_steps(15_000) == 678 * 59
    exactly = (
        1e-4 + (0.1 - 1e-4) * (1 + np.cos(np.pi * np.arange(40_000.0) / 40_000)) / 2
    )  # to the last bit: trainings amplify it
    assert np.array_equal(rates_of(thirty, 15_000), exactly)
    assert Recipe(epochs=2, batch_size=4, drop_last=True).total_steps(10) == 4
    with pytest.raises(BadInput, match="no batch of 4"):
        Recipe(epochs=2, batch_size=4, drop_last=True).total_steps(3)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"epochs": 1, "iterations": 1},
        {"epochs": 0},
        {"epochs": 1, "lr": float("nan")},
        {"epochs": 1, "momentum": 0.0},
        {"epochs": 1, "lr": 1e-5},
        {"epochs": 1, "milestones": (3,)},
        {"epochs": 1, "scheduler": "multistep"},
        {"epochs": 9, "scheduler": "multistep", "milestones": (5, 3)},
        {"epochs": 1, "speed": 2},
        {"epochs": 1, "pad": -1},
        {"epochs": 9, "step_size": 3},
        {"epochs": 9, "scheduler": "step"},
        {"epochs": 3, "warmup": 3},
        {"iterations": 3, "warmup": -1},
        {"epochs": 9, "warmup": 1, "scheduler": "onecycle"},
        {"epochs": 1, "optimizer": "lamb"},
    ],
)
def test_recipe_refuses(fields):
    with pytest.raises(ValidationError):
        Recipe(**fields)


# -- loaders -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("pad", [0, 2, 5])
def test_crops_are_those_of_a_padded_image(channels, pad):
    images = torch.from_numpy(toy(20, size=6, channels=channels)[0])
    rows = torch.tensor([3, 3, 19, 0, 7])
    top, left, flip = draws_of(20, pad, True, seed=1, epoch=2)
    found = crop_flip(images, rows, (top[rows], left[rows], flip[rows]), pad)
    padded = (
        F.pad(images.permute(0, 3, 1, 2).float(), (pad,) * 4, mode="reflect")
        if pad
        else images.permute(0, 3, 1, 2).float()
    )
    for i, row in enumerate(rows.tolist()):
        crop = padded[row, :, top[row] : top[row] + 6, left[row] : left[row] + 6]
        crop = crop.flip(-1) if flip[row] else crop
        assert torch.equal(found[i].permute(2, 0, 1).float(), crop)


def test_draws_cover_their_range_evenly():
    top, left, flip = draws_of(9000, 1, True, seed=0, epoch=0)
    for offsets in (top, left):
        assert torch.bincount(offsets, minlength=3).tolist() == pytest.approx([3000] * 3, abs=200)
    assert flip.float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert not draws_of(50, 1, False, seed=0, epoch=0)[2].any()
    assert not torch.equal(top, draws_of(9000, 1, True, seed=0, epoch=1)[0])
    assert not torch.equal(top, left)


@pytest.mark.parametrize("augment", ["none", "crop", "crop_flip"])
def test_resident_and_streamed_batches_are_the_same(augment, monkeypatch):
    images, targets = toy(30, channels=3)
    rows = np.arange(29, 4, -1)
    view = View((0.4, 0.5, 0.6), (0.2, 0.3, 0.4), augment=augment, pad=2, seed=3)
    resident = open_images(images, targets[rows], view, CPU, rows=rows)
    streamed = open_images(
        Listed(images, (8, 8, 3)), targets[rows], view, CPU, rows=rows, resident=False, workers=0
    )
    assert isinstance(resident, ResidentImages)
    assert isinstance(streamed, StreamedImages)
    assert (resident.sites, resident.values) == (streamed.sites, streamed.values) == (64, 192)
    monkeypatch.setattr(
        "winnow.tasks.train.problems.images.CHUNK_VALUES", {"cpu": 8 * 8 * 3 * 8, "cuda": 1}
    )  # one batch a chunk
    both = (epoch_of(loader, 4, seed=3, batch_size=8) for loader in (resident, streamed))
    for a, b in zip(*both, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    found = torch.cat([batch.inputs for batch in resident.plain(7)])
    expected = (
        torch.from_numpy(images[rows]).permute(0, 3, 1, 2).double() / 255
        - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)
    ) / torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-6)


def test_an_epoch_visits_every_sample_once_in_an_order_of_its_own():
    images, targets = toy(23)
    loader = open_images(images, targets, View(**GREY), CPU)
    orders = [
        torch.cat([rows for rows, _, _ in epoch_of(loader, e, seed=0, batch_size=5)]) for e in (0, 1, 0)
    ]
    assert all(torch.equal(order.sort().values, torch.arange(23)) for order in orders)
    assert torch.equal(orders[0], orders[2])
    assert not torch.equal(orders[0], orders[1])
    for rows, _, y in epoch_of(loader, 2, seed=0, batch_size=5):
        assert np.array_equal(y.numpy(), targets[rows.numpy()])
    seen = []
    recipe = FAST.model_copy(update={"batch_size": 5, "drop_last": True, "iterations": 4})
    toy_train(recipe, n=23, observe=lambda rows, *_: seen.append(len(rows)))
    assert seen == [5] * 4


def test_random_resized_crops_have_the_published_area_and_aspect():
    rng = np.random.default_rng(0)
    boxes = np.array([random_resized_crop(240, 240, rng) for _ in range(3000)])
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert (boxes >= 0).all()
    assert (boxes <= 240).all()
    area, aspect = w * h / 240**2, w / h
    with torch.random.fork_rng():
        torch.manual_seed(0)
        params = [
            RandomResizedCrop.get_params(torch.empty(3, 240, 240), (0.08, 1.0), (3 / 4, 4 / 3))
            for _ in range(3000)
        ]
    theirs = np.array([p[2] * p[3] / 240**2 for p in params]), np.array([p[3] / p[2] for p in params])
    shares = np.linspace(0, 1, 11)
    np.testing.assert_allclose(np.quantile(area, shares), np.quantile(theirs[0], shares), atol=0.04)
    np.testing.assert_allclose(np.quantile(aspect, shares), np.quantile(theirs[1], shares), atol=0.04)
    np.testing.assert_allclose(
        np.quantile(boxes[:, 0], shares), np.quantile([p[1] for p in params], shares), atol=12
    )
    assert random_resized_crop(10, 1000, rng) == (493, 0, 506, 10)  # nothing fits: the centre


def of_many_sizes(n=24, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, n)
    shapes = rng.integers(9, 30, (n, 2))
    return Listed(
        [np.full((*shape, 3), 40 + 80 * y, np.uint8) for shape, y in zip(shapes, targets, strict=True)]
    ), targets


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_random_resized_crops_depend_on_seed_epoch_and_row_alone(workers):
    images, targets = of_many_sizes()
    image = np.random.default_rng(1).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    images.images = [image] * 24
    seen = []
    for batch_size, processes, seed in ((7, 0, 1), (24, workers, 1), (24, 0, 2)):
        view = View((0.5,) * 3, (0.3,) * 3, augment="imagenet", size=12, seed=seed)
        loader = open_images(images, targets, view, CPU, workers=processes)
        found = torch.empty(2, 24, 3, 12, 12)
        for epoch in (0, 1):
            for rows, x, y in epoch_of(loader, epoch, seed=seed, batch_size=batch_size):
                found[epoch, rows] = x
                assert np.array_equal(y.numpy(), targets[rows.numpy()])
        loader.close()
        seen.append(found)
    assert torch.equal(seen[0], seen[1])
    both = torch.cat([seen[0].flatten(0, 1), seen[2].flatten(0, 1)]).flatten(1)
    assert len(both.unique(dim=0)) == len(both)  # the same image at 24 rows, 2 epochs, 2 seeds


@pytest.mark.parametrize("augment", ["none", "crop_flip", "imagenet"])
def test_trains_on_images_of_many_sizes(augment):
    images, targets = of_many_sizes()
    recipe = Recipe(
        network="convnet", epochs=12, batch_size=8, lr=0.02, augment=augment, size=12, pad="scaled"
    )
    trained = train(
        images,
        targets,
        classes=3,
        mean=(0.5,) * 3,
        std=(0.3,) * 3,
        recipe=recipe,
        seed=0,
        test=(images, targets),
        workers=0,
    )
    assert trained.shape == {"classes": 3, "channels": 3, "size": 12}
    assert trained.last_accuracy > 0.9


def test_loader_refusals():
    images, targets = toy(10)
    view = View(**GREY)
    with pytest.raises(BadInput, match="9 targets of 10 images"):
        open_images(images, targets[:9], view, CPU)
    with pytest.raises(BadInput, match=r"rows\[1\] = 10 is outside"):
        open_images(images, targets[:2], view, CPU, rows=np.array([0, 10]))
    with pytest.raises(BadInput, match="not uint8"):
        open_images(images.astype(np.float32), targets, view, CPU)
    with pytest.raises(BadInput, match="3 channels"):
        open_images(np.repeat(images, 3, -1), targets, view, CPU)
    with pytest.raises(BadInput, match="not square"):
        open_images(images[:, :6], targets, view, CPU)
    with pytest.raises(BadInput, match="pad = 8"):
        open_images(images, targets, View(**GREY, augment="crop", pad=8), CPU)
    with pytest.raises(BadInput, match="no images"):
        open_images(images[:0], targets[:0], view, CPU)
    with pytest.raises(BadInput, match="does not go with augment='imagenet'"):
        open_images(images, targets, View(**GREY, augment="imagenet"), CPU, resident=True)


def test_what_takes_decoding_is_decoded_once():
    images, targets = of_many_sizes()
    reads = []
    images.read = lambda rows, read=images.read: reads.append(len(rows)) or read(rows)
    for _ in range(3):
        open_images(images, targets, View((0.5,) * 3, (0.3,) * 3, size=12), CPU)
    assert reads == [24]
    open_images(images, targets, View((0.5,) * 3, (0.3,) * 3, size=10), CPU)
    assert reads == [24, 24], "another size is another picture"


# -- the loop ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.9, True), (0.9, False), (0.0, False)])
def test_the_loop_is_plain_sgd(momentum, nesterov):
    images, targets = toy(50)
    recipe = Recipe(
        network="convnet",
        iterations=9,
        batch_size=16,
        augment="crop",
        pad=1,
        label_smoothing=0.1,
        momentum=momentum,
        nesterov=nesterov,
    )
    trained = train(images, targets, classes=3, recipe=recipe, seed=3, **GREY)
    network = build("convnet", classes=3, channels=1, size=8, seed=3)
    optimiser = torch.optim.SGD(
        network.parameters(), lr=0.1, momentum=momentum, nesterov=nesterov, weight_decay=5e-4, foreach=False
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 9, 1e-4)
    loader = open_images(images, targets, View(**GREY, augment="crop", pad=1, seed=3), CPU)
    losses = []
    for _, x, y in [batch for epoch in range(3) for batch in epoch_of(loader, epoch, seed=3)][:9]:
        optimiser.zero_grad()
        loss = F.cross_entropy(network(x.contiguous()), y, label_smoothing=0.1)
        losses.append(loss.item() * len(y))
        loss.backward()
        optimiser.step()
        scheduler.step()
    for name, value in network.state_dict().items():
        torch.testing.assert_close(trained.network[name], value, atol=1e-5, rtol=1e-4, msg=name)
    rows = [row for row in trained.history if row["split"] == "train"]
    assert [row["samples_seen"] for row in rows] == [50, 100, 116]
    assert rows[0]["loss"] == pytest.approx(sum(losses[:4]) / 50, rel=1e-5)


@pytest.mark.parametrize(("optimizer", "theirs"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_the_loop_is_plain_adam(optimizer, theirs):
    images, targets = toy(50)
    recipe = Recipe(
        network="convnet",
        optimizer=optimizer,
        iterations=9,
        batch_size=16,
        lr=0.01,
        min_lr=0,
        weight_decay=0.1,
        augment="none",
    )
    trained = train(images, targets, classes=3, recipe=recipe, seed=3, **GREY)
    network = build("convnet", classes=3, channels=1, size=8, seed=3)
    optimiser = theirs(network.parameters(), lr=0.01, weight_decay=0.1, foreach=False)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 9)
    loader = open_images(images, targets, View(**GREY), CPU)
    for _, x, y in [batch for epoch in range(3) for batch in epoch_of(loader, epoch, seed=3)][:9]:
        optimiser.zero_grad()
        F.cross_entropy(network(x.contiguous()), y).backward()
        optimiser.step()
        scheduler.step()
    for name, value in network.state_dict().items():
        torch.testing.assert_close(trained.network[name], value, atol=1e-4, rtol=1e-3, msg=name)


def test_digits_are_learned_and_fewer_samples_give_less(digits):
    images, targets, rows, held = digits
    recipe = Recipe(network="convnet", iterations=300, batch_size=64, augment="none")
    found = {}
    for n in (72, 1437):
        result = train(
            images,
            targets[rows[:n]],
            rows=rows[:n],
            classes=10,
            recipe=recipe,
            seed=0,
            test=(images[held], targets[held]),
            **GREY,
        )
        found[n] = result.last_accuracy
    assert found[1437] > 0.98
    assert found[72] < found[1437] - 0.03


def test_history_and_lengths():
    images, targets = toy(50)
    told = []
    trained = toy_train(
        FAST.model_copy(update={"iterations": 10, "test_interval": 4}),
        test=(images[:20], targets[:20]),
        progress=lambda done, total, note: told.append((done, total)),
    )
    assert trained.steps == 10
    assert trained.epochs == 3  # 4 + 4 + 2 steps
    tests = [row for row in trained.history if row["split"] == "test"]
    assert [row["step"] for row in tests] == [4, 8, 10]
    assert set(tests[0]) == {"epoch", "step", "split", "loss", "accuracy", "lr", "seconds", "samples_seen"}
    assert trained.last_accuracy == tests[-1]["accuracy"]
    assert trained.best_accuracy == max(row["accuracy"] for row in tests)
    assert trained.samples_seen == 50 + 50 + 32
    assert trained.history[0]["lr"] == pytest.approx(
        rates_of(FAST.model_copy(update={"iterations": 10}), 50)[3]
    )
    assert told[-1] == (10, 10)
    seconds = [row["seconds"] for row in trained.history]
    assert seconds == sorted(seconds)
    assert toy_train(FAST.model_copy(update={"iterations": 10, "whole_epochs": True})).steps == 12
    once = toy_train(test=(images, targets))
    assert [row["step"] for row in once.history if row["split"] == "test"] == [12]
    assert toy_train().best_accuracy is None


def test_same_seed_same_network_and_nothing_global_moves():
    images, _ = toy(50)
    kept, before, threads = images.copy(), torch.get_rng_state(), torch.get_num_threads()
    numpy_before = np.random.get_state()[1].copy()  # noqa: NPY002
    one, again, other = toy_train(), toy_train(), toy_train(seed=1)
    assert same_weights(one, again)
    assert not same_weights(one, other)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002
    assert torch.get_num_threads() == threads
    assert np.array_equal(images, kept)


def test_trainings_side_by_side_do_not_touch_each_other():
    threads = torch.get_num_threads()
    alone = [toy_train(seed=s) for s in (0, 1)]
    together = [None, None]

    def work(i):
        together[i] = toy_train(seed=i)

    workers = [threading.Thread(target=work, args=(i,)) for i in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(same_weights(a, b) for a, b in zip(alone, together, strict=True))
    assert torch.get_num_threads() == threads


def test_observer_sees_the_logits_of_the_loss():
    images, targets = toy(50)
    seen = []
    recipe = Recipe(network="convnet", epochs=3, batch_size=16, augment="crop", pad=1)
    trained = train(
        images,
        targets,
        classes=3,
        recipe=recipe,
        seed=0,
        observe=lambda rows, logits, y, epoch: seen.append((rows.clone(), logits.clone(), y.clone(), epoch)),
        **GREY,
    )
    loader = open_images(images, targets, View(**GREY, augment="crop", pad=1, seed=0), CPU)
    rows, x, y = epoch_of(loader, 0, seed=0)[0]
    network = build("convnet", classes=3, channels=1, size=8, seed=0).train()
    assert torch.equal(seen[0][0], rows)
    torch.testing.assert_close(seen[0][1], network(x).detach(), atol=1e-5, rtol=1e-5)
    assert torch.equal(seen[0][2], y)
    for epoch in range(3):
        visited = torch.cat([r for r, _, _, e in seen if e == epoch])
        assert torch.equal(visited.sort().values, torch.arange(50))
    last = [(logits, y) for _, logits, y, e in seen if e == 2]
    loss = sum(F.cross_entropy(logits, y, reduction="sum") for logits, y in last) / 50
    accuracy = sum((logits.argmax(1) == y).sum() for logits, y in last) / 50
    assert trained.history[-1]["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert trained.history[-1]["accuracy"] == pytest.approx(float(accuracy))


class Killed(Exception):
    pass


class Dying(DynamicsAccumulator):
    """An accumulator whose process dies at a given step of a given epoch."""

    dies, at, calls = -1, 0, 0

    def __call__(self, rows, logits, y, epoch):
        self.calls = self.calls + 1 if epoch == self.dies else 0
        if epoch == self.dies and self.calls > self.at:
            raise Killed
        super().__call__(rows, logits, y, epoch)


def checkpoint_every(monkeypatch, seconds):
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SECONDS", seconds)
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SHARE", 1e9)


@pytest.mark.parametrize("cadence", [0.0, 0.004])
@pytest.mark.parametrize(
    ("network", "optimizer", "lr"),
    [("mlp", "sgd", 0.05), ("convnet", "sgd", 0.05), ("convnet", "adam", 0.01)],
)
def test_resumed_is_bit_identical(network, optimizer, lr, cadence, tmp_path, monkeypatch):
    images, targets = toy(50)
    recipe = Recipe(
        network=network,
        optimizer=optimizer,
        epochs=9,
        batch_size=16,
        lr=lr,
        augment="crop",
        pad=1,
        test_interval=1,
    )
    options = {"classes": 3, "recipe": recipe, "seed": 0, "test": (images, targets), **GREY}
    whole_dynamics = DynamicsAccumulator(50, 3)
    whole = train(images, targets, observe=whole_dynamics, **options)

    checkpoint_every(monkeypatch, cadence)
    scratch = Scratch(tmp_path)
    for epoch in (5, 7):
        dynamics = Dying(50, 3)
        dynamics.dies = epoch
        with pytest.raises(Killed):
            train(images, targets, observe=dynamics, scratch=scratch, **options)
    saved = scratch.load("train")
    if not cadence:
        assert saved["counts"][:2] == [7, 0]
    dynamics = DynamicsAccumulator(50, 3)
    resumed = train(images, targets, observe=dynamics, scratch=scratch, **options)
    assert same_weights(whole, resumed)
    one, other = whole_dynamics.scores(), dynamics.scores()
    assert all(np.array_equal(one[name], other[name]) for name in one)
    strip = lambda rows: [{k: v for k, v in row.items() if k != "seconds"} for row in rows]  # noqa: E731
    assert strip(whole.history) == strip(resumed.history)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_resumed_within_an_epoch_is_bit_identical(at, tmp_path, monkeypatch):
    images, targets = toy(50)
    recipe = Recipe(
        network="convnet", epochs=5, batch_size=16, lr=0.05, augment="crop", pad=1, test_interval=1
    )
    options = {"classes": 3, "recipe": recipe, "seed": 0, "test": (images, targets), **GREY}
    whole_dynamics = DynamicsAccumulator(50, 3)
    whole = train(images, targets, observe=whole_dynamics, **options)
    checkpoint_every(monkeypatch, 0.0)
    monkeypatch.setattr(loop, "TICK_SECONDS", 0.0)
    scratch, dying = Scratch(tmp_path), Dying(50, 3)
    dying.dies, dying.at = 2, at
    with pytest.raises(Killed):
        train(images, targets, observe=dying, scratch=scratch, **options)
    assert scratch.load("train")["counts"][:2] == [2, at]
    dynamics = DynamicsAccumulator(50, 3)
    resumed = train(images, targets, observe=dynamics, scratch=scratch, **options)
    assert same_weights(whole, resumed)
    one, other = whole_dynamics.scores(), dynamics.scores()
    assert all(np.array_equal(one[name], other[name]) for name in one)
    strip = lambda rows: [{k: v for k, v in row.items() if k != "seconds"} for row in rows]  # noqa: E731
    assert strip(whole.history) == strip(resumed.history)


def test_checkpoints_take_a_small_share_of_the_time(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(checkpoint.time, "perf_counter", lambda: clock[0])
    saves = []

    class Slow:
        def save(self, name, state):
            saves.append(clock[0])
            clock[0] += 3.0

    run = checkpoint.Run("x", Slow())
    network = torch.nn.Linear(1, 1)
    optimizer = type("O", (), {"optimizer": type("S", (), {"state": []})})
    while clock[0] < 1000:
        clock[0] += 1.0
        run.save_when_due(network, optimizer, None)
    assert 3.0 * len(saves) <= 0.025 * 1000
    assert saves[0] <= 3.0


class Halves:
    """Trains on the rows of higher loss once all have been seen; every other epoch on all."""

    def plan(self, epoch, seen, generator):
        loss = seen["loss"]
        hidden = epoch % 2 == 1
        rows = loss.argsort(descending=True)[: len(loss) // 2] if hidden else torch.arange(len(loss))
        return EpochPlan(rows, torch.ones(len(rows)))

    def identity(self):
        return "halves"


def test_a_policy_plans_by_what_was_seen_and_the_schedule_ends_where_it_should(tmp_path, monkeypatch):
    images, targets = toy(64)
    recipe = Recipe(network="mlp", epochs=6, batch_size=16, lr=0.05, augment="none", min_lr=0.0)
    options = {"classes": 3, "recipe": recipe, "seed": 0, **GREY}
    problem = ImageProblem(images, targets, classes=3, **GREY)
    dynamics = DynamicsAccumulator(64, 3, keep_rows=True)
    trained = loop.train(problem, recipe, seed=0, policy=Halves(), observe=dynamics)
    rows = list(dynamics.epoch_rows())
    assert [len(r.ids) for r in rows] == [64, 32, 64, 32, 64, 32]
    hardest = np.sort(np.argsort(-rows[2].columns["loss"], kind="stable")[:32])
    assert np.array_equal(rows[3].ids, hardest)
    assert trained.samples_seen == 3 * 96
    rates = [row["lr"] for row in trained.history]
    full = rates_of(recipe, 64)
    assert rates[0] == full[3], "an epoch on everything ends at its last step"
    assert rates[1] == pytest.approx(full[6]), (
        "one of two steps ends at its second, two steps before the epoch's end"
    )
    assert rates[-1] == pytest.approx(full[22])
    checkpoint_every(monkeypatch, 0.0)
    scratch, dying = Scratch(tmp_path), Dying(64, 3)
    dying.dies = 3
    with pytest.raises(Killed):
        loop.train(problem, recipe, seed=0, policy=Halves(), observe=dying, scratch=scratch)
    resumed = loop.train(
        problem, recipe, seed=0, policy=Halves(), observe=DynamicsAccumulator(64, 3), scratch=scratch
    )
    assert same_weights(trained, resumed)
    assert not same_weights(trained, train(images, targets, **options))


def test_a_checkpoint_of_other_work_is_not_continued(tmp_path, monkeypatch):
    checkpoint_every(monkeypatch, 0.0)
    scratch = Scratch(tmp_path)
    toy_train(scratch=scratch)
    assert scratch.load("train")["counts"][2] == 12
    assert same_weights(toy_train(seed=1, scratch=scratch), toy_train(seed=1))
    weights = np.linspace(1, 2, 50)
    assert same_weights(
        toy_train(seed=1, weights=weights, scratch=scratch), toy_train(seed=1, weights=weights)
    )
    file = next(tmp_path.glob("*.state"))
    file.write_bytes(file.read_bytes()[:-9])
    assert same_weights(toy_train(seed=1, scratch=scratch), toy_train(seed=1))


def test_an_observer_that_cannot_resume_needs_no_scratch(tmp_path):
    with pytest.raises(BadInput, match="state_dict"):
        toy_train(observe=lambda *batch: None, scratch=Scratch(tmp_path))


def test_weights_are_multiplicities():
    images, targets = toy(12)
    recipe = Recipe(network="mlp", iterations=5, batch_size=64, lr=0.05, augment="none")
    twice = np.array([0, 1, 2, 2, 3, 3, 4, 5, 6, 7, 8, 8, 9, 10, 11])
    weights = np.bincount(twice).astype(float)
    options = {"classes": 3, "recipe": recipe, "seed": 0, **GREY}
    repeated = train(images, targets[twice], rows=twice, **options)
    weighted = train(images, targets, weights=weights, **options)
    unweighted = train(images, targets, **options)
    scaled = train(images, targets, weights=7 * weights, **options)
    gap = lambda a, b: max(float((a.network[k] - b.network[k]).abs().max()) for k in a.network)  # noqa: E731
    assert gap(repeated, weighted) < 1e-5
    assert gap(scaled, weighted) < 1e-5
    assert gap(unweighted, weighted) > 1e-3
    with pytest.raises(BadInput, match=r"weights\[0\] = 0.0 is not positive"):
        train(images, targets, weights=np.zeros(12), **options)
    with pytest.raises(BadInput, match="weights have shape"):
        train(images, targets, weights=np.ones(11), **options)


def test_divergence_is_named(tmp_path):
    with pytest.raises(
        WinnowError, match=r"diverged: loss (nan|inf) at epoch \d+, step \d+, learning rate 1e\+30"
    ) as error:
        toy_train(
            Recipe(network="convnet", epochs=4, batch_size=16, lr=1e30, scheduler="constant"),
            observe=DynamicsAccumulator(50, 3),
        )
    assert "lr" in error.value.remedy


def test_refusals():
    images, targets = toy(50)
    options = {"classes": 3, "recipe": FAST, "seed": 0, **GREY}
    with pytest.raises(BadInput, match=r"targets\[4\] = 3 is not one of 3 classes"):
        train(images, np.where(np.arange(50) == 4, 3, targets), **options)
    with pytest.raises(BadInput, match="not whole numbers"):
        train(images, targets.astype(float), **options)
    with pytest.raises(BadInput, match=r"targets\[0\] = -1"):
        train(images, targets, test=(images, targets - 1 - targets[0]), **options)
    with pytest.raises(BadInput, match="3 channels"):
        train(images, targets, test=(np.repeat(toy(5)[0], 3, -1), targets[:5]), **options)
    with pytest.raises(UnknownName, match="convnet"):
        toy_train(FAST.model_copy(update={"network": "convnets"}))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_training_does_not_import_the_compiler(optimizer):
    code = (
        "import sys, numpy as np; from winnow.tasks.train.loop import train; "
        "from winnow.tasks.train.problems.images import ImageProblem; "
        "from winnow.tasks.train.recipe import Recipe; "
        "images, targets = np.zeros((8, 8, 8, 1), np.uint8), np.zeros(8, int); "
        "problem = ImageProblem(images, targets, classes=2, mean=(0.0,), std=(1.0,)); "
        f"recipe = Recipe(network='convnet', optimizer='{optimizer}', iterations=2, batch_size=8, "
        "augment='none'); "
        "train(problem, recipe, seed=0); "
        "print('torch._dynamo' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"  # it takes longer than most of our CPU trainings


# -- after training ------------------------------------------------------------------------------------------


def test_predictions_are_those_that_were_evaluated(digits):
    images, targets, rows, held = digits
    recipe = Recipe(network="convnet", iterations=60, batch_size=64)
    trained = train(
        images,
        targets[rows],
        rows=rows,
        classes=10,
        recipe=recipe,
        seed=0,
        test=(images[held], targets[held]),
        **GREY,
    )
    network = trained.module()
    assert not network.training
    logits, features = predict(network, images, rows=held, batch_size=50, **GREY)
    assert (logits.shape, features.shape) == ((360, 10), (360, 32))
    assert logits.dtype == features.dtype == np.float32
    assert (logits.argmax(1) == targets[held]).mean() == pytest.approx(trained.last_accuracy)
    x = torch.from_numpy(images[held[:3]]).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        direct = network((x - 0.3) / 0.35).numpy()
    np.testing.assert_allclose(logits[:3], direct, atol=1e-4)
    with torch.inference_mode():
        np.testing.assert_allclose(network.head(torch.from_numpy(features)).numpy(), logits, atol=1e-4)
    whole, _ = predict(network, images, **GREY)
    np.testing.assert_allclose(whole[held], logits, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 0.02), ("adam", 0.001)])
def test_captured_steps_are_eager_steps(optimizer, lr, monkeypatch):
    images, targets = toy(200)
    shared = {
        "network": "convnet",
        "optimizer": optimizer,
        "lr": lr,
        "augment": "crop",
        "pad": 1,
        "amp": "off",
    }
    recipe = Recipe(epochs=6, batch_size=64, **shared)  # 3 full batches and one of 8
    seen = {}

    def run(name):
        dynamics = DynamicsAccumulator(200, 3, "cuda")
        trained = train(
            images, targets, classes=3, recipe=recipe, seed=0, device="cuda", observe=dynamics, **GREY
        )
        seen[name] = trained, dynamics.scores()

    run("graph")
    monkeypatch.setattr(stepping, "WARM_UP_CALLS", 10**9)
    run("eager")
    for name, value in seen["eager"][0].network.items():
        torch.testing.assert_close(seen["graph"][0].network[name], value, atol=2e-3, rtol=1e-2, msg=name)
    np.testing.assert_allclose(seen["graph"][1]["aum"], seen["eager"][1]["aum"], atol=2e-2)
    cpu = train(images, targets, classes=3, recipe=recipe, seed=0, **GREY)
    np.testing.assert_allclose(
        [r["loss"] for r in cpu.history], [r["loss"] for r in seen["graph"][0].history], rtol=0.05, atol=0.01
    )
