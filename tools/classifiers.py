"""Train the classifiers of embedded images that the package ships: `python tools/classifiers.py --kind KIND`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from prologue.config import DataConfig
from prologue.data.source import open_data
from prologue.data.views import RenderedSet
from prologue.evaluation.classifier import KINDS, SHAPES, SIDE, ImageClassifier, Kind, View
from prologue.models.tokenizer import to_model_range
from prologue.models.weights import load_exactly, write_tensors
from prologue.utils.rng import numpy_stream, torch_stream

_REACH = 3
"""Pixels of the blur's kernel on each side."""


def distort(images: Float[Tensor, "b 3 h w"], generator: torch.Generator) -> Float[Tensor, "b 3 h w"]:
    """Mild distortions, so that generated images with a slight blur or tint are recognised: small shifts and zooms,
    blur of half of the images, tint and noise. Input and output are in model range. Draws are per image, on the CPU.
    """
    draws = torch.rand(images.shape[0], 12, generator=generator)
    moved = _move(images, 2 * draws[:, :4] - 1)
    # Deviations 0 to 1.2 px at 32 px, 0 for half of the images.
    blurred = _blur(moved, (2.4 * draws[:, 4] - 1.2).clamp_min(0) * images.shape[-1] / 32)
    gain, shift = 0.8 + 0.4 * draws[:, 5:6], 0.16 * draws[:, 6:9] - 0.08
    tinted = blurred * gain[:, :, None, None] + shift[:, :, None, None]
    deviation = 0.1 * draws[:, 9] * draws[:, 10]
    noise = torch.randn(images.shape, generator=generator) * deviation[:, None, None, None]
    return (tinted + noise).clamp(-1, 1)


def _move(images: Float[Tensor, "b 3 h w"], draws: Float[Tensor, "b 4"]) -> Float[Tensor, "b 3 h w"]:
    """Shift by up to a twelfth of each side, and zoom each axis by up to an eighth; the border is reflected."""
    theta = images.new_zeros(images.shape[0], 2, 3)
    theta[:, 0, 0] = 1 + draws[:, 0] / 8
    theta[:, 1, 1] = 1 + draws[:, 0] / 8 + draws[:, 1] / 16
    theta[:, :, 2] = draws[:, 2:4] / 6
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _blur(images: Float[Tensor, "b 3 h w"], deviation: Float[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
    """Gaussian blur, each image with its own deviation in pixels; 0 changes nothing."""
    offsets = torch.arange(-_REACH, _REACH + 1, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (offsets / deviation.clamp_min(1e-3)[:, None]).square())
    kernel = kernel / kernel.sum(1, keepdim=True)
    batch, channels, height, width = images.shape
    weight = kernel.repeat_interleave(channels, 0)
    stacked = images.reshape(1, batch * channels, height, width)
    for axis in (2, 3):
        pad = [0, 0, _REACH, _REACH] if axis == 2 else [_REACH, _REACH, 0, 0]
        shape = (-1, 1, 2 * _REACH + 1, 1) if axis == 2 else (-1, 1, 1, 2 * _REACH + 1)
        stacked = F.conv2d(F.pad(stacked, pad, mode="reflect"), weight.view(shape), groups=batch * channels)
    return stacked.reshape(batch, channels, height, width)


def train_classifier(kind: Kind, seed: int, scenes: int, epochs: int, batch: int = 128) -> ImageClassifier:
    """Train on `scenes` real training images of several sizes, cropped, mirrored and mildly distorted."""
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
    images = torch.empty(scenes, 3, SIDE, SIDE, dtype=torch.uint8)
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
    """The view of training image `index`: the same for a round of all classes, so independent of the class."""
    return kind.views[index // len(kind.class_names) % len(kind.views)]


def _shrink(image: UInt8[np.ndarray, "3 h w"]) -> UInt8[Tensor, "3 32 32"]:
    pixels = torch.from_numpy(np.ascontiguousarray(image))[None].float()
    resized = F.interpolate(pixels, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
    return resized.round().clamp(0, 255).to(torch.uint8)[0]


@torch.no_grad()
def accuracy(
    model: ImageClassifier,
    view: View,
    count: int,
    split: Literal["train", "validation"] = "validation",
    noise: torch.Generator | None = None,
) -> float:
    """Part of `count` images of a split whose class is recognised, distorted with the generator `noise` if given."""
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
    """The weights in fp16, as they are shipped."""
    return {key: value.half() for key, value in model.state_dict().items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Train a classifier and write its weights, with its accuracies on validation images as metadata."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--kind", choices=list(KINDS), default="shapes", help="kind of embedded images")
    parser.add_argument("--out", type=Path, help="safetensors file to write; default: the one in the package")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=64_000, help="real training images")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--validation", type=int, default=4000, help="real validation images of the accuracies")
    options = parser.parse_args(arguments)
    kind = KINDS[options.kind]
    torch.set_num_threads(1)  # sums in another order give other weights
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
    # One entry, because the order of several is not fixed, and the same weights must give the same file.
    write_tensors(options.out or kind.file, _half(model), {"card": text})
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
