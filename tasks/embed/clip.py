"""CLIP image towers through open_clip: any architecture, any published or local weights."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors import SafetensorError
from torch import nn

from winnow.tasks.data.images import Images
from winnow.tasks.embed.encoder import NetworkEncoder, seeded
from winnow.tasks.embed.preprocess import CLIP_MEAN, CLIP_STD, Preprocess
from winnow.tasks.embed.timm_models import warn_random
from winnow.tasks.embed.weights import Checkpoint, in_weights_folder, is_file_name, obtain, require
from winnow.tasks.errors import BadInput, UnknownName, did_you_mean

__all__ = ["clip"]

_DEFAULT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_UNFIT = (RuntimeError, OSError, KeyError, ValueError, EOFError, pickle.UnpicklingError, SafetensorError)


def clip(
    images: Images,
    *,
    variant: str,
    device: torch.device,
    dtype: torch.dtype,
    generator: torch.Generator,
    random_weights: bool = False,
) -> NetworkEncoder:
    """CLIP image embedding, projected, not normalised: ``clip_ViT-L-14``, ``clip_ViT-B-32:<tag or file>``.

    Preprocessing is the model's own: shorter side to the input size (bicubic), central square, its mean and
    standard deviation.

    Args:
        images: unused; any images can be embedded.
        variant: architecture (OpenAI's spelling, ``ViT-B/32``, is understood), then ``:`` and one of
            open_clip's tags (``laion2b_s34b_b79k``) or a checkpoint file (``/my.pt``); default the tag
            ``openai``. Published weights are looked for as ``clip_<architecture>_<tag>.safetensors`` (or .pt,
            …).
        device: where it runs.
        dtype: for matrix products.
        generator: for random weights.
        random_weights: do not load weights, for tests.

    Returns:
        the encoder; 512 dimensions for ViT-B, 768 for ViT-L/14, 1024 for RN50.

    Raises:
        UnknownName: no such architecture or tag.
        MissingData: the weights are not available.
        BadInput: a checkpoint of another architecture, or one that would run code.

    >>> from winnow.tasks.data.images import ArrayImages
    >>> images = ArrayImages(torch.zeros(1, 32, 32, 3, dtype=torch.uint8).numpy())
    >>> where = {"device": torch.device("cpu"), "dtype": torch.float32, "generator": torch.Generator()}
    >>> clip(images, variant="ViT-B-33", **where)
    Traceback (most recent call last):
    winnow.UnknownName: open_clip has no architecture 'ViT-B-33'. Did you mean 'ViT-B-32'?
      next: open_clip.list_models() names them

    References:
        Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021;
        mlfoundations/open_clip; ``clip.load(…).visual`` in model_builders.py of
        HHU-MMBS/TEMI-official-BMVC2023.

    Differences from upstream:
        open_clip builds ``ViT-B-32`` with GELU even for OpenAI's weights, which were trained with QuickGELU,
        and only warns. Here the tag decides; for your own checkpoint, its kind (OpenAI's TorchScript:
        QuickGELU) or the architecture (``ViT-B-32-quickgelu``) does.
    """
    wanted, _, source = variant.partition(":")
    architecture = wanted.replace("/", "-").replace("@336px", "-336")
    if architecture not in open_clip.list_models():
        hint = did_you_mean(architecture, open_clip.list_models())
        raise UnknownName(
            f"open_clip has no architecture {wanted!r}.{hint}", remedy="open_clip.list_models() names them"
        )
    name, local = f"clip_{variant}", is_file_name(source)
    config: dict[str, Any] = {}
    if not local:
        source = source or "openai"
        config = open_clip.get_pretrained_cfg(architecture, source) or {}
        if not config and not random_weights:
            tags = open_clip.list_pretrained_tags_by_model(architecture)
            raise UnknownName(
                f"open_clip has no weights {source!r} for {architecture}. Available: "
                f"{', '.join(tags) or 'none'}"
            )
    path = None
    if random_weights:
        warn_random(name)
    else:
        path = in_weights_folder(source) if local else _published(name, architecture, source, config)
    model = _model(architecture, path, bool(config.get("quick_gelu")), generator)
    visual: Any = model.visual
    preprocessing = {**(open_clip.get_model_preprocess_cfg(model) or {}), **config}
    size = visual.image_size if isinstance(visual.image_size, int) else visual.image_size[0]
    short = None if preprocessing.get("resize_mode") == "squash" else size
    mean, std = preprocessing.get("mean") or CLIP_MEAN, preprocessing.get("std") or CLIP_STD
    kind = preprocessing.get("interpolation") or "bicubic"
    preprocess = Preprocess(size, short, kind, tuple(mean), tuple(std))
    return NetworkEncoder(name, _Tower(visual), preprocess, device, dtype)


class _Tower(nn.Module):
    """The image tower alone; CoCa's also yields its tokens, which are dropped."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        output = self.visual(images)
        return output[0] if isinstance(output, tuple) else output


def _published(name: str, architecture: str, tag: str, config: dict[str, Any]) -> Path:
    url = config.get("url") or ""
    hub, _, file = (config.get("hf_hub") or "").rpartition("/")
    stem = url.rsplit("/", 1)[-1].rpartition(".")[0]  # for OpenAI's own file names, for example ViT-B-32.pt
    names = (f"clip_{architecture}_{tag}", *([stem] if stem else []))
    checkpoint = Checkpoint(
        names,
        url="" if hub else url,
        hub=hub,
        hub_files=(file,) if file else _DEFAULT_FILES,
        caches=(Path.home() / ".cache" / "clip" / url.rsplit("/", 1)[-1],) if stem else (),
    )
    return obtain(name, checkpoint)


def _model(architecture: str, path: Path | None, quick_gelu: bool, generator: torch.Generator) -> nn.Module:
    """open_clip's model with the weights in ``path``, or randomly initialised."""
    if path is not None:
        require(path)
    try:
        with seeded(generator), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated, but OpenAI's files use it
            if path is not None and _is_torchscript(path):
                return open_clip.load_openai_model(str(path), precision="fp32", device="cpu")
            return open_clip.create_model(
                architecture, str(path) if path else None, force_quick_gelu=quick_gelu, pretrained_text=False
            )
    except _UNFIT as error:
        raise BadInput(
            f"open_clip cannot make {architecture} of {path or 'its configuration'}: {type(error).__name__}: "
            f"{str(error)[:500]}",
            remedy="use the checkpoint of this architecture, or name the architecture that it belongs to",
        ) from error


def _is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive, as OpenAI's are.

    Loading one runs code in it only where a class has ``__setstate__``.

    Raises:
        BadInput: an archive with such a class.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            sources = b"".join(archive.read(name) for name in names if name.endswith(".py"))
    except zipfile.BadZipFile:
        return False
    if not any(name.endswith("/constants.pkl") for name in names):
        return False
    if len(names) > len(set(names)) or b"__setstate__" in sources:
        raise BadInput(
            f"{path} would run code while it is loaded.",
            remedy="save its state dict instead: torch.save(model.state_dict(), …)",
        )
    return True
