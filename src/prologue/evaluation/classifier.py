"""The shipped classifiers of embedded images: they recognise the class of an image, and give features for distances.

`tools/classifiers.py` trained them on real images alone. No training loss uses them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor, nn

from prologue.data.embedded import plates, shapes
from prologue.data.source import embedded_name, source_of
from prologue.models.weights import load_exactly, read_tensors

SIDE = 32
"""Rows and columns of the images in the network."""
View = tuple[str, tuple[int, int]]
"""Embedded images in the form of `--data`, and their rows and columns."""


@dataclass(frozen=True)
class Kind:
    """One kind of embedded images and its classifier."""

    name: str
    """Suffix of the names of distances in its features."""
    class_names: tuple[str, ...]
    factors: tuple[tuple[str, tuple[object, ...]], ...]
    """Factors predicted in training, the class first, for more general features. Only the class is shipped."""
    views: tuple[View, ...]
    """Views of the training images, in turn, before they are resized."""
    judged: dict[str, View]
    """Test images of the shipped weights, by the name of the accuracy in their card."""
    version: int
    """Version of the images."""
    widths: tuple[int, ...] = (24, 40, 72, 72, 80)
    """Channels of the convolutions; those of the last one are the features."""
    halvings: int = 3
    """Number of first convolutions after which the sides are halved."""

    @property
    def file(self) -> Path:
        """The shipped weights."""
        return Path(__file__).with_name(f"{self.name.lower().replace('-', '_')}_classifier.safetensors")

    @property
    def dimension(self) -> int:
        """Number of features."""
        return self.widths[-1]


_SIZES = ((32, 32), (32, 32), (32, 32), (16, 16), (24, 24), (48, 48), (64, 64), (32, 48), (48, 32))
_SIDES = (24, 32, 40, 48, 64)
_SCENE = (
    ("kind", shapes.CLASS_NAMES),
    ("colour", shapes.COLOURS),
    ("texture", shapes.TEXTURES),
    ("background", shapes.BACKGROUNDS),
    ("night", (False, True)),
)


def _plates(figures: str) -> Kind:
    where = f"plates:figures={figures}"
    names, hues = plates.class_names(figures), tuple(plates.HUES)
    return Kind(
        f"Plates-{figures}",
        names,
        (("figure", names), ("figure_hue", hues), ("ground_hue", hues)),
        views=tuple((f"{where},noise={noise}", (side, side)) for noise in (0.1, 0.2, 0.0, 0.3) for side in _SIDES),
        judged={f"accuracy_{side}px": (f"{where},noise=0.1", (side, side)) for side in _SIDES}
        | {"accuracy_40px_noise_0.3": (f"{where},noise=0.3", (40, 40))},
        version=plates.VERSION,
    )


KINDS = {
    "shapes": Kind(
        "Shapes",
        shapes.CLASS_NAMES,
        _SCENE,
        views=tuple(("shapes", size) for size in _SIZES),
        judged={f"accuracy_{side}px": ("shapes", (side, side)) for side in (32, 64, 16)},
        version=shapes.VERSION,
        widths=(32, 64, 128, 128),
        halvings=2,
    ),
    "grain": Kind(
        "Grain",
        shapes.CLASS_NAMES,
        _SCENE,
        views=tuple(
            (f"shapes:grain={grain}", (side, side)) for grain in (0.3, 0.6, 0.15, 0.45, 1.0) for side in _SIDES
        ),
        judged={
            f"accuracy_{side}px_grain_{grain}": (f"shapes:grain={grain}", (side, side))
            for side in (24, 48)
            for grain in (0.3, 0.6, 1.0)
        },
        version=shapes.VERSION,
    ),
    "plates-digits": _plates("digits"),
    "plates-kinds": _plates("kinds"),
}
SHAPES = KINDS["shapes"]


def kind_of(where: str) -> Kind | None:
    """The kind of the images `where`; None without a shipped classifier of them."""
    source = source_of(where) if embedded_name(where) is not None else None
    if isinstance(source, shapes.Shapes):
        return KINDS["grain" if source.grain else "shapes"]
    return KINDS[f"plates-{source.figures}"] if isinstance(source, plates.Plates) else None


class ImageClassifier(nn.Module):
    """Convolutions on 32 px, global mean and one linear layer; group norm, so that images do not affect each other."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self._halvings = kind.halvings
        widths = (3, *kind.widths)
        # Without storage, so that the default initialisation does not use the global generator.
        with torch.device("meta"):
            self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in pairwise(widths))
            self.norms = nn.ModuleList(nn.GroupNorm(8, width) for width in widths[1:])
            self.head = nn.Linear(kind.dimension, len(kind.class_names))
        self.to_empty(device="cpu")

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator) -> None:
        """Initialise the weights: He initialisation, norms at identity, head at 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            elif isinstance(module, nn.GroupNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def features(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Penultimate features of images in model range, of any size from 16 px (bilinear antialiased to 32)."""
        x = images
        if tuple(x.shape[-2:]) != (SIDE, SIDE):
            x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
        for index, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = F.relu(norm(convolution(x)))
            if index < self._halvings:
                x = F.max_pool2d(x, 2)
        return x.mean((2, 3))

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        logits: Tensor = self.head(self.features(images))
        return logits


def load_classifier(kind: Kind = SHAPES, path: Path | None = None) -> ImageClassifier:
    """The shipped classifier of a kind, or the one in a file, frozen, in fp32 and eval mode."""
    model, path = ImageClassifier(kind), path or kind.file
    load_exactly(model, read_tensors(path), str(path))
    model.requires_grad_(False)
    return model.eval()


def classifier_card(path: Path = SHAPES.file) -> dict[str, str]:
    """The card of a weight file: accuracies on validation images, seed, version of the images."""
    with safe_open(path, framework="pt") as file:
        card: dict[str, str] = json.loads(file.metadata()["card"])
    return card
