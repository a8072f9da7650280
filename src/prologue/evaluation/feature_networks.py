"""The feature networks that `--features` names: those of the package, and functions from outside it."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float32
from torch import Tensor

from prologue.data.source import ENDLESS, embedded_name
from prologue.errors import EvaluationError, MissingExtraError
from prologue.evaluation.features import FeatureExtractor, Pixels, checked_pixels, own_extractor
from prologue.models.lite0 import lite0_installed
from prologue.utils.registry import Registry

FEATURES: Registry[Any] = Registry(
    "feature network",
    {
        "auto": "prologue.evaluation.feature_networks:open_features",
        "lite0": "prologue.evaluation.features:Lite0Extractor",
        **dict.fromkeys(ENDLESS, "prologue.evaluation.features:own_extractor"),
        "inception": "prologue.evaluation.inception:InceptionExtractor",
    },
)
_FORM = "a function without arguments that returns a callable from uint8 images (b, 3, h, w) to features (b, d)"


def open_features(
    name: str, data_name: str, device: str | torch.device = "cpu", inception_weights: Path | None = None
) -> tuple[FeatureExtractor | None, str | None]:
    """The feature network `name` for images of the data source `data_name`, or None and the reason.

    `auto` is lite0 if its extra is installed, else the classifier of embedded `shapes` or `plates`, else None.
    `module:function` is a function from outside the package (`FunctionExtractor`).

    Raises:
        MissingExtraError: the extra of `lite0` or `inception` is not installed.
        EvaluationError: `shapes` or `plates` is asked for on other data.
        ConfigError: the name is unknown.
    """
    if name == "auto":
        own = None if lite0_installed() else own_extractor(data_name, device)
        if own is None and not lite0_installed():
            return None, str(MissingExtraError("a distance between image sets", "lite0"))
        return own or FEATURES.get("lite0")(device), None
    network = FEATURES.import_named(name)
    if ":" in name:
        return FunctionExtractor(name, network), None
    if name in ENDLESS:
        if name != embedded_name(data_name):
            raise EvaluationError(
                f"the features {name!r} know only the embedded {name}, not {data_name!r}: use lite0 (extra [lite0])"
            )
        return network(data_name, device), None
    return (network(device, inception_weights) if name == "inception" else network(device)), None


class FunctionExtractor(FeatureExtractor):
    """A callable from uint8 images (b, 3, h, w) on the CPU to features (b, d), made by a function from outside.

    The names of distances end with the function's name; `hash` is the callable's attribute of that name, else None.
    `source` hashes the files of the function, its module and the callable's class, so that an edit of these files
    gives new figures. Other files that these read are not seen: the callable's `hash` must cover them.

    Raises:
        EvaluationError: the function has another form or no source file, or its name is that of a feature network.
    """

    dimension = None

    def __init__(self, where: str, make: Callable[[], Any]) -> None:
        self.name = where.rpartition(":")[2]
        if self.name.lower() in FEATURES:
            raise EvaluationError(f"features of your own cannot be called {self.name!r}: rename the function")
        if not callable(make):
            raise EvaluationError(f"--features {where!r} is {type(make).__name__}, and must be {_FORM}")
        self._callable: Any = make()
        if not callable(self._callable):
            raise EvaluationError(f"--features {where!r} returned {type(self._callable).__name__}; it must be {_FORM}")
        module = inspect.getmodule(make)
        self.source = f"{where} {_code_hash(where, module, make, type(self._callable))}"
        stated = getattr(self._callable, "hash", None)
        self.hash = None if stated is None else str(stated)

    @torch.inference_mode()
    def __call__(self, images: Pixels) -> Float32[Tensor, "b d"]:
        features = self._callable(checked_pixels(images))
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(images):
            shown = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise EvaluationError(
                f"the features {self.name!r} of {len(images)} images must be a tensor ({len(images)}, d), not {shown}"
            )
        return features.float().cpu()


def _code_hash(where: str, *parts: Any) -> str:
    """sha256 of the files that define the parts."""
    files = set()
    for part in parts:
        try:
            files.add(inspect.getfile(inspect.unwrap(part) if callable(part) else part))
        except (TypeError, OSError):  # built in
            continue
    try:
        contents = sorted({Path(file).read_bytes() for file in files})
    except OSError as error:
        raise EvaluationError(f"--features {where!r}: its code cannot be read ({error})") from error
    if not contents:
        raise EvaluationError(
            f"--features {where!r} has no source file whose hash identifies its figures: move the function to a module"
        )
    return hashlib.sha256(b"\0".join(hashlib.sha256(content).digest() for content in contents)).hexdigest()


@dataclass(frozen=True)
class Features:
    """The features in which distances are measured, or the reason why there are none."""

    extractor: FeatureExtractor | None = None
    reason: str | None = "no features were asked for"
    trained_on: bool = False
    """Whether a training loss used the same features: distances in them then flatter the run."""

    @classmethod
    def open(
        cls,
        name: str,
        data_name: str,
        device: str | torch.device = "cpu",
        trained_on: Sequence[str] = (),
        inception_weights: Path | None = None,
    ) -> Self:
        """The features `name` for images of `data_name`. Names and errors are those of `open_features`.

        `trained_on` names the features of the run's losses, as its manifest does.
        """
        extractor, reason = open_features(name, data_name, device, inception_weights)
        return cls(extractor, reason, extractor is not None and extractor.name.lower() in trained_on)

    def facts(self) -> dict[str, str | None]:
        """What figures in these features depend on."""
        names = {"features": "name", "features_hash": "hash", "features_source": "source"}
        return {fact: getattr(self.extractor, name, None) for fact, name in names.items()}
