"""The small classifiers of embedded images: say whether the asked class is seen, and give features to distances.

Each was trained on real images alone, by `python -m prologue.evaluation.classifier --kind KIND --out FILE`, and no loss
uses it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from safetensors import safe_open
from torch import Tensor, nn

from prologue.config import DataConfig
from prologue.data.embedded import plates, shapes
from prologue.data.source import embedded_name, open_data, source_of
from prologue.data.views import RenderedSet
from prologue.evaluation.distort import distort
from prologue.models.tokenizer import to_model_range
from prologue.models.weights import load_exactly, read_tensors, write_tensors
from prologue.utils.rng import numpy_stream, torch_stream

_SIDE = 32
View = tuple[str, tuple[int, int]]
"""Embedded images, as `--data` names them, and rows and columns."""


@dataclass(frozen=True)
class Kind:
    """One kind of embedded images and the classifier that comes with it."""

    name: str
    """What distances in its features are called after."""
    class_names: tuple[str, ...]
    factors: tuple[tuple[str, tuple[object, ...]], ...]
    """What is predicted in training, the class first, so that the features see more. Only the class is shipped."""
    views: tuple[View, ...]
    """What training images are drawn as, in turn, before they are resized."""
    judged: dict[str, View]
    """What the shipped weights are judged on, by the name of the accuracy in their card."""
    version: int
    """Of the images."""
    widths: tuple[int, ...] = (24, 40, 72, 72, 80)
    """Channels of the convolutions; the last are the features."""
    halvings: int = 3
    """After so many convolutions the sides are halved."""

    @property
    def file(self) -> Path:
        """The shipped weights."""
        return Path(__file__).with_name(f"{self.name.lower().replace('-', '_')}_classifier.safetensors")

    @property
    def dimension(self) -> int:
        """Features of an image."""
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
    """The kind of the images that `where` names, if a classifier of them comes with the package."""
    source = source_of(where) if embedded_name(where) is not None else None
    if isinstance(source, shapes.Shapes):
        return KINDS["grain" if source.grain else "shapes"]
    return KINDS[f"plates-{source.figures}"] if isinstance(source, plates.Plates) else None


class ImageClassifier(nn.Module):
    """A few convolutions on 32 px, global mean, one linear layer; group norm, so that an image is judged by itself."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self._halvings = kind.halvings
        widths = (3, *kind.widths)
        # Built without storage, so that the default initialisation draws nothing from the global generator.
        with torch.device("meta"):
            self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in pairwise(widths))
            self.norms = nn.ModuleList(nn.GroupNorm(8, width) for width in widths[1:])
            self.head = nn.Linear(kind.dimension, len(kind.class_names))
        self.to_empty(device="cpu")

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw all weights anew: He initialisation, norms at identity, head at 0."""
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
        if tuple(x.shape[-2:]) != (_SIDE, _SIDE):
            x = F.interpolate(x, (_SIDE, _SIDE), mode="bilinear", antialias=True, align_corners=False)
        for index, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = F.relu(norm(convolution(x)))
            if index < self._halvings:
                x = F.max_pool2d(x, 2)
        return x.mean((2, 3))

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        logits: Tensor = self.head(self.features(images))
        return logits


def load_classifier(kind: Kind = SHAPES, path: Path | None = None) -> ImageClassifier:
    """The shipped classifier of a kind, or that in a file, frozen, in fp32 and eval mode."""
    model, path = ImageClassifier(kind), path or kind.file
    load_exactly(model, read_tensors(path), str(path))
    model.requires_grad_(False)
    return model.eval()


def classifier_card(path: Path = SHAPES.file) -> dict[str, str]:
    """What the weight file says of itself: accuracies on validation images, seed, version of the images."""
    with safe_open(path, framework="pt") as file:
        card: dict[str, str] = json.loads(file.metadata()["card"])
    return card


def train_classifier(kind: Kind, seed: int, scenes: int, epochs: int, batch: int = 128) -> ImageClassifier:
    """Train on `scenes` real training images, drawn at several sizes, cropped, mirrored and mildly distorted."""
    images, targets = _training_images(kind, seed, scenes)
    model = ImageClassifier(kind)
    generator = torch_stream(seed, "classifier", "init")
    model.reset_parameters(generator)
    heads = torch.zeros(sum(len(values) for _, values in kind.factors[1:]), kind.dimension, requires_grad=True)
    steps = epochs * (scenes // batch)
    optimizer = torch.optim.AdamW([*model.parameters(), heads], lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps, pct_start=0.1)
    noise = torch_stream(seed, "classifier", "distort")
    for rows in _batches(seed, scenes, epochs, batch):
        features = model.features(distort(to_model_range(images[rows]), noise))
        logits = torch.cat([model.head(features), features @ heads.T], dim=1)
        parts = torch.split(logits, [len(values) for _, values in kind.factors], dim=1)
        losses = [F.cross_entropy(part, targets[rows, i]) for i, part in enumerate(parts)]
        loss = losses[0] + 0.25 * torch.stack(losses[1:]).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return model.eval()


def _batches(seed: int, scenes: int, epochs: int, batch: int) -> Iterator[Tensor]:
    for epoch in range(epochs):
        order = numpy_stream(seed, "classifier", "order", epoch).permutation(scenes)
        for start in range(0, scenes - batch + 1, batch):
            yield torch.from_numpy(order[start : start + batch])


def _training_images(
    kind: Kind, seed: int, scenes: int
) -> tuple[UInt8[Tensor, "n 3 32 32"], Int64[Tensor, "n factors"]]:
    """Training views at 32 px and their factors' numbers; image `i` is image `i` of the training split."""
    sets = {view: _images(view, "train", scenes) for view in kind.views}
    images = torch.empty(scenes, 3, _SIDE, _SIDE, dtype=torch.uint8)
    targets = torch.empty(scenes, len(kind.factors), dtype=torch.int64)
    rng = numpy_stream(seed, "classifier", "views")
    for index in range(scenes):
        drawn = sets[_view_of(kind, index)]
        images[index] = _shrink(drawn.train_view(index, rng))
        known = drawn.factors(index)
        targets[index] = torch.tensor([values.index(known[name]) for name, values in kind.factors])
    return images, targets


def _images(view: View, split: Literal["train", "validation"], count: int) -> RenderedSet:
    where, size = view
    data = open_data(where, DataConfig(cache_mb=1, shapes_images=count, shapes_validation=count), size)
    images = data.train if split == "train" else data.validation
    assert isinstance(images, RenderedSet)
    return images


def _view_of(kind: Kind, index: int) -> View:
    """Of training image `index`: one for a whole round of the classes, so that it never goes with the class."""
    return kind.views[index // len(kind.class_names) % len(kind.views)]


def _shrink(image: UInt8[np.ndarray, "3 h w"]) -> UInt8[Tensor, "3 32 32"]:
    pixels = torch.from_numpy(np.ascontiguousarray(image))[None].float()
    resized = F.interpolate(pixels, (_SIDE, _SIDE), mode="bilinear", antialias=True, align_corners=False)
    return resized.round().clamp(0, 255).to(torch.uint8)[0]


@torch.no_grad()
def accuracy(
    model: ImageClassifier,
    view: View,
    count: int,
    split: Literal["train", "validation"] = "validation",
    noise: torch.Generator | None = None,
) -> float:
    """Part of `count` images of a split, as `view` says, whose class is recognised, distorted by `noise` if given."""
    right = 0
    drawn = _images(view, split, count)
    for start in range(0, count, 250):
        rows = np.arange(start, min(start + 250, count))
        images = to_model_range(
            torch.from_numpy(np.stack([drawn.render(index, *drawn.size) for index in rows.tolist()]))
        )
        if noise is not None:
            images = distort(images, noise)
        right += int((model(images).argmax(1) == torch.from_numpy(drawn.labels[rows])).sum())
    return right / count


def _half(model: ImageClassifier) -> dict[str, Tensor]:
    """The weights in fp16, the precision that they are shipped in."""
    return {key: value.half() for key, value in model.state_dict().items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Train a classifier and write it, with its accuracies on validation images in the file's metadata."""
    parser = argparse.ArgumentParser(prog="python -m prologue.evaluation.classifier", description=main.__doc__)
    parser.add_argument("--kind", choices=list(KINDS), default="shapes", help="of embedded images")
    parser.add_argument("--out", type=Path, help="safetensors file to write; left out, the one in the package")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=64_000, help="real training images")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--validation", type=int, default=4000, help="real validation images to judge it on")
    options = parser.parse_args(arguments)
    kind = KINDS[options.kind]
    torch.set_num_threads(1)  # sums in another order would give other weights
    model = train_classifier(kind, options.seed, options.scenes, options.epochs)
    load_exactly(model, _half(model), "the trained classifier")
    noise = torch_stream(options.seed, "classifier", "judge")
    card = {
        "seed": str(options.seed),
        "scenes": str(options.scenes),
        "epochs": str(options.epochs),
        "shapes_version" if kind is SHAPES else "version": str(kind.version),
        "validation_images": str(options.validation),
    }
    for name, view in kind.judged.items():
        card[name] = f"{accuracy(model, view, options.validation):.4f}"
    first, view = next(iter(kind.judged.items()))
    card[f"{first}_distorted"] = f"{accuracy(model, view, options.validation, noise=noise):.4f}"
    text = json.dumps(card)
    # One entry, because the file's format keeps several in no fixed order, and the same weights make the same file.
    write_tensors(options.out or kind.file, _half(model), {"card": text})
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
