"""The examples: each file adds a dataset, a network or a method, which works wherever one is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def run(
    *command: str, plugins: str, check: bool = True, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A process of its own: what a plugin registers stays registered."""
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "WINNOW_PLUGINS": plugins, **environment},
        capture_output=True,
        text=True,
        check=check,
    )


def winnow(*arguments: str, **options) -> str:
    done = run("-m", "winnow.flows.cli", *arguments, **options)
    return done.stdout + done.stderr


def ours(name: str) -> str:
    return f"examples/{name}.py"


@pytest.fixture(scope="module")
def npz(tmp_path_factory) -> Path:
    """Two classes, a bright upper or lower half."""
    generator = np.random.default_rng(0)
    content = {}
    for part, n in (("train", 200), ("test", 80)):
        labels = generator.integers(0, 2, n)
        images = generator.integers(0, 120, (n, 8, 8))
        images[labels == 0, :4] += 60
        images[labels == 1, 4:] += 60
        content |= {f"{part}_images": images.astype(np.uint8), f"{part}_labels": labels}
    path = tmp_path_factory.mktemp("arrays") / "mine.npz"
    np.savez(path, **content)
    return path


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_doctests(path):
    script = "import doctest, sys\nfrom winnow.tasks.registry import selectors\nselectors.names()\n"
    script += f"done = doctest.testmod(sys.modules['winnow_plugin_{path.stem}'])\nsys.exit(done.failed)"
    run("-c", script, plugins=ours(path.stem))


def test_they_are_listed():
    found = json.loads(winnow("ls", "--json", plugins=",".join(ours(path.stem) for path in EXAMPLES)))
    assert "median" in {entry["name"] for entry in found["selectors"]}
    assert "flips" in {entry["name"] for entry in found["scores"]}
    assert "mixer" in {entry["name"] for entry in found["networks"]}
    assert "arrays:*" in {entry["name"] for entry in found["datasets"]}
    assert (
        next(e for e in found["selectors"] if e["name"] == "median")["summary"]
        == "Keep the samples whose score is nearest to the median."
    )


def test_the_score_is_streamed_and_selected_by():
    script = """
import torch
from winnow import DynamicsAccumulator, Signals, select

dynamics = DynamicsAccumulator(2, classes=2)
for epoch, right in enumerate((0, 1, 1, 0)):
    logits = torch.tensor([[1.0, 0.0], [1.0, 0.0] if right else [0.0, 1.0]])
    dynamics(torch.arange(2), logits, torch.zeros(2, dtype=torch.int64), epoch)
flips = dynamics.scores()["flips"]
signals = Signals(n=2, scores={"flips": flips})
print(flips.tolist(), select(signals, method="top", budget=1, score="flips").indices)
"""
    assert run("-c", script, plugins=ours("flips")).stdout.strip() == "[0.0, 2.0] [1]"


REPLAYED = """
import numpy as np

from winnow.tasks.registry import selectors
from winnow.tasks.select.signals import Selection


def first(signals, budget, *, generator, offset: int = 0):
    '''Keep the first rows.'''
    return Selection.of(np.arange(offset, offset + budget))


def published(signals, budget, *, generator, step: int = 1):
    '''Keep the last ones, as the code does.'''
    return Selection.of(np.arange(signals.n)[::-step][:budget])


selectors.add("first", first, upstream=published)
"""


def test_a_method_with_a_published_replay_is_one_file_and_one_line(tmp_path):
    plugin = tmp_path / "replayed.py"
    plugin.write_text(REPLAYED)
    script = """
from winnow import BadInput, Signals, selectors

first, signals = selectors.get("first"), Signals(n=5)
print(first(signals, 2).indices, first(signals, 2, offset=2).indices)
print(first(signals, 2, upstream=True, step=2).indices)
for upstream, params in ((False, {"step": 2}), (True, {"offset": 1})):
    try:
        first(signals, 2, upstream=upstream, **params)
    except BadInput as error:
        print(error.what)
"""
    assert run("-c", script, plugins=str(plugin)).stdout.splitlines() == [
        "[0 1] [2 3]",
        "[4 2]",
        "first has no parameter 'step'.",
        "first has no parameter 'offset'.",
    ]


def test_the_method_obeys_the_laws():
    done = run(
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/test_laws.py",
        "-k",
        "median",
        plugins=ours("median"),
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
    assert " failed" not in done.stdout


@pytest.mark.server
def test_a_flow_takes_all_three(prefect_server, tmp_path, npz):
    plugins = ",".join(ours(path.stem) for path in EXAMPLES)
    parameters = [
        "-p",
        f"dataset=arrays:{npz}",
        "-p",
        'methods=["random", "median"]',
        "-p",
        "fractions=[0.3]",
        "-p",
        "seeds=[0]",
    ]
    parameters += [
        "-p",
        "proxy.network=mixer",
        "-p",
        "proxy.epochs=3",
        "-p",
        "training.network=mixer",
        "-p",
        "training.iterations=40",
    ]
    environment = {**prefect_server, "WINNOW_STORE": str(tmp_path / "store")}
    said = winnow("run", "compare", *parameters, plugins=plugins, **environment)
    assert "median" in said
    records = [json.loads(path.read_text()) for path in (tmp_path / "store" / "provenance").glob("*.json")]
    chosen = {step["inputs"]["method"] for step in records if step["task"] == "select"}
    assert "random/1" in chosen
    (name,) = chosen - {"random/1"}
    assert name.startswith("median/1@"), "the key holds the code of what is not Winnow's own"
    trained = [step["inputs"]["recipe"] for step in records if step["task"] in ("train", "dynamics")]
    assert all(each["network"].startswith("mixer/1@") for each in trained)
    accuracies = [
        out["facts"]["last_accuracy"]
        for step in records
        if step["task"] == "train"
        for out in step["outputs"]
    ]
    assert len(accuracies) == 2
    assert min(accuracies) > 0.7, "halves of the picture are easy to tell apart"


def test_changed_code_is_not_taken_for_what_is_cached(tmp_path):
    script = "from winnow.tasks.registry import selectors; print(selectors.get('median').identity)"
    copy = tmp_path / "median.py"
    copy.write_text((ROOT / ours("median")).read_text())
    before = run("-c", script, plugins=str(copy)).stdout
    copy.write_text(copy.read_text().replace("np.median", "np.mean"))
    after = run("-c", script, plugins=str(copy)).stdout
    assert before.startswith("median/1@")
    assert before != after


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "plugin .*mine.py: FileNotFoundError"),
        ("1 / 0", "plugin .*mine.py: ZeroDivisionError: division by zero"),
        (
            "from winnow.tasks.registry import selectors\nselectors.add('random', print)",
            "selector 'random' is registered twice",
        ),
    ],
)
def test_a_plugin_that_fails_is_named(tmp_path, content, message):
    path = tmp_path / "mine.py"
    if content is not None:
        path.write_text(content)
    done = run("-m", "winnow.flows.cli", "ls", "selectors", plugins=str(path), check=False)
    assert done.returncode == 1
    import re

    assert re.search(message, done.stderr), done.stderr
    assert "WINNOW_PLUGINS" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_dataset_says_what_is_wrong(tmp_path, npz):
    from winnow.tasks.registry import datasets

    script = "import sys\nfrom winnow.tasks.data.load import load_split\nload_split('arrays:' + sys.argv[1])"
    broken = tmp_path / "broken.npz"
    np.savez(broken, train_images=np.zeros((3, 8, 8), np.uint8))
    for path, message in ((tmp_path / "none.npz", "no such file"), (broken, "has no array test_images")):
        done = run("-c", script, str(path), plugins=ours("arrays"), check=False)
        assert message in done.stderr
    run("-c", script, str(npz), plugins=ours("arrays"))
    assert "arrays:*" not in datasets.names(), "only where it is asked for"
