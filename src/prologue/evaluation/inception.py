"""Inception features as TensorFlow's original gives them, by torch-fidelity: only figures in them are called FID."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prologue.errors import EvaluationError, MissingExtraError
from prologue.evaluation.features import ClassifierExtractor, Pixels
from prologue.weights import file_hash

_MODULE = "torch_fidelity.feature_extractor_inceptionv3"
_LAYERS = ["2048", "logits_unbiased"]
"""Of FID and KID, and of the Inception Score, which leaves the bias of the last layer out."""


class InceptionExtractor(ClassifierExtractor):
    """Pooled features (2048) and logits of Inception-V3 of 2015; needs the extra [fid].

    Weights come from the file `weights`, else from torch's cache, else they are downloaded into it. Their pickle may
    hold tensors only. Raises `MissingExtraError` without the extra, `EvaluationError` for weights that are not there,
    damaged or unsafe.
    """

    name = "Inception"
    dimension = 2048

    def __init__(self, device: str | torch.device = "cpu", weights: Path | None = None) -> None:
        try:
            module = import_module(_MODULE)
        except ImportError as error:
            raise MissingExtraError("Inception features (FID)", "fid") from error
        path = weights if weights is not None else _cached(module)
        _check(path)
        # The package initialises the network before it loads it, which draws from the global generator.
        with torch.random.fork_rng(devices=[]):
            try:
                self._model: Any = module.FeatureExtractorInceptionV3(
                    "inception-v3-compat", list(_LAYERS), feature_extractor_weights_path=str(path)
                )
            except RuntimeError as error:  # other tensors than the network's
                reason = str(error).splitlines()[0]
                raise EvaluationError(f"{path} does not hold the weights of Inception-V3: {reason}") from error
        super().__init__(self._model, device)
        self.hash = file_hash(path)

    def _outputs(self, pixels: Pixels) -> tuple[Tensor, Tensor]:
        features, logits = self._model(pixels)
        return features, logits


def _cached(module: Any) -> Path:
    """The weight file in torch's cache, downloaded where it is not there; its name ends in its sha256's beginning."""
    url: str = module.URL_INCEPTION_V3
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), path.stem.rpartition("-")[2], progress=False)
        except (OSError, RuntimeError) as error:
            raise EvaluationError(
                f"the weights of Inception cannot be downloaded ({error}): get {url} by another way and give the file "
                f"with --inception-weights, or put it at {path}"
            ) from error
    return path


def _check(path: Path) -> None:
    """Refuse what the package, which reads any pickle, must not be given."""
    if not path.is_file():
        raise EvaluationError(f"{path} is not a file: --inception-weights wants torch-fidelity's weight file (.pth)")
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EvaluationError(
            f"{path} cannot be read as weights, or holds more than tensors ({reason}): take torch-fidelity's file"
        ) from error
