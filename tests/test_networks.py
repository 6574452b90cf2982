import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch.nn import functional as F

from winnow.tasks.errors import BadInput, MissingData, UnknownName
from winnow.tasks.registry import networks
from winnow.tasks.store import Scratch
from winnow.tasks.train import checkpoint, loop
from winnow.tasks.train.loop import train
from winnow.tasks.train.networks.build import build
from winnow.tasks.train.networks.published import Dropout
from winnow.tasks.train.problems.images import ImageProblem
from winnow.tasks.train.recipe import Recipe

IMAGES = [(28, 1), (32, 3), (64, 3)]  # MNIST, CIFAR, Tiny-ImageNet
WIDTHS = {
    "lenet": 84,
    "alexnet": 3072,
    "vgg11": 512,
    "vgg13": 512,
    "vgg16": 512,
    "vgg19": 512,
    "mobilenet_v3_small": 1024,
    "mobilenet_v3_large": 1280,
    "wideresnet16_8": 512,
    "wideresnet28_10": 640,
    "wideresnet50_2": 2048,
    "efficientnet_lite0": 1280,
    "inception_v3": 2048,
    "resnet101": 2048,
    "resnet152": 2048,
}
SMALL = [
    ("convnet", 8, 1),
    ("convnet", 28, 1),
    ("convnet", 33, 3),
    ("mlp", 8, 1),
    ("resnet8", 8, 1),
    ("resnet20", 32, 3),
]


def parameters(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("name", "size", "channels"), [*SMALL, ("resnet18", 32, 3), ("resnet18", 128, 1), ("resnet50", 32, 3)]
)
def test_logits_are_the_head_on_the_features(name, size, channels):
    network = build(name, classes=7, channels=channels, size=size, seed=0).eval()
    images = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features = network.features(images)
        assert features.shape == (2, network.head.in_features)
        assert torch.equal(network(images), network.head(features))
        assert network(images).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "size", "count"),
    [
        ("resnet18", 32, 11_173_962),
        ("resnet18", 96, 11_173_962),
        ("resnet18", 128, 11_181_642),
        ("resnet20", 32, 272_474),
        ("resnet50", 32, 23_520_842),
        ("resnet34", 224, 21_289_802),
    ],
)
def test_parameter_counts(name, size, count):
    assert parameters(networks.get(name)(classes=10, channels=3, size=size)) == count


def deepcore_millions():
    """Parameters of DeepCore's networks, 32x32x3, 10 classes; its Inception differs by 327,680, see there."""
    return {
        "mlp": 0.411,
        "lenet": 0.062,
        "alexnet": 1.872,
        "vgg11": 9.23,
        "vgg13": 9.42,
        "vgg16": 14.73,
        "vgg19": 20.04,
        "resnet101": 42.51,
        "resnet152": 58.16,
        "wideresnet16_8": 10.96,
        "wideresnet28_10": 36.48,
        "mobilenet_v3_small": 1.528,
        "mobilenet_v3_large": 4.215,
        "inception_v3": 22.13 - 0.327680,
    }


@pytest.mark.parametrize("name", sorted(deepcore_millions()))
def test_small_forms_are_as_large_as_deepcores(name):
    with torch.device("meta"):
        network = networks.get(name)(classes=10, channels=3, size=32)
    assert parameters(network) / 1e6 == pytest.approx(deepcore_millions()[name], abs=0.006)


@pytest.mark.parametrize(
    ("name", "theirs", "width"),
    [
        ("alexnet", "alexnet", 4096),
        *((f"vgg{n}", f"vgg{n}_bn", 4096) for n in (11, 13, 16, 19)),
        ("inception_v3", "inception_v3", 2048),
        ("resnet101", "resnet101", 2048),
        ("resnet152", "resnet152", 2048),
        ("wideresnet50_2", "wide_resnet50_2", 2048),
        ("mobilenet_v3_small", "mobilenet_v3_small", 1024),
        ("mobilenet_v3_large", "mobilenet_v3_large", 1280),
    ],
)
def test_imagenet_forms_are_torchvisions(name, theirs, width):
    options = {"aux_logits": False, "init_weights": False} if name == "inception_v3" else {}
    with torch.device("meta"):
        network = networks.get(name)(classes=10, channels=3, size=224)
        published = torchvision.models.get_model(theirs, weights=None, num_classes=10, **options)
        features = network.features(torch.zeros(2, 3, 224, 224))
        assert features.shape == (2, width)
        assert network.head(features).shape == (2, 10)
    assert parameters(network) == parameters(published)


# one of each family at every size; their deeper and wider forms are the same code, at the smallest
FAMILIES = ("lenet", "alexnet", "vgg11", "mobilenet_v3_small")
DEEPER = (
    "vgg13",
    "vgg16",
    "vgg19",
    "mobilenet_v3_large",
    "wideresnet16_8",
    "inception_v3",
    "resnet101",
    "wideresnet50_2",
)


@pytest.mark.parametrize(
    ("name", "size", "channels"),
    [*((n, *i) for n in FAMILIES for i in IMAGES), *((n, *IMAGES[0]) for n in DEEPER)],
)
def test_a_step_lowers_the_loss(name, size, channels):
    network = build(name, classes=3, channels=channels, size=size, seed=0).to(
        memory_format=torch.channels_last
    )
    images = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    before = train_loss(network, images)
    before.backward()
    with torch.no_grad():
        for p in network.parameters():
            p -= 1e-3 * p.grad
    assert train_loss(network, images) < before
    with torch.inference_mode():
        network.eval()
        features = network.features(images)
        assert features.shape == (2, WIDTHS[name])
        assert torch.equal(network(images), network.head(features))


def train_loss(network, images):
    """Loss of two images in train mode, always under the same dropout masks."""
    for module in network.train().modules():
        if isinstance(module, Dropout):
            module.batch.zero_()
    return F.cross_entropy(network(images), torch.tensor([0, 2]))


@pytest.mark.parametrize(("size", "channels"), IMAGES)
@pytest.mark.parametrize("name", WIDTHS)
def test_one_sample_fits_every_network_in_train_mode(name, size, channels):
    with torch.device("meta"):
        network = networks.get(name)(classes=7, channels=channels, size=size).train()
        features = network.features(torch.zeros(1, channels, size, size))
        assert features.shape == (1, WIDTHS[name])
        assert network.head(features).shape == (1, 7)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "alexnet"])
def test_imagenet_forms_run(name):
    network = build(name, classes=4, channels=3, size=224, seed=0)
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    assert network.train()(images).isfinite().all()
    with torch.inference_mode():
        assert torch.equal(network.eval()(images), network.head(network.features(images)))


def test_dropout_is_decided_by_its_seed_and_batch():
    torch.manual_seed(0)
    drop, other = Dropout(0.2), Dropout(0.2)
    before = torch.get_rng_state()
    x = torch.ones(64, 512)
    first, second, elsewhere = drop(x), drop(x), other(x)
    assert torch.equal(torch.get_rng_state(), before)
    for y in (first, second, elsewhere):
        assert y.unique().tolist() == [0.0, 1.25]
        assert (y > 0).float().mean().item() == pytest.approx(0.8, abs=0.01)
        assert (y > 0).float().mean(0).std() == pytest.approx(
            0.05, abs=0.01
        )  # sqrt(0.8 · 0.2 / 64): columns are as rows of coins
    for a, b in ((first, second), (first, elsewhere), (first[:, :-1], first[:, 1:]), (first[:-1], first[1:])):
        assert abs(np.corrcoef((a > 0).flatten(), (b > 0).flatten())[0, 1]) < 0.03
    again = Dropout(0.2)
    again.load_state_dict(drop.state_dict())
    assert torch.equal(again(x), drop(x))
    assert drop.eval()(x) is x
    values = torch.randn(8, 8, requires_grad=True)
    y = drop.train()(values)
    y.sum().backward()
    assert torch.equal(values.grad > 0, y != 0)


class Killed(Exception):
    pass


def trained_on_noise(recipe, **options):
    rng = np.random.default_rng(0)
    images, targets = rng.integers(0, 256, (2, 28, 28, 1)).astype(np.uint8), np.array([0, 2])
    problem = ImageProblem(images, targets, classes=3, mean=(0.5,), std=(0.3,))
    return train(problem, recipe, seed=1, **options)


def test_a_network_with_dropout_resumes_bit_identically(tmp_path, monkeypatch):
    recipe = Recipe(network="mobilenet_v3_small", epochs=4, batch_size=2, lr=0.01, augment="none")
    before = torch.get_rng_state()
    whole = trained_on_noise(recipe)
    assert torch.equal(torch.get_rng_state(), before)
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SHARE", 1e9)
    monkeypatch.setattr(loop, "TICK_SECONDS", 0.0)
    scratch = Scratch(tmp_path)

    def die(done, total, note):
        if done >= 3:
            raise Killed

    with pytest.raises(Killed):
        trained_on_noise(recipe, scratch=scratch, progress=die)
    assert scratch.load("train")["counts"][2] == 2
    resumed = trained_on_noise(recipe, scratch=scratch)
    assert all(torch.equal(whole.network[name], resumed.network[name]) for name in whole.network)


def test_small_stem_keeps_the_resolution():
    network = networks.get("resnet18")(classes=10, channels=3, size=32).eval()
    shapes = []
    for layer in network.body:
        layer.register_forward_hook(lambda _module, _inputs, out: shapes.append(tuple(out.shape[1:])))
    network(torch.zeros(1, 3, 32, 32))
    assert shapes[:3] == [(64, 32, 32), (64, 32, 32), (64, 32, 32)]
    assert [s for s in shapes if len(s) == 3][-2:] == [(512, 4, 4), (512, 1, 1)]


@pytest.mark.parametrize(("name", "size", "channels"), SMALL)
def test_one_sample_trains(name, size, channels):
    network = build(name, classes=3, channels=channels, size=size, seed=0).train()
    assert (
        network(torch.zeros(1, channels, size, size)).isfinite().all()
    )  # an epoch's last batch may hold one sample


def test_seed_alone_decides_the_weights_and_global_state_stays():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build("convnet", classes=3, channels=1, size=8, seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    again, other = (build("convnet", classes=3, channels=1, size=8, seed=s).state_dict() for s in (1, 2))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["body.0.weight"], other["body.0.weight"])


def test_timm_family_by_name_and_size():
    vit = networks.get("timm:vit_tiny_patch16_224")(classes=4, channels=3, size=64).eval()
    assert vit(torch.zeros(1, 3, 64, 64)).shape == (1, 4)
    small = networks.get("timm:mobilenetv3_small_050")(classes=4, channels=1, size=32).eval()
    images = torch.zeros(1, 1, 32, 32)
    assert torch.equal(small(images), small.head(small.features(images)))
    with pytest.raises(UnknownName, match="resnet18"):
        networks.get("timm:resnet_18")(classes=4, channels=3, size=64)
    with pytest.raises(BadInput, match="cannot build"):
        networks.get("timm:vit_tiny_patch16_224")(classes=4, channels=3, size=1)


def test_pretrained_weights_come_from_a_local_file_or_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("WINNOW_DATA", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    with pytest.raises(MissingData, match=r"resnet18-.*\.pth") as error:
        networks.get("resnet18")(classes=5, channels=3, size=224, pretrained=True)
    assert str(tmp_path / "weights") in error.value.remedy
    with pytest.raises(MissingData, match="timm/resnet10t"):
        networks.get("timm:resnet10t")(classes=5, channels=3, size=64, pretrained=True)

    source = torchvision.models.resnet18(num_classes=1000)
    name = torchvision.models.ResNet18_Weights.DEFAULT.url.rpartition("/")[2]
    (tmp_path / "weights" / "timm").mkdir(parents=True)
    torch.save(source.state_dict(), tmp_path / "weights" / name)
    network = networks.get("resnet18")(classes=5, channels=3, size=224, pretrained=True)
    assert torch.equal(network.body.conv1.weight, source.conv1.weight)
    assert network.head.out_features == 5

    source = timm.create_model("resnet10t")
    safetensors.torch.save_file(source.state_dict(), tmp_path / "weights" / "timm" / "resnet10t.safetensors")
    network = networks.get("timm:resnet10t")(classes=5, channels=3, size=64, pretrained=True)
    assert torch.equal(network.body.layer1[0].conv1.weight, source.layer1[0].conv1.weight)


def light_state(network):
    """A state dict with the network's convolutions and norms; linear layers are a number each."""
    return {
        k: v.new_full((1,), 0.5).expand(v.shape) if v.ndim == 2 else v
        for k, v in network.state_dict().items()
    }


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        *((f"vgg{n}", f"vgg{n}_bn") for n in (11, 13, 16, 19)),
        ("resnet101", "resnet101"),
        ("resnet152", "resnet152"),
        ("wideresnet50_2", "wide_resnet50_2"),
        ("inception_v3", "inception_v3_google"),
    ],
)
def test_missing_weights_are_named(name, stem, tmp_path, monkeypatch):
    monkeypatch.setenv("WINNOW_DATA", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    with pytest.raises(MissingData, match=rf"weights {stem}-\w+\.pth"):
        networks.get(name)(classes=5, channels=3, size=224, pretrained=True)


@pytest.mark.parametrize(
    ("name", "theirs", "hidden"), [("alexnet", "alexnet", 2), ("mobilenet_v3_large", "mobilenet_v3_large", 1)]
)
def test_pretrained_weights_load(name, theirs, hidden, tmp_path, monkeypatch):
    monkeypatch.setenv("WINNOW_DATA", str(tmp_path))
    file = torchvision.models.get_model_weights(theirs).DEFAULT.url.rpartition("/")[2]
    with torch.device("meta"):
        source = torchvision.models.get_model(theirs, weights=None)
    state = light_state(source.to_empty(device="cpu"))
    rng = torch.Generator().manual_seed(0)
    for value in state.values():
        if value.ndim == 4:
            value.normal_(generator=rng)
    (tmp_path / "weights").mkdir()
    torch.save(state, tmp_path / "weights" / file)
    network = networks.get(name)(classes=5, channels=3, size=224, pretrained=True)
    found = {k.removeprefix("body."): v for k, v in network.state_dict().items()}
    shared = [k for k, v in state.items() if v.ndim == 4]
    assert shared
    assert all(torch.equal(found[k], state[k]) for k in shared)
    linear = [k for k, v in state.items() if v.ndim == 2 and k in found]
    assert len(linear) == hidden
    assert all((found[k] == 0.5).all() for k in linear)


def test_pretrained_inception_sees_what_it_was_trained_on(tmp_path, monkeypatch):
    monkeypatch.setenv("WINNOW_DATA", str(tmp_path))
    source = torchvision.models.inception_v3(weights=None, init_weights=False, transform_input=True).eval()
    rng = torch.Generator().manual_seed(0)
    source.Conv2d_1a_3x3.bn.running_mean.normal_(generator=rng)
    (tmp_path / "weights").mkdir()
    torch.save(
        source.state_dict(),
        tmp_path / "weights" / torchvision.models.Inception_V3_Weights.DEFAULT.url.rpartition("/")[2],
    )
    network = networks.get("inception_v3")(classes=5, channels=3, size=128, pretrained=True).eval()
    source.fc = torch.nn.Identity()
    images = torch.randn(2, 3, 128, 128, generator=rng)
    with torch.inference_mode():
        torch.testing.assert_close(
            network.body.Conv2d_1a_3x3(images),
            source.Conv2d_1a_3x3(source._transform_input(images)),
            atol=1e-5,
            rtol=1e-5,
        )
        torch.testing.assert_close(network.features(images), source(images), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["convnet", "mlp", "resnet8", "resnet18", *WIDTHS])
def test_refusals(name):
    with pytest.raises(BadInput, match="pretrained"):
        networks.get(name)(classes=10, channels=3, size=32, pretrained=True)
    with pytest.raises(BadInput, match="classes = 0"):
        networks.get(name)(classes=0, channels=3, size=32)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("convnet", 3),
        ("lenet", 11),
        ("alexnet", 27),
        ("vgg16", 27),
        ("inception_v3", 8),
        ("mobilenet_v3_small", 8),
        ("efficientnet_lite0", 27),
    ],
)
def test_too_small_images(name, size):
    with pytest.raises(BadInput, match=f"size = {size}"):
        networks.get(name)(classes=10, channels=1, size=size)


def test_the_smallest_images_that_are_taken():
    lenet = build("lenet", classes=3, channels=1, size=12, seed=0)
    assert lenet(torch.zeros(1, 1, 12, 12)).isfinite().all()


def test_listing_imports_nothing_heavy():
    code = (
        "import sys; from winnow.tasks.registry import networks, scores; "
        "lines = [e.summary for r in (networks, scores) for e in r if not e.name.endswith('*')]; "
        "assert all(lines); print([m for m in ('torch', 'numpy', 'prefect', 'torchvision') if m in "
        "sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
