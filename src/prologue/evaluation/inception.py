"""Inception features as TensorFlow's original computes them, by torch-fidelity; distances in them are called FID."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prologue.errors import CheckpointError, EvaluationError, MissingExtraError
from prologue.evaluation.features import ClassifierExtractor, Pixels
from prologue.models.published import download, place, read_published
from prologue.models.weights import file_hash

_MODULE = "torch_fidelity.feature_extractor_inceptionv3"
_LAYERS = ["2048", "logits_unbiased"]
"""The layers of FID and KID, and of the Inception Score (without the bias of the last layer)."""


class InceptionExtractor(ClassifierExtractor):
    """Pooled features (2048) and logits of Inception-V3 of 2015; needs the extra [fid].

    The weights are the file `weights`, else the file of `prologue weights inception`, else the file in torch's cache,
    which is downloaded if it is missing. Their pickle may contain tensors only.

    Raises:
        MissingExtraError: the extra is not installed.
        EvaluationError: the weights are missing, damaged or unsafe.
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
        # The package initialises the network before it loads the weights, with the global generator.
        with torch.random.fork_rng(devices=[]):
            try:
                self._model: Any = module.FeatureExtractorInceptionV3(
                    "inception-v3-compat", list(_LAYERS), feature_extractor_weights_path=str(path)
                )
            except RuntimeError as error:  # the tensors are not those of the network
                reason = str(error).splitlines()[0]
                raise EvaluationError(f"{path} does not hold the weights of Inception-V3: {reason}") from error
        super().__init__(self._model, device)
        self.hash = file_hash(path)

    def _outputs(self, pixels: Pixels) -> tuple[Tensor, Tensor]:
        features, logits = self._model(pixels)
        return features, logits


def _cached(module: Any) -> Path:
    """The weight file of `prologue weights inception`, else the one in torch's cache, downloaded if it is missing."""
    if place("inception").is_file():
        return place("inception")
    url: str = module.URL_INCEPTION_V3
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if path.is_file():
        return path
    try:
        return download(url, path, path.stem.rpartition("-")[2])
    except CheckpointError as error:
        raise EvaluationError(
            f"the weights of Inception: {error}, then run `prologue weights inception FILE` once, or give the file "
            "with --inception-weights"
        ) from error


def _check(path: Path) -> None:
    """Refuse unsafe files: torch-fidelity reads any pickle."""
    if not path.is_file():
        raise EvaluationError(f"{path} is not a file: --inception-weights wants torch-fidelity's weight file (.pth)")
    try:
        read_published(path)
    except CheckpointError as error:
        raise EvaluationError(f"{error}: take torch-fidelity's file (`prologue weights inception`)") from error
