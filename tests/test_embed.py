"""Embedders: what they yield, where their weights come from, and what is refused."""

from __future__ import annotations

import logging
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchvision.transforms import v2

from winnow.tasks import hardware
from winnow.tasks.data.digits import digits
from winnow.tasks.data.images import ArrayImages
from winnow.tasks.embed.encoder import NetworkEncoder, embed, normalise, seeded
from winnow.tasks.embed.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess, imagenet_view, resize
from winnow.tasks.embed.weights import Checkpoint, load, local_checkpoint, read
from winnow.tasks.errors import BadInput, DeviceUnavailable, MissingData, UnknownName
from winnow.tasks.registry import embedders

CPU = torch.device("cpu")
RANDOM = np.random.default_rng(0)
COLOUR = RANDOM.integers(0, 256, (6, 32, 32, 3)).astype(np.uint8)


class Photographs:
    """Images of different sizes, as a folder has them."""

    shape = None

    def __init__(self, *sizes: tuple[int, int]) -> None:
        self.images = [
            Image.fromarray(RANDOM.integers(0, 256, (height, width, 3)).astype(np.uint8))
            for height, width in sizes
        ]

    def __len__(self) -> int:
        return len(self.images)

    def read(self, rows):
        return [self.images[row] for row in np.arange(len(self))[rows]]


def make(name: str, images=None, *, seed: int = 0, **options):
    images = ArrayImages(COLOUR) if images is None else images
    generator = torch.Generator().manual_seed(seed)
    return embedders.get(name)(images, device=CPU, dtype=torch.float32, generator=generator, **options)


@pytest.fixture(autouse=True)
def weights(tmp_path, monkeypatch):
    """An empty data root and empty caches; nothing is fetched."""
    monkeypatch.setenv("WINNOW_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("WINNOW_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = tmp_path / "data" / "weights"
    folder.mkdir(parents=True)
    return folder


def agreement(features: np.ndarray, labels: np.ndarray, k: int = 10) -> float:
    """Share of the k nearest neighbours by cosine that have the label."""
    unit = normalise(features, "l2")
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -2)
    return float((labels[np.argsort(-similarity, axis=1)[:, :k]] == labels[:, None]).mean())


# -- preprocessing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("filter", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    ("before", "after"),
    [((32, 32), (224, 224)), ((96, 64), (48, 32)), ((40, 60), (32, 48)), ((28, 28), (28, 28))],
)
def test_resize_is_pillows_to_the_last_bit(filter, before, after):
    batch = RANDOM.integers(0, 256, (3, *before, 3)).astype(np.uint8)
    batch[0] = np.where(batch[0] > 127, 255, 0)  # overshoots are clipped
    method = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[filter]
    expected = np.stack([np.asarray(Image.fromarray(image).resize(after[::-1], method)) for image in batch])
    found = resize(torch.from_numpy(batch).permute(0, 3, 1, 2), *after, filter).permute(0, 2, 3, 1)
    np.testing.assert_array_equal(found.numpy(), expected)


@pytest.mark.parametrize(("crop", "size"), [(False, 224), (True, 224), (True, 96), (False, 20)])
def test_preprocessing_is_torchvisions(crop, size):
    """Resize(224, bicubic), or Resize(256 s / 224) and CenterCrop(s); ToTensor; Normalize."""
    chain = (
        [v2.Resize(int(256 * size / 224)), v2.CenterCrop(size)]
        if crop
        else [v2.Resize(size, v2.InterpolationMode.BICUBIC)]
    )
    chain += [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    images = [Image.fromarray(image) for image in COLOUR]
    expected = torch.stack([v2.Compose(chain)(image) for image in images])
    view = imagenet_view(ArrayImages(COLOUR), size, crop)
    torch.testing.assert_close(view(COLOUR, CPU), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(view(images, CPU), expected, rtol=0, atol=1e-6)


def test_photographs_are_resized_and_cropped_by_default():
    photographs = Photographs((300, 400), (500, 260))
    chain = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.ToImage()])
    expected = torch.stack([chain(image) for image in photographs.images]).float()
    view = imagenet_view(photographs, 224, mean=(0, 0, 0), std=(1, 1, 1))
    torch.testing.assert_close(view(photographs.images, CPU) * 255, expected, rtol=0, atol=1e-4)


def test_grey_is_repeated():
    grey = COLOUR[..., :1]
    found = Preprocess(64, 64, mean=(0, 0, 0), std=(1, 1, 1))(grey, CPU)
    assert found.shape == (6, 3, 64, 64)
    assert torch.equal(found[:, 0], found[:, 2])
    rgb = Preprocess(64, 64, mean=(0, 0, 0), std=(1, 1, 1))(np.repeat(grey, 3, axis=3), CPU)
    assert torch.equal(found, rgb)


def test_squash_ignores_the_aspect_ratio():
    found = Preprocess(32, None, mean=(0, 0, 0), std=(1, 1, 1))(Photographs((40, 64)).images, CPU)
    assert found.shape == (1, 3, 32, 32)


@pytest.mark.parametrize("size", [0, -1, 2.5, True])
def test_bad_sizes_are_refused(size):
    with pytest.raises(BadInput, match="size"):
        imagenet_view(ArrayImages(COLOUR), size)


@pytest.mark.parametrize("images", [COLOUR.astype(np.float32), COLOUR[0], COLOUR[..., :2], "pictures"])
def test_bad_images_are_refused(images):
    with pytest.raises(BadInput, match="images"):
        make("pixels")(images)


# -- embed and normalise -------------------------------------------------------------------------------------


class Means:
    dim = 2

    def __call__(self, images):
        mean = images.reshape(len(images), -1).mean(axis=1)
        with np.errstate(divide="ignore"):
            return np.stack([mean, 1 / mean], axis=1).astype(np.float32)


def test_embed_keeps_the_order_of_rows_and_reports_progress():
    array = np.arange(1, 11, dtype=np.uint8).reshape(10, 1, 1, 1)
    told = []
    found = embed(
        Means(), ArrayImages(array), [9, 0, 4, 4, 7], batch_size=2, progress=lambda *state: told.append(state)
    )
    assert found.dtype == np.float32
    assert found[:, 0].tolist() == [10, 1, 5, 5, 8]
    assert told == [(2, 5, "images"), (4, 5, "images"), (5, 5, "images")]
    assert embed(Means(), ArrayImages(array), []).shape == (0, 2)
    assert embed(Means(), ArrayImages(array), slice(None), batch_size=3)[:, 0].tolist() == list(range(1, 11))


class Tensors(Means):
    """An encoder that leaves its vectors where they were computed."""

    def on_device(self, images):
        return torch.from_numpy(super().__call__(images))

    def __call__(self, images):
        raise AssertionError("on_device is there")


def test_embed_takes_tensors_where_an_encoder_gives_them():
    array = np.arange(1, 11, dtype=np.uint8).reshape(10, 1, 1, 1)
    told = []
    found = embed(
        Tensors(), ArrayImages(array), [9, 0, 4, 4, 7], batch_size=2, progress=lambda *s: told.append(s)
    )
    assert found[:, 0].tolist() == [10, 1, 5, 5, 8]
    assert told == [(2, 5, "images"), (4, 5, "images"), (5, 5, "images")]
    array[3] = 0
    with pytest.raises(BadInput, match="row 3 has NaN"):
        embed(Tensors(), ArrayImages(array), [4, 2, 3], batch_size=2)


def test_embed_names_the_row_whose_vector_is_not_finite():
    array = np.array([1, 2, 3, 0, 5], np.uint8).reshape(5, 1, 1, 1)
    with pytest.raises(BadInput, match="row 3 has NaN"):
        embed(Means(), ArrayImages(array), [4, 2, 3], batch_size=2)


@pytest.mark.parametrize(
    ("rows", "message"), [([5], r"rows\[0\] = 5"), ([0, -1], r"rows\[1\] = -1"), ([0.5], "whole numbers")]
)
def test_embed_refuses_rows_that_are_not_there(rows, message):
    with pytest.raises(BadInput, match=message):
        embed(Means(), ArrayImages(COLOUR[:5]), rows)


def test_normalise_laws():
    features = (RANDOM.normal(size=(50, 8)) * np.arange(1, 9) + 100).astype(np.float32)
    before = features.copy()
    np.testing.assert_allclose(np.linalg.norm(normalise(features, "l2"), axis=1), 1, rtol=1e-6)
    scaled = normalise(features, "zscore")
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(scaled.std(axis=0, ddof=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(normalise(features, "none"), features)
    np.testing.assert_array_equal(features, before)
    test = normalise(features[:5], "zscore", reference=features)
    np.testing.assert_array_equal(test, scaled[:5])
    order = RANDOM.permutation(50)
    np.testing.assert_allclose(normalise(features[order], "zscore"), scaled[order], atol=1e-6)


def test_normalise_leaves_constants_and_zeros_finite():
    features = np.zeros((3, 2), np.float16)
    features[:, 1] = 0.1
    assert not normalise(features, "zscore").any()
    assert not normalise(np.zeros((2, 3), np.float32), "l2").any()


def test_normalise_refuses():
    features = np.ones((9000, 2), np.float32)
    with pytest.raises(BadInput, match="l3"):
        normalise(features, "l3")
    with pytest.raises(BadInput, match="at least 2"):
        normalise(features[:1], "zscore")
    with pytest.raises(BadInput, match="dimensions"):
        normalise(features, "zscore", reference=features[:, :1])
    features[8999, 1] = np.inf
    for how in ("none", "l2", "zscore"):
        with pytest.raises(BadInput, match="row 8999"):
            normalise(features, how)


# -- learnt from the images ----------------------------------------------------------------------------------


def test_pixels():
    assert make("pixels").dim == 32 * 32 * 3
    np.testing.assert_allclose(make("pixels")(COLOUR), COLOUR.reshape(6, -1) / 255, rtol=1e-6)
    assert make("pixels", size=8)(COLOUR).shape == (6, 192)
    photographs = Photographs((40, 50), (64, 33))
    assert embed(make("pixels", photographs), photographs, slice(None)).shape == (2, 32 * 32 * 3)
    with pytest.raises(BadInput, match="8, 8, 3"):
        make("pixels")(COLOUR[:, :8, :8])


@pytest.fixture(scope="module")
def digit_images():
    split = digits("train")
    return split.images, split.truth


@pytest.fixture(scope="module")
def digit_patches(digit_images):
    return make("patches", digit_images[0])


def test_patches_beat_pixels_on_digits(digit_images, digit_patches):
    images, labels = digit_images
    assert digit_patches.dim == 128
    found = embed(digit_patches, images, slice(None))
    assert found.dtype == np.float32
    assert (
        agreement(found, labels)
        > agreement(embed(make("pixels", images), images, slice(None)), labels) + 0.005
    )
    assert abs(np.square(found).mean() - 1) < 0.02  # fits float16, and heads that expect unit scale


def test_patches_are_deterministic_and_follow_the_seed(digit_images, digit_patches):
    images, _ = digit_images
    state = torch.get_rng_state()
    first, again, other = (
        encoder(images.read(range(50)))
        for encoder in (digit_patches, make("patches", images), make("patches", images, seed=1))
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1
    assert torch.equal(state, torch.get_rng_state())


def test_patches_do_not_depend_on_the_number_of_threads(digit_images, digit_patches):
    images, _ = digit_images
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if before > 1 else 2)
        now = torch.get_num_threads()
        found = make("patches", images)(images.read(range(64)))
        assert torch.get_num_threads() == now
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(found, digit_patches(images.read(range(64))))


def test_patches_do_not_depend_on_the_batch(digit_images, digit_patches):
    images, _ = digit_images
    whole = embed(digit_patches, images, range(30))
    np.testing.assert_allclose(embed(digit_patches, images, range(30), batch_size=7), whole, atol=1e-5)


def test_patch_activations_are_those_of_the_definition():
    """The one convolution against patches cut out, whitened and compared with every centroid one by one."""
    from winnow.tasks.embed.patches import _Dictionary, _kmeans, _random_patches

    images = torch.from_numpy(RANDOM.integers(0, 256, (5, 9, 8, 3)).astype(np.uint8)).permute(0, 3, 1, 2)
    images[0] = 7  # a flat image
    layer = _Dictionary((9, 8, 3), 3, 2, contrast=10.0)
    layer.learn(images, 12, 0.1, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    sample = _random_patches(images, 3, generator).double()
    sample = (sample - sample.mean(1, keepdim=True)) / (sample.var(1, keepdim=True) + 10).sqrt()
    variance, axes = torch.linalg.eigh(sample.T.cov())
    whiten = axes @ torch.diag((variance + 0.1).rsqrt()) @ axes.T
    mean = sample.mean(0)
    centroids = _kmeans(((sample - mean) @ whiten).float(), 12, generator).double()
    cut = images.double().unfold(2, 3, 1).unfold(3, 3, 1).permute(0, 2, 3, 1, 4, 5).flatten(3)  # n, 7, 6, 27
    z = ((cut - cut.mean(-1, keepdim=True)) / (cut.var(-1, keepdim=True) + 10).sqrt() - mean) @ whiten
    distance = (z[..., None, :] - centroids).norm(dim=-1)
    active = (distance.mean(-1, keepdim=True) - distance).clamp_min(0)
    cells = [
        active[:, rows, columns].mean((1, 2))
        for rows in (slice(0, 4), slice(4, 7))
        for columns in (slice(0, 3), slice(3, 6))
    ]
    expected = torch.stack(cells, dim=2).sqrt().flatten(1)
    torch.testing.assert_close(layer(images).double(), expected, rtol=0, atol=2e-3)


def test_principal_axes_are_the_eigenvectors():
    from winnow.tasks.embed.patches import _principal_axes

    points = torch.from_numpy(RANDOM.normal(size=(200, 60)) * 0.9 ** np.arange(60))
    points = (points - points.mean(0)).float()
    axes, variance = _principal_axes(points, 10, torch.Generator().manual_seed(0))
    exact, vectors = torch.linalg.eigh((points.T @ points).double() / 200)
    torch.testing.assert_close(variance.double(), exact.flip(0)[:10], rtol=1e-4, atol=0)
    cosines = (axes.double() * vectors.flip(1)[:, :10]).sum(0).abs()
    assert cosines.min() > 0.999
    assert (axes.gather(0, axes.abs().argmax(0, keepdim=True)) > 0).all()


def test_patches_of_photographs_few_images_and_other_sizes():
    photographs = Photographs((40, 50), (64, 33), (90, 90))
    encoder = make("patches", photographs, centroids=8, size=16)
    found = embed(encoder, photographs, slice(None))
    assert found.shape == (3, encoder.dim) == (3, 2)  # three images span two dimensions
    assert np.isfinite(found).all()
    large = ArrayImages(RANDOM.integers(0, 256, (4, 48, 40, 1)).astype(np.uint8))
    assert make("patches", large, centroids=8).dictionary.shape == (32, 32, 1)
    with pytest.raises(BadInput, match="patches were learnt from"):
        make("patches", ArrayImages(COLOUR), centroids=8)(COLOUR[:, :16, :16])
    flat = ArrayImages(np.full((5, 8, 8, 1), 9, np.uint8))
    assert np.isfinite(embed(make("patches", flat), flat, slice(None))).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": 33}, "patch = 33"),
        ({"centroids": 1}, "centroids = 1"),
        ({"dim": 0}, "dim = 0"),
        ({"whitening": 0.0}, "whitening = 0.0"),
        ({"contrast": float("nan")}, "contrast = nan"),
    ],
)
def test_patches_refuse_bad_parameters(options, message):
    with pytest.raises(BadInput, match=message):
        make("patches", **options)


def test_patches_need_images():
    with pytest.raises(BadInput, match="none to learn"):
        make("patches", ArrayImages(COLOUR[:0]))


# -- networks ------------------------------------------------------------------------------------------------

NETWORKS = [
    ("dino_vits16", {"size": 32}, 384),
    ("dino_vitb8", {"size": 16}, 768),
    ("dino_resnet50", {"size": 32}, 2048),
    ("dinov2_vits14", {"size": 28}, 384),
    ("dinov2_vits14_reg", {"size": 28}, 384),
    ("swav", {"size": 32}, 2048),
    ("timm:resnet10t", {"size": 32}, 512),
    ("network:squeezenet1_0@none.pth", {"size": 64}, 512),
    ("network:densenet121@none.pth", {"size": 32}, 1024),
    ("network:mobilenet_v3_small@none.pth", {"size": 32}, 1024),
]


@pytest.mark.parametrize(("name", "options", "dim"), NETWORKS, ids=[name for name, _, _ in NETWORKS])
def test_networks_yield_one_vector_an_image(name, options, dim, caplog):
    state = torch.get_rng_state()
    with caplog.at_level(logging.WARNING, logger="winnow.tasks.embed"):
        encoder = make(name, random_weights=True, **options)
    assert "random weights, as asked for" in caplog.text
    assert torch.equal(state, torch.get_rng_state())
    assert encoder.dim == dim
    found = embed(encoder, ArrayImages(COLOUR), slice(None))
    assert found.shape == (6, dim)
    assert found.dtype == np.float32
    assert found.std(axis=0).max() > 0
    one_by_one = embed(encoder, ArrayImages(COLOUR), slice(None), batch_size=1)
    np.testing.assert_allclose(one_by_one, found, rtol=1e-3, atol=1e-4 * np.abs(found).max())


def test_random_weights_follow_the_generator():
    first, again, other = (
        make("timm:resnet10t", seed=seed, random_weights=True, size=32)(COLOUR[:1]) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_half_precision_stays_close_and_returns_float32():
    generator = torch.Generator().manual_seed(0)
    given = {"device": CPU, "random_weights": True, "size": 32}
    full = embedders.get("dino_vits16")(
        ArrayImages(COLOUR), dtype=torch.float32, generator=generator, **given
    )
    half = NetworkEncoder("half", full.network, full.preprocess, CPU, torch.bfloat16)
    assert half(COLOUR).dtype == np.float32
    difference = np.abs(half(COLOUR) - full(COLOUR)).max()
    assert 0 < difference < 0.05 * np.abs(full(COLOUR)).max()


def test_swav_upstream_is_a_random_map_to_1000():
    plain, upstream = (
        make("swav", random_weights=True, size=32),
        make("swav", random_weights=True, size=32, upstream=True),
    )
    assert upstream.dim == 1000
    layer = upstream.network.fc
    expected = plain(COLOUR) @ layer.weight.numpy().T + layer.bias.numpy()
    np.testing.assert_allclose(upstream(COLOUR), expected, rtol=1e-4, atol=1e-4)


def small_dino(seed: int = 3) -> torch.nn.Module:
    import timm

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return timm.create_model("vit_small_patch16_224.dino", pretrained=False, num_classes=0).eval()


def test_dino_weights_and_class_token(weights, caplog):
    """A file of the authors' name is found, loaded whole, and gives the class token after the final norm."""
    model = small_dino()
    torch.save(model.state_dict(), weights / "dino_deitsmall16_pretrain.pth")
    with caplog.at_level(logging.INFO, logger="winnow.tasks.embed"):
        encoder = make("dino_vits16")
    assert str(weights / "dino_deitsmall16_pretrain.pth") in caplog.text
    chain = v2.Compose(
        [
            v2.Resize(224, v2.InterpolationMode.BICUBIC),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    with torch.no_grad():
        tokens = model.forward_features(torch.stack([chain(Image.fromarray(image)) for image in COLOUR[:2]]))
        through = model.norm(
            model.blocks(
                model._pos_embed(model.patch_embed(torch.stack([chain(Image.fromarray(COLOUR[0]))])))
            )
        )
    np.testing.assert_allclose(encoder(COLOUR[:2]), tokens[:, 0].numpy(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(encoder(COLOUR[:1]), through[:, 0].numpy(), rtol=1e-4, atol=1e-4)


def test_other_files_and_damaged_ones_are_refused(weights):
    state = small_dino().state_dict()
    torch.save(
        {name: value for name, value in state.items() if "blocks.3" not in name}, weights / "dino_vits16.pth"
    )
    with pytest.raises(
        BadInput,
        match=r"dino_vits16\.pth does not fit VisionTransformer: of \d+ tensors, \d+ missing \(blocks\.3",
    ):
        make("dino_vits16")
    whole = (weights / "dino_vits16.pth").read_bytes()
    (weights / "dino_vits16.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match=r"dino_vits16\.pth cannot be read"):
        make("dino_vits16")
    torch.save({"blocks.0.weight": torch.ones(1)}, weights / "dino_vits16.pth")
    with pytest.raises(BadInput, match="1 unknown"):
        make("dino_vits16")


class Loud:
    def __reduce__(self):
        return (print, ("pickled code ran",))


def test_pickled_code_is_not_run(weights, capsys):
    torch.save({"state_dict": {"weight": torch.ones(1)}, "extra": Loud()}, weights / "resnet18.pth")
    with pytest.raises(BadInput, match="pickled code is not run"):
        make("network:resnet18.pth")
    np.savez(weights / "resnet18.npz", weight=np.array([Loud()], object))
    with pytest.raises(BadInput, match="Object arrays cannot be loaded when allow_pickle=False"):
        make("network:resnet18.npz")
    for suffix in ("pt", "bin", "npz", "safetensors"):
        (weights / f"resnet34.{suffix}").write_bytes(pickle.dumps(Loud(), 2))
        with pytest.raises(BadInput, match=rf"resnet34\.{suffix} cannot be read as a state dict"):
            make(f"network:resnet34.{suffix}")
    assert "ran" not in capsys.readouterr().out


def dinov2_layout(state: dict[str, torch.Tensor], registers: bool) -> dict[str, torch.Tensor]:
    """timm's names and shapes as the authors' files have them."""
    found = dict(state) | {"mask_token": torch.zeros(1, state["cls_token"].shape[2])}
    if registers:
        found["register_tokens"] = found.pop("reg_token")
        found["pos_embed"] = torch.cat([torch.zeros_like(found["cls_token"]), found["pos_embed"]], dim=1)
    return found


@pytest.mark.parametrize("registers", [False, True])
def test_dinov2_resamples_positions_as_its_authors_do(registers, weights):
    import timm

    name = "vit_small_patch14_reg4_dinov2.lvd142m" if registers else "vit_small_patch14_dinov2.lvd142m"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model(name, pretrained=False, num_classes=0, img_size=518)
        torch.nn.init.normal_(model.pos_embed)
    state = model.state_dict()
    file = "dinov2_vits14_reg4_pretrain.pth" if registers else "dinov2_vits14_pretrain.pth"
    torch.save(dinov2_layout(state, registers), weights / file)
    encoder = make("dinov2_vits14_reg" if registers else "dinov2_vits14", size=56)
    skip = 0 if registers else 1
    plane = state["pos_embed"][:, skip:].reshape(1, 37, 37, 384).permute(0, 3, 1, 2)
    how = {"size": (4, 4), "antialias": True} if registers else {"scale_factor": (4.1 / 37, 4.1 / 37)}
    expected = torch.nn.functional.interpolate(plane, mode="bicubic", **how).flatten(2).transpose(1, 2)
    torch.testing.assert_close(encoder.network.pos_embed[:, skip:], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(encoder.network.blocks[5].mlp.fc1.weight, state["blocks.5.mlp.fc1.weight"])


def test_transformer_sizes_are_multiples_of_the_patch():
    with pytest.raises(BadInput, match="multiple of its patch size 14, for example 224"):
        make("dinov2_vits14", size=225, random_weights=True)


def test_swav_checkpoint_of_parallel_training(weights):
    model = torchvision.models.resnet50(weights=None)
    model.fc = torch.nn.Identity()
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    state |= {
        "module.projection_head.0.weight": torch.ones(2, 2),
        "module.prototypes.weight": torch.ones(2, 2),
    }
    torch.save(state, weights / "swav_800ep_pretrain.pth.tar")
    encoder = make("swav", size=32)
    torch.testing.assert_close(encoder.network.conv1.weight, model.conv1.weight)
    assert encoder.dim == 2048


def test_timm_weights_without_their_classifier(weights):
    import timm
    from safetensors.torch import save_file

    model = timm.create_model("resnet10t", pretrained=False, num_classes=1000)
    save_file(model.state_dict(), weights / "resnet10t.c3_in1k.safetensors")
    encoder = make("timm:resnet10t", size=32)
    torch.testing.assert_close(encoder.network.layer4[0].conv1.weight, model.layer4[0].conv1.weight)
    assert encoder.preprocess.mean == tuple(timm.get_pretrained_cfg("resnet10t").mean)
    save_file(timm.create_model("resnet14t").state_dict(), weights / "resnet10t.c3_in1k.safetensors")
    with pytest.raises(BadInput, match="unknown"):
        make("timm:resnet10t")


# -- network:<checkpoint> ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def squeezenet():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torchvision.models.squeezenet1_0(weights=None, num_classes=7).eval()


def test_network_reads_every_format(squeezenet, weights, tmp_path):
    from safetensors.torch import save_file

    state = squeezenet.state_dict()
    np.savez(
        tmp_path / "squeezenet1_0_half.npz",
        **{name: value.numpy().astype(np.float16) for name, value in state.items()},
    )
    torch.save(state, weights / "squeezenet1_0.pt")
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}},
        tmp_path / "mine.pth",
    )
    save_file(state, tmp_path / "mine.safetensors")
    with torch.no_grad():
        view = imagenet_view(ArrayImages(COLOUR), 64)(COLOUR, CPU)
        expected = squeezenet.features(view).mean((2, 3)).numpy()
    for variant, tolerance in (
        ("squeezenet1_0.pt", 1e-5),
        (f"squeezenet1_0@{tmp_path}/mine.pth", 1e-5),
        (f"squeezenet1_0@{tmp_path}/mine.safetensors", 1e-5),
        (f"{tmp_path}/squeezenet1_0_half.npz", 2e-2),
    ):
        found = make(f"network:{variant}", size=64)(COLOUR)
        np.testing.assert_allclose(
            found, expected, rtol=0, atol=tolerance * np.abs(expected).max(), err_msg=variant
        )


def test_network_features_are_what_the_classifier_sees(weights):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torchvision.models.mobilenet_v2(weights=None, num_classes=4).eval()
    torch.save(model.state_dict(), weights / "mobilenet_v2.pth")
    encoder = make("network:mobilenet_v2.pth", size=32)
    with torch.no_grad():
        expected = model(encoder.preprocess(COLOUR, CPU)).numpy()
        found = model.classifier(torch.from_numpy(encoder(COLOUR))).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_network_refuses(weights, tmp_path):
    with pytest.raises(UnknownName, match="Did you mean 'resnet18'"):
        make("network:resnet19@x.pth")
    with pytest.raises(BadInput, match="network:<architecture>@<file>"):
        make("network:mine.pth")
    with pytest.raises(MissingData, match=r"weights/resnet18\.pth: no such"):
        make("network:resnet18.pth")
    np.savez(weights / "resnet18.npz", weight=np.ones(3, np.float32))
    with pytest.raises(BadInput, match="does not fit ResNet"):
        make("network:resnet18.npz")
    torch.save([1, 2], weights / "resnet18.pt")
    with pytest.raises(BadInput, match="holds a list"):
        make("network:resnet18.pt")
    np.savez(weights / "resnet34.npz")
    with pytest.raises(BadInput, match="no tensors"):
        make("network:resnet34.npz")


def test_load_is_whole_or_not_at_all(tmp_path):
    layer = torch.nn.Linear(2, 2)
    before = layer.weight.detach().clone()
    with pytest.raises(BadInput, match=r"of another shape \(bias\); bias is \(3,\), not \(2,\)"):
        load(layer, {"weight": torch.zeros(2, 2), "bias": torch.zeros(3)}, tmp_path / "x.pth")
    assert torch.equal(layer.weight, before)


def test_local_checkpoints_of_names(weights, tmp_path):
    assert local_checkpoint("network:resnet18.pth") == weights / "resnet18.pth"
    assert local_checkpoint(f"clip_ViT-B-32:{tmp_path}/a.pt") == tmp_path / "a.pt"
    assert local_checkpoint("clip_ViT-B-32:laion2b_s34b_b79k") is None
    assert local_checkpoint("timm:resnet18") is None


def test_read_needs_a_file(tmp_path):
    with pytest.raises(MissingData, match="no such checkpoint"):
        read(tmp_path / "absent.pth")


# -- CLIP ----------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_clip(tmp_path):
    """open_clip with one more architecture: CLIP with two layers."""
    import json

    import open_clip

    folder = tmp_path / "configs"
    folder.mkdir()
    tower = {"layers": 2, "width": 64}
    config = {
        "embed_dim": 24,
        "vision_cfg": {**tower, "image_size": 32, "patch_size": 8, "head_width": 64},
        "text_cfg": {**tower, "context_length": 7, "vocab_size": 50, "heads": 1},
    }
    (folder / "tiny-CLIP.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return open_clip.create_model("tiny-CLIP").eval()


def test_clip_projected_features_with_its_own_preprocessing(tiny_clip, weights):
    torch.save(tiny_clip.state_dict(), weights / "mine.pt")
    encoder = make("clip_tiny-CLIP:mine.pt")
    assert encoder.dim == 24
    photographs = Photographs((40, 64), (70, 33))
    chain = v2.Compose(
        [
            v2.Resize(32, v2.InterpolationMode.BICUBIC),
            v2.CenterCrop(32),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    view = torch.stack([chain(image) for image in photographs.images])
    mean, std = (
        torch.tensor([0.48145466, 0.4578275, 0.40821073]),
        torch.tensor([0.26862954, 0.26130258, 0.27577711]),
    )
    view = (view - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.no_grad():
        expected = tiny_clip.encode_image(view, normalize=False).numpy()
    found = encoder(photographs.images)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(np.linalg.norm(found, axis=1) - 1).min() > 0.01  # not normalised


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
def test_clip_reads_openais_archives_with_quick_gelu(tiny_clip, weights):
    import open_clip

    archive = torch.nn.Module()
    for name, value in tiny_clip.half().state_dict().items():
        *path, leaf = name.split(".")
        module = archive
        for step in path:
            if step not in dict(module.named_children()):
                module.add_module(step, torch.nn.Module())
            module = module.get_submodule(step)
        module.register_parameter(leaf, torch.nn.Parameter(value))
    torch.jit.save(torch.jit.script(archive), weights / "mine.pt")
    found = make("clip_tiny-CLIP:mine.pt")(COLOUR)
    quick = open_clip.create_model("tiny-CLIP", force_quick_gelu=True).eval()
    quick.load_state_dict(tiny_clip.float().state_dict())
    view = Preprocess(
        32, 32, mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711)
    )(COLOUR, CPU)
    with torch.no_grad():
        np.testing.assert_allclose(found, quick.encode_image(view).numpy(), rtol=1e-3, atol=1e-4)
        assert not np.allclose(found, tiny_clip.encode_image(view).numpy(), rtol=1e-3, atol=1e-4)


class Scripted(torch.nn.Module):
    """Prints when its archive is loaded."""

    @torch.jit.export
    def __getstate__(self) -> tuple[bool]:
        return (self.training,)

    @torch.jit.export
    def __setstate__(self, state: tuple[bool]) -> None:
        print("scripted code ran")
        self.training = state[0]


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
def test_clip_runs_no_code_of_an_archive(tiny_clip, weights, capfd):
    torch.jit.save(torch.jit.script(Scripted()), weights / "mine.pt")
    capfd.readouterr()
    torch.jit.load(weights / "mine.pt")
    assert "scripted code ran" in capfd.readouterr().out, "that is the danger"
    with pytest.raises(BadInput, match=r"mine\.pt would run code while it is loaded"):
        make("clip_tiny-CLIP:mine.pt")
    torch.save({"state_dict": {"weight": torch.ones(1)}, "extra": Loud()}, weights / "mine.pt")
    with pytest.raises(BadInput, match=r"open_clip cannot make tiny-CLIP of .*mine\.pt: UnpicklingError"):
        make("clip_tiny-CLIP:mine.pt")
    assert "ran" not in capfd.readouterr().out


def test_clip_random_weights(tiny_clip):
    encoder = make("clip_tiny-CLIP", random_weights=True)
    assert encoder(COLOUR).shape == (6, 24)
    np.testing.assert_allclose(encoder(COLOUR[:1]), encoder(COLOUR)[:1], rtol=1e-4, atol=1e-5)


def test_clip_refuses(tiny_clip, weights):
    with pytest.raises(UnknownName, match="Did you mean 'ViT-B-32'"):
        make("clip_ViT-B-33")
    with pytest.raises(UnknownName, match="laion2b_s34b_b79k"):
        make("clip_ViT-B-32:laion3b")
    with pytest.raises(MissingData, match=r"nowhere\.pt: no such"):
        make("clip_ViT-B-32:nowhere.pt")
    torch.save({"visual.conv1.weight": torch.ones(1)}, weights / "bad.pt")
    with pytest.raises(BadInput, match="tiny-CLIP"):
        make("clip_tiny-CLIP:bad.pt")


# -- missing weights -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "file", "address"),
    [
        (
            "dino_vits16",
            "dino_deitsmall16_pretrain.pth",
            "https://dl.fbaipublicfiles.com/dino/dino_deitsmall16_pretrain/",
        ),
        (
            "dinov2_vits14_reg",
            "dinov2_vits14_reg4_pretrain.pth",
            "huggingface.co/timm/vit_small_patch14_reg4_dinov2.lvd142m",
        ),
        ("swav", "swav_800ep_pretrain.pth.tar", "https://dl.fbaipublicfiles.com/deepcluster/"),
        (
            "timm:resnet10t.c3_in1k",
            "resnet10t.c3_in1k.safetensors",
            "huggingface.co/timm/resnet10t.c3_in1k/resolve/main/model.safetensors",
        ),
        (
            "clip_ViT-B/32",
            "clip_ViT-B-32_openai.safetensors",
            "huggingface.co/timm/vit_base_patch32_clip_224.openai",
        ),
        (
            "clip_ViT-B-32:laion2b_s34b_b79k",
            "clip_ViT-B-32_laion2b_s34b_b79k.safetensors",
            "huggingface.co/laion/CLIP-ViT-B-32",
        ),
    ],
)
def test_offline_says_file_folder_and_address(name, file, address, weights):
    with pytest.raises(MissingData) as error:
        make(name)
    for part in (name, file, str(weights), address, "WINNOW_OFFLINE", "embedder=patches"):
        assert part in str(error.value)


def test_a_fetch_is_announced_beforehand_and_its_failure_explained(weights, monkeypatch, caplog, tmp_path):
    monkeypatch.delenv("WINNOW_OFFLINE")
    server, name = tmp_path / "server", "swav_800ep_pretrain.pth.tar"
    monkeypatch.setattr(
        "winnow.tasks.embed.swav.CHECKPOINT", Checkpoint(("swav",), f"{server.as_uri()}/{name}")
    )
    with (
        caplog.at_level(logging.INFO, logger="winnow.tasks"),
        pytest.raises(MissingData, match=r"could not be fetched: file://"),
    ):
        make("swav", size=32)
    assert "swav: fetching file://" in caplog.text
    assert "about 94.0 MB" in caplog.text
    assert str(tmp_path / "torch") in caplog.text
    server.mkdir()
    torch.save(
        make("swav", size=32, random_weights=True).network.state_dict(),
        server / "swav_800ep_pretrain.pth.tar",
    )
    assert make("swav", size=32).dim == 2048
    (server / "swav_800ep_pretrain.pth.tar").unlink()
    monkeypatch.setenv("WINNOW_OFFLINE", "1")
    assert make("swav", size=32).dim == 2048  # from the cache


# -- devices -------------------------------------------------------------------------------------------------


def test_other_devices_than_cpu_and_cuda_are_refused():
    assert hardware.by_device({"cpu": 1, "cuda": 2}, torch.device("cuda", 3)) == 2
    with pytest.raises(DeviceUnavailable, match="device=mps: Winnow computes on cpu and cuda only"):
        hardware.by_device({"cpu": 1, "cuda": 2}, torch.device("mps"))
    with pytest.raises(DeviceUnavailable, match="cpu and cuda only"):
        NetworkEncoder("x", torch.nn.Identity(), Preprocess(4, 4), torch.device("meta"), torch.float32)


def test_full_precision_is_set_once_and_leaves_cudnn_on():
    enabled = torch.backends.cudnn.enabled
    for _ in range(2):
        hardware.full_precision()
        assert not torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cudnn.allow_tf32
        assert torch.backends.cudnn.enabled == enabled
        assert torch.get_float32_matmul_precision() == "highest"


def test_seeded_initialisation_is_the_same_beside_other_threads():
    """All draw from one global generator, so they must take turns, and leave it as it was."""

    def weight(seed):
        with seeded(torch.Generator().manual_seed(seed)):
            first = torch.nn.Linear(3, 3).weight.detach()
            time.sleep(0.002)
            with hardware.borrowed_generator(7):  # the same thread may borrow again
                torch.nn.Linear(3, 3)
            return torch.stack([first, torch.nn.Linear(3, 3).weight.detach()])

    before = torch.get_rng_state()
    alone = [weight(seed) for seed in range(12)]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(weight, range(12)))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert torch.equal(before, torch.get_rng_state())


def test_a_core_pool_changes_no_other_thread():
    usual = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with hardware.core_pool(2) as pool:
            assert (
                list(pool.map(lambda _: (torch.get_num_threads(), hardware.spare_threads()), "ab"))
                == [(1, 1)] * 2
            )
            assert torch.get_num_threads() == 3
            with ThreadPoolExecutor(1) as other:
                assert other.submit(torch.get_num_threads).result() == 3
        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(usual)


def interrupted():
    held = threading.Event()
    with hardware.core_pool(1) as pool:
        pool.submit(held.wait, 0.1)
        waiting = pool.submit(pytest.fail, "it should have been cancelled")
        try:
            raise KeyboardInterrupt
        finally:
            assert not waiting.running()


@pytest.mark.gpu
@pytest.mark.parametrize("photographs", [False, True])
def test_encoders_on_a_gpu_agree_with_the_cpu(photographs):
    images = Photographs((40, 64), (70, 33), (32, 32), (90, 50)) if photographs else ArrayImages(COLOUR)
    hardware.full_precision()
    for name, options in (
        ("timm:resnet10t", {"size": 64, "random_weights": True}),
        ("dino_vits16", {"size": 32, "random_weights": True}),
        ("patches", {"centroids": 16, "size": 16}),
        ("pixels", {}),
    ):
        found = []
        for device in (CPU, torch.device("cuda")):
            generator = torch.Generator().manual_seed(0)
            encoder = embedders.get(name)(
                images, device=device, dtype=torch.float32, generator=generator, **options
            )
            found.append(embed(encoder, images, slice(None), batch_size=2))
        tolerance = 1e-2 if name == "patches" else 1e-3  # its axes are learnt on the device
        np.testing.assert_allclose(
            found[1], found[0], rtol=0, atol=tolerance * np.abs(found[0]).max(), err_msg=name
        )


@pytest.mark.gpu
def test_a_side_may_grow_while_the_other_shrinks_on_a_gpu():
    """Pillow decides the order of its passes there, so the CPU resizes; the result still lies on the GPU."""
    batch = RANDOM.integers(0, 256, (3, 20, 60, 3)).astype(np.uint8)
    view = Preprocess(32, None)
    found = view(batch, torch.device("cuda"))
    assert found.device.type == "cuda"
    torch.testing.assert_close(found.cpu(), view(batch, CPU), rtol=0, atol=1e-6)


@pytest.mark.gpu
def test_batches_are_encoded_on_a_gpu_without_waiting():
    device, images = torch.device("cuda"), ArrayImages(np.repeat(COLOUR, 20, axis=0))
    encoder = embedders.get("timm:resnet10t")(
        images,
        device=device,
        dtype=torch.bfloat16,
        generator=torch.Generator().manual_seed(0),
        size=64,
        random_weights=True,
    )
    expected = embed(encoder, images, slice(None), batch_size=16)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = embed(encoder, images, slice(None), batch_size=16)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    np.testing.assert_array_equal(found, expected)
