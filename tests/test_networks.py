import subprocess
import sys

import pytest
import torch

from tasks.errors import BadInput, MissingData, UnknownName
from tasks.registry import networks
from tasks.train.loop import build

SMALL = [("convnet", 8, 1), ("convnet", 28, 1), ("convnet", 33, 3), ("mlp", 8, 1), ("resnet8", 8, 1), ("resnet20", 32, 3)]


def parameters(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(("name", "size", "channels"), [*SMALL, ("resnet18", 32, 3), ("resnet18", 128, 1), ("resnet50", 32, 3)])
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
    [("resnet18", 32, 11_173_962), ("resnet18", 96, 11_173_962), ("resnet18", 128, 11_181_642), ("resnet20", 32, 272_474),
     ("resnet50", 32, 23_520_842), ("resnet34", 224, 21_289_802)],
)  # fmt: skip
def test_parameter_counts(name, size, count):
    assert parameters(networks.get(name)(classes=10, channels=3, size=size)) == count


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
    assert network(torch.zeros(1, channels, size, size)).isfinite().all()  # an epoch's last batch may hold one sample


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
    import safetensors.torch
    import timm
    import torchvision

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


@pytest.mark.parametrize("name", ["convnet", "mlp", "resnet8", "resnet18"])
def test_refusals(name):
    with pytest.raises(BadInput, match="pretrained"):
        networks.get(name)(classes=10, channels=3, size=32, pretrained=True)
    with pytest.raises(BadInput, match="classes = 0"):
        networks.get(name)(classes=0, channels=3, size=32)


def test_too_small_for_the_convnet():
    with pytest.raises(BadInput, match="size = 3"):
        networks.get("convnet")(classes=10, channels=1, size=3)


def test_listing_imports_nothing_heavy():
    code = (
        "import sys; from tasks.registry import networks, scores; "
        "lines = [e.summary for r in (networks, scores) for e in r if not e.name.endswith('*')]; "
        "assert all(lines); print([m for m in ('torch', 'numpy', 'prefect', 'torchvision') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
