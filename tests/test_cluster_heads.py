"""Cluster heads against the published code (loss, gradients, schedules, a training), and in the corners."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from winnow.tasks.embed.knn import Graph, knn
from winnow.tasks.errors import BadInput, WinnowError
from winnow.tasks.store import Scratch
from winnow.tasks.train import cluster_heads as module
from winnow.tasks.train import heads_step
from winnow.tasks.train.cluster_heads import (
    ClusterHeads,
    HeadsConfig,
    class_prior,
    cosine_schedule,
    predict,
    teacher_temperatures,
    temi_loss,
    train_cluster_heads,
)
from winnow.tasks.train.kmeans import kmeans_labels
from winnow.tasks.train.metrics import clustering_metrics
from winnow.tasks.train.upstream import heads as published
from winnow.tasks.train.upstream.heads import ByTestLabels

GOLDEN = np.load(Path(__file__).parent / "golden" / "temi_loss.npz", allow_pickle=False)
CPU = torch.device("cpu")
CASES = ["tiny", "rand_H3_B5_K4_b6", "rand_H1_B6_K3_b6", "rand_H3_B5_K4_b10", "rand_H1_B6_K3_b10", "pospmi"]


def golden(name: str) -> torch.Tensor:
    return torch.from_numpy(GOLDEN[name])


def logits(case):
    return (
        golden(f"{case}_student_logits").clone(),
        golden(f"{case}_teacher_logits").clone(),
        float(GOLDEN[f"{case}_beta"]),
    )


@pytest.mark.parametrize("case", CASES)
def test_loss_prior_and_gradient(case):
    student, teacher, beta = logits(case)
    student.requires_grad_()
    heads, _, classes = student.shape
    prior = torch.full((heads, classes), 1.0 / classes)
    for call, (losses, shares) in enumerate(
        zip(golden(f"{case}_head_losses"), golden(f"{case}_pk"), strict=True)
    ):
        prior = class_prior(prior, teacher)
        found = temi_loss(student, teacher, prior, beta, positive_pmi=case == "pospmi")
        torch.testing.assert_close(prior, shares, atol=1e-6, rtol=0)
        torch.testing.assert_close(found.detach(), losses, atol=2e-6, rtol=2e-6)
        if call == 0:
            found.mean().backward()
            torch.testing.assert_close(student.grad, golden(f"{case}_grad_student"), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("case", ["tiny", "rand_H3_B5_K4_b6", "rand_H3_B5_K4_b10"])
@pytest.mark.parametrize("loss", ["scan", "pmi", "wmi", "wmi_reg"])
def test_other_losses(case, loss):
    student, teacher, beta = logits(case)
    prior = class_prior(torch.full((1, student.shape[2]), 1.0 / student.shape[2]), teacher[:1])
    found = temi_loss(student[:1], teacher[:1], prior, beta, loss=loss)
    assert float(found[0]) == pytest.approx(float(GOLDEN[f"{case}_{loss}"]), abs=2e-6)


def test_extreme_logits_stay_finite():
    student, teacher, beta = logits("extreme")
    student.requires_grad_()
    prior = class_prior(torch.full((2, 5), 0.2), teacher)
    torch.testing.assert_close(prior, golden("extreme_pk")[0], atol=1e-6, rtol=0)
    found = temi_loss(student, teacher, prior, beta)
    torch.testing.assert_close(
        found.detach().double(), golden("corrected_extreme_head_losses"), rtol=1e-4, atol=0
    )
    found.mean().backward()
    torch.testing.assert_close(
        student.grad.double(), golden("corrected_extreme_grad_student"), atol=1e-4, rtol=0
    )
    assert not np.isfinite(GOLDEN["extreme_head_losses"]).any()  # the published form


def test_a_dead_cluster_does_not_break_the_loss():
    student = torch.zeros(1, 2, 3, requires_grad=True)
    found = temi_loss(
        student, torch.tensor([[[9.0, 0.0, -300.0], [9.0, 0.0, -300.0]]]), torch.tensor([[1.0, 0.0, 0.0]])
    )
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert torch.isfinite(student.grad).all()


def test_the_teachers_loss_does_not_reward_collapse():
    """All samples in one cluster: the student's loss falls below K clusters', the teacher's does not."""
    teacher = torch.zeros(1, 8, 10)
    teacher[:, :, 0] = 1.2
    student = torch.zeros(1, 8, 10)
    student[:, :, 5] = 1.2
    prior = class_prior(torch.full((1, 10), 0.1), teacher, momentum=0.0)
    assert temi_loss(student, teacher, prior).item() < -np.log(10)
    assert temi_loss(teacher, teacher, prior).item() > -1.0


@pytest.mark.parametrize("row", range(3))
def test_schedules(row):
    start, end, epochs, steps, warm = GOLDEN["sched_args"][row]
    np.testing.assert_allclose(
        cosine_schedule(start, end, int(epochs), int(steps), int(warm)), GOLDEN[f"sched_{row}"], rtol=1e-12
    )


def test_short_schedules():
    assert cosine_schedule(1.0, 0.5, 2, 3, 20).round(9).tolist() == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert cosine_schedule(1.0, 0.5, 1, 1, 0).tolist() == [1.0]
    config = HeadsConfig(
        epochs=3, teacher_temperature_start=0.04, teacher_temperature=0.07, teacher_temperature_epochs=4
    )
    assert teacher_temperatures(config).round(6).tolist() == [0.04, 0.05, 0.06]
    config = HeadsConfig(
        epochs=4, teacher_temperature_start=0.04, teacher_temperature=0.07, teacher_temperature_epochs=2
    )
    assert teacher_temperatures(config).tolist() == [0.04, 0.07, 0.07, 0.07]


TRAININGS = {
    "train_b6": {"beta": 0.6, "lr": 0.03, "min_lr": 0.03},
    "train_b10": {
        "beta": 1.0,
        "lr": 0.05,
        "min_lr": 0.005,
        "weight_decay": 0.04,
        "weight_decay_end": 0.4,
        "momentum": 0.9,
        "momentum_end": 1.0,
    },
}


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("case", TRAININGS)
def test_training_follows_the_published_one(case, groups, monkeypatch):
    heads, dim, classes, _, batch, epochs, neighbours, beta, hidden, bottleneck, warm = GOLDEN[
        f"{case}_hyper"
    ].tolist()
    config = HeadsConfig(
        heads=int(heads),
        epochs=int(epochs),
        batch_size=int(batch),
        neighbours=int(neighbours),
        hidden=int(hidden),
        bottleneck=int(bottleneck),
        warmup_epochs=int(warm),
        **TRAININGS[case],
    )
    assert config.beta == beta
    # as many heads at once as make 1, 2 or 3 groups
    monkeypatch.setitem(heads_step.LOGITS, "cpu", [3, 2, 1][groups - 1] * 2 * int(batch) * int(classes))
    student = ClusterHeads(int(heads), int(dim), int(classes), hidden=int(hidden), bottleneck=int(bottleneck))
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            parameter.copy_(golden(f"{case}_init_{name}"))
    steps = len(GOLDEN[f"{case}_epoch"]) // int(epochs)
    trainer = heads_step.HeadsTrainer(student, config, int(batch), steps, CPU, torch.float32)
    assert len(trainer.groups) == groups
    for column, name in enumerate(("lr", None, "momentum")):
        if name:
            expected = golden(f"{case}_{name}").float()
            torch.testing.assert_close(
                trainer.schedule[:, column], expected if name == "lr" else 1 - expected, rtol=1e-5, atol=1e-7
            )
    torch.testing.assert_close(trainer.schedule[::steps, 3], golden(f"{case}_teacher_temp").float())
    trainer.schedule[:, 1] = (1 - golden(f"{case}_lr") * golden(f"{case}_wd")).float()

    x = golden(f"{case}_x")
    for number, (i, j, epoch) in enumerate(
        zip(golden(f"{case}_i"), golden(f"{case}_j"), GOLDEN[f"{case}_epoch"].tolist(), strict=True)
    ):
        before = trainer.losses[0].clone()
        trainer.step(x[torch.cat([i, j])], number, frozen=epoch < 1)
        torch.testing.assert_close(
            trainer.losses[0] - before, golden(f"{case}_head_losses")[number], atol=5e-5, rtol=0
        )
        torch.testing.assert_close(trainer.prior, golden(f"{case}_pk")[number], atol=1e-5, rtol=0)
        if (number + 1) % steps == 0:
            assert int(trainer.losses[0].argmin()) == GOLDEN[f"{case}_best_head"][epoch]
            trainer.losses.zero_()
        if number + 1 == steps:
            for name, parameter in trainer.student.items():
                torch.testing.assert_close(
                    parameter, golden(f"{case}_epoch0_student_{name}"), atol=2e-4, rtol=0
                )
            assert torch.equal(trainer.student["v"], golden(f"{case}_init_v"))
            assert torch.equal(trainer.student["g"], golden(f"{case}_init_g"))
    for who in ("student", "teacher"):
        for name, parameter in getattr(trainer, who).items():
            torch.testing.assert_close(parameter, golden(f"{case}_final_{who}_{name}"), atol=2e-4, rtol=0)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_heads_are_independent(layers):
    """All heads at once = each head by plain layers of its own."""
    heads = ClusterHeads(
        3, 7, 4, hidden=6, bottleneck=5, layers=layers, generator=torch.Generator().manual_seed(1)
    )
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    x = torch.randn(9, 7, generator=torch.Generator().manual_seed(3))
    found = heads(x)
    weights = dict(heads.named_parameters())
    for h in range(3):
        z = x
        for depth in range(1, layers + 1):
            z = torch.nn.functional.linear(
                z if depth == 1 else torch.nn.functional.gelu(z),
                weights[f"w{depth}"][h],
                weights[f"b{depth}"][h],
            )
        z = z / z.norm(dim=1, keepdim=True)
        v = weights["v"][h] / weights["v"][h].norm(dim=1, keepdim=True)
        torch.testing.assert_close(found[h], z @ (v * weights["g"][h]).T, atol=1e-5, rtol=1e-5)


def test_weight_counts_and_start():
    heads = ClusterHeads(2, 384, 10)
    assert sum(p.numel() for p in heads.parameters()) == 2 * 331_018
    assert heads.w1.std().item() == pytest.approx(0.02, rel=0.01)
    assert heads.v.abs().max() <= 1 / 16
    assert not torch.equal(heads.w1[0], heads.w1[1])


# -- whole trainings -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def blobs():
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(4), 40)
    features = (rng.normal(size=(4, 8))[truth] + 0.15 * rng.normal(size=(160, 8))).astype(np.float32)
    return features, knn(features, 10, device=CPU), truth


QUICK = HeadsConfig(
    heads=3,
    epochs=8,
    batch_size=32,
    neighbours=10,
    hidden=16,
    bottleneck=8,
    lr=0.05,
    min_lr=0.05,
    warmup_epochs=2,
    momentum=0.9,
    momentum_end=0.9,
)


def same(one, other):
    assert (one.labels == other.labels).all()
    assert (one.confidence == other.confidence).all()
    assert (one.losses == other.losses).all()
    assert (one.teacher_losses == other.teacher_losses).all()
    assert (one.head, one.epoch) == (other.head, other.epoch)
    for name, weight in one.state["weights"].items():
        assert torch.equal(weight, other.state["weights"][name])


def test_result(blobs):
    features, graph, truth = blobs
    before, state = features.copy(), torch.get_rng_state()
    found = train_cluster_heads(features, graph, QUICK, classes=4, device=CPU)
    assert (features == before).all()
    assert torch.equal(torch.get_rng_state(), state)
    assert found.labels.dtype == np.int32
    assert found.confidence.dtype == np.float32
    assert found.losses.shape == (8, 3)
    assert ((found.confidence > 1 / 4) & (found.confidence <= 1)).all()
    assert found.used == len(set(found.labels.tolist()))
    assert not found.oracle
    assert found.teacher_losses.min() == found.teacher_losses[found.epoch, found.head]
    assert clustering_metrics(found.labels, truth)["accuracy"] > 90
    labels, confidence = predict(found.state, features, device=CPU)
    assert (labels == found.labels).all()
    assert (confidence == found.confidence).all()
    same(found, train_cluster_heads(features, graph, QUICK, classes=4, device=CPU))
    generators = [torch.Generator().manual_seed(5) for _ in range(2)]
    one, other = (
        train_cluster_heads(features, graph, QUICK, classes=4, seed=g, device=CPU) for g in generators
    )
    same(one, other)
    assert (one.losses != found.losses).any()


@pytest.mark.parametrize("stop", [1, 4, 7])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_resumed_training_is_bit_identical(blobs, tmp_path, stop, noise, monkeypatch):
    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", 0.0)
    features, graph, _ = blobs
    config = QUICK.model_copy(update={"noise": noise})
    whole = train_cluster_heads(features, graph, config, classes=4, device=CPU)
    epochs = []

    def interrupt(done, total, note):
        epochs.append(done)
        if done == stop:
            raise KeyboardInterrupt

    scratch = Scratch(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train_cluster_heads(
            features, graph, config, classes=4, device=CPU, scratch=scratch, progress=interrupt
        )
    same(
        whole,
        train_cluster_heads(
            features, graph, config, classes=4, device=CPU, scratch=scratch, progress=interrupt
        ),
    )
    assert epochs == list(range(1, 9))  # none twice

    # another seed must not pick the checkpoint up
    other = train_cluster_heads(features, graph, config, classes=4, seed=1, device=CPU, scratch=scratch)
    same(other, train_cluster_heads(features, graph, config, classes=4, seed=1, device=CPU))


def test_small_and_odd_sizes(blobs):
    features, graph, _ = blobs
    for update in (
        {"heads": 1, "epochs": 1},
        {"batch_size": 10_000, "epochs": 2},  # more than there are: one step of all samples
        {"batch_size": 33, "epochs": 2, "layers": 1},
        {"batch_size": 1, "epochs": 1, "layers": 3},
        {"loss": "scan", "epochs": 2},
        {"loss": "wmi_reg", "positive_pmi": True, "epochs": 2, "normalise": "l2"},
        {"frozen_epochs": 0, "warmup_epochs": 0, "epochs": 2, "normalise": "zscore"},
        {"frozen_epochs": 5, "epochs": 2},
    ):
        found = train_cluster_heads(features, graph, QUICK.model_copy(update=update), classes=3, device=CPU)
        assert np.isfinite(found.losses).all()
        assert found.labels.max() < 3


def test_float16_features(blobs):
    features, graph, _ = blobs
    half = features.astype(np.float16)
    same(
        train_cluster_heads(half, graph, QUICK, classes=4, device=CPU),
        train_cluster_heads(half.astype(np.float32), graph, QUICK, classes=4, device=CPU),
    )


def test_bfloat16_is_repeatable(blobs):
    features, graph, truth = blobs
    one, other = (
        train_cluster_heads(features, graph, QUICK, classes=4, device=CPU, dtype=torch.bfloat16)
        for _ in range(2)
    )
    same(one, other)
    assert one.losses.dtype == np.float32
    assert clustering_metrics(one.labels, truth)["accuracy"] > 90


def test_standardising_makes_scale_irrelevant(blobs):
    features, graph, truth = blobs
    config = QUICK.model_copy(update={"normalise": "zscore"})
    one = train_cluster_heads(features, graph, config, classes=4, device=CPU)
    other = train_cluster_heads(features * 1024 + 4096, graph, config, classes=4, device=CPU)
    assert clustering_metrics(one.labels, truth)["accuracy"] > 90
    np.testing.assert_allclose(one.losses, other.losses, atol=1e-2)


def test_epochs_compare_at_the_final_temperature(blobs):
    features, graph, _ = blobs
    config = QUICK.model_copy(update={"teacher_temperature_start": 0.02, "teacher_temperature_epochs": 6})
    found = train_cluster_heads(features, graph, config, classes=4, device=CPU)
    eligible = teacher_temperatures(config) == config.teacher_temperature
    assert eligible.tolist() == [False] * 5 + [True] * 3
    assert eligible[found.epoch]
    assert found.teacher_losses[found.epoch, found.head] == found.teacher_losses[eligible].min()


def test_oracle(blobs, monkeypatch):
    """The published choice: best test accuracy among every 20th epoch, which need not be the lowest loss."""
    monkeypatch.setattr(published, "SAVED_EVERY", 3)
    features, graph, truth = blobs
    oracle = ByTestLabels(features[::2], truth[::2], CPU)
    found = train_cluster_heads(features, graph, QUICK, classes=4, device=CPU, choice=oracle)
    assert found.oracle
    assert found.epoch in (0, 3, 6)
    assert found.head == found.losses[found.epoch].argmin()
    accuracies = {}
    for epochs in (
        1,
        4,
        7,
    ):  # what each saved epoch would have scored: constant schedules, so a shorter run has the same epochs
        config = QUICK.model_copy(update={"epochs": epochs, "warmup_epochs": 0})
        shorter = train_cluster_heads(features, graph, config, classes=4, device=CPU, choice=oracle)
        accuracies[epochs - 1] = clustering_metrics(
            predict(shorter.state, features[::2], device=CPU)[0], truth[::2]
        )["accuracy"]
    assert accuracies[0] <= accuracies[3] <= accuracies[6]
    with pytest.raises(BadInput, match="160 test features and 80 test labels"):
        ByTestLabels(features, truth[::2])
    with pytest.raises(BadInput, match="5 dimensions"):
        train_cluster_heads(
            features, graph, QUICK, classes=4, device=CPU, choice=ByTestLabels(features[:, :5], truth, CPU)
        )


def test_digits_beat_kmeans():
    """Label-free on raw pixels: about 87 % against 70 to 79 %."""
    digits = load_digits()
    features, truth = (digits.data / 16).astype(np.float32), digits.target
    config = HeadsConfig(
        heads=6,
        epochs=60,
        batch_size=256,
        neighbours=15,
        hidden=64,
        bottleneck=32,
        lr=4e-3,
        min_lr=4e-3,
        warmup_epochs=5,
        momentum=0.95,
        momentum_end=0.95,
    )
    found = train_cluster_heads(features, knn(features, 15, device=CPU), config, classes=10, device=CPU)
    heads, kmeans = (
        clustering_metrics(labels, truth)
        for labels in (found.labels, kmeans_labels(features, 10, restarts=10))
    )
    assert heads["accuracy"] > kmeans["accuracy"] + 3
    assert heads["nmi"] > kmeans["nmi"] + 3


def test_kmeans():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 4)).astype(np.float32)
    first = kmeans_labels(features, 5, seed=3)
    assert first.dtype == np.int32
    assert set(first.tolist()) == set(range(5))
    assert (first == kmeans_labels(features, 5, seed=3)).all()
    with pytest.raises(BadInput, match="classes=201"):
        kmeans_labels(features, 201)


def test_bad_input(blobs):
    features, graph, _ = blobs

    def refused(match, features=features, graph=graph, config=QUICK, classes=4):
        with pytest.raises(BadInput, match=match):
            train_cluster_heads(features, graph, config, classes=classes, device=CPU)

    bad = features.copy()
    bad[11, 2] = np.nan
    refused("features row 11", features=bad)
    refused("features must be floating-point", features=features[0])
    refused("graph has 159 rows", graph=Graph(graph.neighbours[1:], graph.similarity[1:]))
    refused("10 neighbours", config=QUICK.model_copy(update={"neighbours": 11}))
    outside = graph.neighbours.copy()
    outside[7, 3] = 160
    refused("graph row 7", graph=Graph(outside, graph.similarity))
    refused("classes=1", classes=1)
    found = train_cluster_heads(
        features, graph, QUICK.model_copy(update={"epochs": 1}), classes=4, device=CPU
    )
    with pytest.raises(BadInput, match="5 dimensions"):
        predict(found.state, features[:, :5], device=CPU)
    for wrong in ({"heads": 0}, {"epochs": 0}, {"beta": 0}, {"lr": -1.0}, {"head": 3}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            HeadsConfig(**wrong)
    with pytest.raises(BadInput, match="2B"):
        temi_loss(torch.zeros(1, 3, 2), torch.zeros(1, 3, 2), torch.ones(1, 2))
    with pytest.raises(WinnowError, match="not finite"):
        train_cluster_heads(features, graph, QUICK.model_copy(update={"lr": 1e38}), classes=4, device=CPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_steps_replay_the_recorded_ones(blobs):
    """Captured steps compute what single steps on the CPU do."""
    features, _, _ = blobs
    config = QUICK.model_copy(update={"epochs": 3, "frozen_epochs": 1})
    x = torch.from_numpy(features)
    runs = []
    for where in (CPU, torch.device("cuda")):
        student = ClusterHeads(3, 8, 4, hidden=16, bottleneck=8, generator=torch.Generator().manual_seed(0))
        trainer = heads_step.HeadsTrainer(student, config, 32, 8, where, torch.float32)
        order = torch.Generator().manual_seed(0)
        for number in range(24):
            i = torch.randperm(160, generator=order)[:64]
            trainer.step(x[i].to(where), number, frozen=number < 8)
        runs.append(trainer)
    assert runs[1]._update._graphs
    assert runs[1]._frozen is None, "the graph of the frozen epochs has given its memory back"
    torch.testing.assert_close(runs[0].losses, runs[1].losses.cpu(), atol=1e-3, rtol=1e-3)
    for name, parameter in runs[0].teacher.items():
        torch.testing.assert_close(parameter, runs[1].teacher[name].cpu(), atol=1e-3, rtol=1e-3)
