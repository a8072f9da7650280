"""Weights of published networks: the files to download, and the cached files that `prologue weights` writes."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from prologue.errors import CheckpointError
from prologue.utils.files import cache_folder

if TYPE_CHECKING:
    from torch import Tensor

Network = Literal["lpips", "convnext", "inception"]


@dataclass(frozen=True)
class Source:
    """A published file and the first digits of its sha256, which most file names contain."""

    name: str
    url: str
    sha256: str
    size: str
    licence: str
    package: str | None = None
    """Path of the file in a dependency of this package, `PACKAGE/PATH`."""

    @property
    def title(self) -> str:
        return f"{self.name} ({self.size}, sha256 {self.sha256[:8]}…, {self.licence}): {self.url}"


@dataclass(frozen=True)
class Published:
    """A network: its file in the cache, its use, and the published files from which it is written."""

    file: str
    use: str
    sources: tuple[Source, ...]


PUBLISHED: dict[Network, Published] = {
    "lpips": Published(
        "lpips-vgg16.safetensors",
        "the perceptual term of the base presets, and LPIPS of `prologue evaluate reconstruction`",
        (
            Source(
                "vgg16-397923af.pth",
                "https://download.pytorch.org/models/vgg16-397923af.pth",
                "397923af",
                "528 MiB",
                "BSD-3-Clause, torchvision",
            ),
            Source(
                "vgg.pth",
                "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1/vgg.pth",
                "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
                "7 KiB",
                "BSD-2-Clause, LPIPS 0.1",
                "torchmetrics/functional/image/lpips_models/vgg.pth",
            ),
        ),
    ),
    "convnext": Published(
        "convnext-small.safetensors",
        "the perceptual term of the large presets",
        (
            Source(
                "convnext_small-0c510722.pth",
                "https://download.pytorch.org/models/convnext_small-0c510722.pth",
                "0c510722",
                "192 MiB",
                "BSD-3-Clause, torchvision",
            ),
        ),
    ),
    "inception": Published(
        "weights-inception-2015-12-05-6726825d.pth",
        "`--features inception` (extra [fid]), which reads the published file",
        (
            Source(
                "weights-inception-2015-12-05-6726825d.pth",
                "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
                "6726825d",
                "91 MiB",
                "Apache-2.0, torch-fidelity; also published as pt_inception-2015-12-05-6726825d.pth",
            ),
        ),
    ),
}
"""The networks of `prologue weights`. The licences are those of the projects that publish the files."""


def place(network: Network) -> Path:
    """The default weight file of a network, in the user's cache."""
    return cache_folder() / "weights" / PUBLISHED[network].file


def fetch(source: Source) -> Path:
    """The published file in an installed package or in torch's cache; a missing one is downloaded into that cache.

    Only a download is compared with the hash.

    Raises:
        CheckpointError: the download failed.
    """
    import torch

    if source.package is not None:
        package, _, inside = source.package.partition("/")
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
            if (Path(folder) / inside).is_file():
                return Path(folder) / inside
    cached = Path(torch.hub.get_dir()) / "checkpoints" / source.name
    return cached if cached.is_file() else download(source.url, cached, source.sha256)


def download(url: str, path: Path, sha256: str) -> Path:
    """Download `url` to `path` atomically; its sha256 must begin with `sha256`."""
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path), sha256, progress=sys.stderr.isatty())
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{path.name} cannot be downloaded ({error}): download {url} in another way") from error
    return path


def read_published(path: Path) -> dict[str, Tensor]:
    """The tensors of a published PyTorch file. A damaged file or other contents raise a `CheckpointError`."""
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} cannot be read as weights, or holds more than tensors ({reason})") from error
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise CheckpointError(f"{path} cannot be read as weights: it is not a table of tensors")
    return dict(content)
