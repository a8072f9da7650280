"""The demo's pictures: reconstructions, samples by class, and images drawn again from one prologue."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from prologue import builtin
from prologue.data.order import center_batch
from prologue.data.pictures import labelled_grid, to_pil
from prologue.data.source import Data
from prologue.evaluation.metrics.intervals import mean_interval
from prologue.evaluation.runs import Record
from prologue.models.tokenizer import to_model_range
from prologue.pipeline import Pipeline
from prologue.sampling.recipe import Recipe
from prologue.studies.demo.plan import RESAMPLED_ROWS

_COARSE = 4
"""Rows and columns of the coarse picture that a layout is compared in."""


def reconstruction_grid(pipeline: Pipeline, data: Data, rounds: int = 2) -> Image.Image:
    """The first validation images of every class above their reconstructions, a column for each class."""
    names = data.class_names
    rows: list[list[Image.Image]] = []
    for number in range(rounds):
        pictures = center_batch(data.validation, range(number * len(names), (number + 1) * len(names))).images
        visual = pipeline.encode(to_model_range(pictures)).visual
        rows += [to_pil(pictures), pipeline.decode(visual)]
    return labelled_grid(rows, names, ["image", "reconstruction"] * rounds)


def sample_grid(pipeline: Pipeline, recipe: Recipe, rows: int, seed: int) -> tuple[Image.Image, list[Image.Image]]:
    """The first samples that `recipe` was measured on, a column for each class; also the images in order."""
    names = pipeline.class_names
    images = _generate(pipeline, recipe, len(names) * rows, seed)
    table = [images[start : start + len(names)] for start in range(0, len(images), len(names))]
    return labelled_grid(table, names), images


def opening_grid(rows: int = 4) -> Image.Image:
    """Samples of the model that comes with the package, a column for each class: what longer training buys."""
    pipeline = Pipeline.from_pretrained(builtin.DEFAULT, "cpu", compile=False)
    return sample_grid(pipeline, pipeline.recipe, rows, seed=0)[0]


def _generate(pipeline: Pipeline, recipe: Recipe, count: int, seed: int) -> list[Image.Image]:
    return pipeline.generate(
        count=count,
        seed=seed,
        guidance=recipe.guidance,
        temperature=recipe.temperature,
        prologue_temperature=recipe.prologue_temperature,
        top_k=recipe.top_k,
        top_p=recipe.top_p,
    ).images


def resample_grid(
    pipeline: Pipeline, data: Data, count: int, seed: int, fresh: Sequence[Image.Image]
) -> tuple[Image.Image, Record]:
    """One image of each class, its reconstruction, and `count` images from its prologue; and how much of it stays.

    `fresh` are samples of the same classes in turn, drawn with their own prologues: what is compared with.
    """
    rounds = len(data.class_names)
    indices = range(2 * rounds, 2 * rounds + RESAMPLED_ROWS)
    batch = center_batch(data.validation, indices)
    tokens = pipeline.encode(to_model_range(batch.images))
    originals, decoded = to_pil(batch.images), pipeline.decode(tokens.visual)
    labels = batch.labels.tolist()
    again = pipeline.resample(tokens, labels, count, seed=seed).images
    rows = [[originals[row], decoded[row], *again[row * count : (row + 1) * count]] for row in range(len(originals))]
    columns = ["image", "reconstructed", *(f"again {number + 1}" for number in range(count))]
    grid = labelled_grid(rows, columns, [data.class_names[label] for label in labels])
    return grid, _kept(decoded, labels, again, fresh, rounds)


def _kept(
    decoded: Sequence[Image.Image],
    labels: Sequence[int],
    again: Sequence[Image.Image],
    fresh: Sequence[Image.Image],
    num_classes: int,
) -> Record:
    """Distance of resamples to their image, against that of other samples of the same class, coarse and in detail."""
    record: Record = {"kind": "resampling", "n": len(again), "images": len(decoded), "pixels": "mean difference in 0…1"}
    each = len(again) // len(decoded)
    others = [[image for number, image in enumerate(fresh) if number % num_classes == label] for label in labels]
    for name, side in (("layout", _COARSE), ("pixels", None)):
        same = [_distance(decoded[number // each], image, side) for number, image in enumerate(again)]
        other = [_distance(decoded[row], image, side) for row, images in enumerate(others) for image in images]
        record |= {f"{name}_same_prologue": float(torch.stack(same).mean())}
        record |= {f"{name}_same_class": float(torch.stack(other).mean())}
        # By image: resamples of one image are no independent draws.
        rows = [torch.stack(values).view(len(decoded), -1).mean(1) for values in (other, same)]
        record |= mean_interval(rows[0] - rows[1]).fields(f"{name}_nearer")
    record["n_same_class"] = sum(map(len, others))
    return record


def _distance(first: Image.Image, second: Image.Image, side: int | None) -> Float[Tensor, ""]:
    a, b = _pixels(first), _pixels(second)
    if side is not None:
        a, b = F.adaptive_avg_pool2d(a, side), F.adaptive_avg_pool2d(b, side)
    return (a - b).abs().mean()


def _pixels(image: Image.Image) -> Float[Tensor, "3 h w"]:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
