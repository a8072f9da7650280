"""The small classifier of the embedded `shapes`: says whether the asked class is seen, and gives features to distances.

It was trained on real scenes alone, by `python -m prologue.evaluation.classifier --out FILE`, and no loss uses it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from safetensors import safe_open
from torch import Tensor, nn

from prologue.config import DataConfig
from prologue.data.scene import Scene
from prologue.data.shapes import (
    BACKGROUNDS,
    CLASS_NAMES,
    COLOURS,
    TEXTURES,
    VERSION,
    ShapesSet,
    Split,
    render,
    scene,
)
from prologue.evaluation.distort import distort
from prologue.rng import numpy_stream, torch_stream
from prologue.tokenizer import to_model_range
from prologue.weights import load_exactly, read_tensors, write_tensors

SHIPPED = Path(__file__).with_name("shapes_classifier.safetensors")
FEATURE_DIM = 128
_SIDE = 32
_SIZES = ((32, 32), (32, 32), (32, 32), (16, 16), (24, 24), (48, 48), (64, 64), (32, 48), (48, 32))
"""Rows and columns that training scenes are rendered at, in turn, before they are resized."""
FACTORS: tuple[tuple[str, tuple[object, ...]], ...] = (
    ("kind", CLASS_NAMES),
    ("colour", COLOURS),
    ("texture", TEXTURES),
    ("background", BACKGROUNDS),
    ("night", (False, True)),
)
"""What is predicted in training, so that the features see more than the class. Only the class is shipped."""


class ShapesClassifier(nn.Module):
    """Four convolutions on 32 px, global mean, one linear layer; group norm, so that an image is judged by itself."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 128, FEATURE_DIM)
        # Built without storage, so that the default initialisation draws nothing from the global generator.
        with torch.device("meta"):
            self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in pairwise(widths))
            self.norms = nn.ModuleList(nn.GroupNorm(8, width) for width in widths[1:])
            self.head = nn.Linear(FEATURE_DIM, len(CLASS_NAMES))
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

    def features(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b {FEATURE_DIM}"]:
        """Penultimate features of images in model range, of any size from 16 px (bilinear antialiased to 32)."""
        x = images
        if tuple(x.shape[-2:]) != (_SIDE, _SIDE):
            x = F.interpolate(x, (_SIDE, _SIDE), mode="bilinear", antialias=True, align_corners=False)
        for index, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = F.relu(norm(convolution(x)))
            if index < 2:
                x = F.max_pool2d(x, 2)
        return x.mean((2, 3))

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        logits: Tensor = self.head(self.features(images))
        return logits


def load_classifier(path: Path = SHIPPED) -> ShapesClassifier:
    """The shipped classifier, frozen, in fp32 and eval mode."""
    model = ShapesClassifier()
    load_exactly(model, read_tensors(path), str(path))
    model.requires_grad_(False)
    return model.eval()


def classifier_card(path: Path = SHIPPED) -> dict[str, str]:
    """What the weight file says of itself: accuracies on validation scenes, seed, version of the scenes."""
    with safe_open(path, framework="pt") as file:
        card: dict[str, str] = json.loads(file.metadata()["card"])
    return card


def train_classifier(seed: int, scenes: int, epochs: int, batch: int = 128) -> ShapesClassifier:
    """Train on `scenes` real training scenes, drawn at several sizes, cropped, mirrored and mildly distorted."""
    images, targets = _training_images(seed, scenes)
    model = ShapesClassifier()
    generator = torch_stream(seed, "classifier", "init")
    model.reset_parameters(generator)
    heads = torch.zeros(sum(len(values) for _, values in FACTORS[1:]), FEATURE_DIM, requires_grad=True)
    steps = epochs * (scenes // batch)
    optimizer = torch.optim.AdamW([*model.parameters(), heads], lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps, pct_start=0.1)
    noise = torch_stream(seed, "classifier", "distort")
    for rows in _batches(seed, scenes, epochs, batch):
        features = model.features(distort(to_model_range(images[rows]), noise))
        logits = torch.cat([model.head(features), features @ heads.T], dim=1)
        parts = torch.split(logits, [len(values) for _, values in FACTORS], dim=1)
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


def _training_images(seed: int, scenes: int) -> tuple[UInt8[Tensor, "n 3 32 32"], Int64[Tensor, "n factors"]]:
    """Training views at 32 px and their factors' numbers; image `i` is scene `i` of the training split."""
    config = DataConfig(cache_mb=1)
    sets = {size: ShapesSet("train", scenes, size, config) for size in _SIZES}
    images = torch.empty(scenes, 3, _SIDE, _SIDE, dtype=torch.uint8)
    targets = torch.empty(scenes, len(FACTORS), dtype=torch.int64)
    rng = numpy_stream(seed, "classifier", "views")
    for index in range(scenes):
        view = sets[_size_of(index)].train_view(index, rng)
        images[index] = _shrink(view)
        targets[index] = torch.tensor(_numbers(scene("train", index)))
    return images, targets


def _size_of(index: int) -> tuple[int, int]:
    """Size for training scene `index`: one for a whole round of the classes, so that it never goes with the class."""
    return _SIZES[index // len(CLASS_NAMES) % len(_SIZES)]


def _numbers(scene: Scene) -> list[int]:
    return [values.index(getattr(scene, name)) for name, values in FACTORS]


def _shrink(image: UInt8[np.ndarray, "3 h w"]) -> UInt8[Tensor, "3 32 32"]:
    pixels = torch.from_numpy(np.ascontiguousarray(image))[None].float()
    resized = F.interpolate(pixels, (_SIDE, _SIDE), mode="bilinear", antialias=True, align_corners=False)
    return resized.round().clamp(0, 255).to(torch.uint8)[0]


@torch.no_grad()
def accuracy(
    model: ShapesClassifier,
    size: tuple[int, int],
    count: int,
    split: Split = "validation",
    noise: torch.Generator | None = None,
) -> float:
    """Part of `count` scenes of a split, drawn at `size` whose class is recognised, distorted by `noise` if given."""
    right = 0
    for start in range(0, count, 250):
        indices = range(start, min(start + 250, count))
        pixels = np.stack([render(scene(split, index), *size) for index in indices])
        images = to_model_range(torch.from_numpy(pixels))
        if noise is not None:
            images = distort(images, noise)
        labels = torch.tensor([index % len(CLASS_NAMES) for index in indices])
        right += int((model(images).argmax(1) == labels).sum())
    return right / count


def _half(model: ShapesClassifier) -> dict[str, Tensor]:
    """The weights in fp16, the precision that they are shipped in."""
    return {key: value.half() for key, value in model.state_dict().items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the classifier and write it, with its accuracies on validation scenes in the file's metadata."""
    parser = argparse.ArgumentParser(prog="python -m prologue.evaluation.classifier", description=main.__doc__)
    parser.add_argument("--out", type=Path, default=SHIPPED, help="safetensors file to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=64_000, help="real training scenes")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--validation", type=int, default=4000, help="real validation scenes to judge it on")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # sums in another order would give other weights
    model = train_classifier(options.seed, options.scenes, options.epochs)
    load_exactly(model, _half(model), "the trained classifier")
    noise = torch_stream(options.seed, "classifier", "judge")
    card = {
        "seed": str(options.seed),
        "scenes": str(options.scenes),
        "epochs": str(options.epochs),
        "shapes_version": str(VERSION),
        "validation_images": str(options.validation),
        "accuracy_32px": f"{accuracy(model, (32, 32), options.validation):.4f}",
        "accuracy_64px": f"{accuracy(model, (64, 64), options.validation):.4f}",
        "accuracy_16px": f"{accuracy(model, (16, 16), options.validation):.4f}",
        "accuracy_32px_distorted": f"{accuracy(model, (32, 32), options.validation, noise=noise):.4f}",
    }
    text = json.dumps(card)
    # One entry, because the file's format keeps several in no fixed order, and the same weights make the same file.
    write_tensors(options.out, _half(model), {"card": text})
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
