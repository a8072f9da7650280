"""Samples for evaluations: images of each class with known seeds, and the recipe that a prior allows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor

from prologue.data.pictures import labelled_grid, to_pil
from prologue.evaluation.runs import ProgressCallback, evaluating, unwatched
from prologue.models.prior import Prior
from prologue.models.tokenizer import Tokenizer, to_uint8
from prologue.sampling.decode import sample_sequences
from prologue.sampling.guidance import Guidance
from prologue.sampling.recipe import Recipe
from prologue.utils.processes import ALONE, Processes
from prologue.utils.rng import check_seeds

_COLUMNS, _ROWS = 10, 4
"""Largest number of columns and rows in a picture of samples."""


class Samples(NamedTuple):
    """A batch of samples on the CPU with their class ids."""

    images: UInt8[Tensor, "b 3 h w"]
    class_ids: Int64[Tensor, " b"]


def uniform_classes(num_classes: int, count: int) -> Int64[Tensor, " count"]:
    """Class ids in turn, so that class counts differ by at most one; 0, the null class, without classes."""
    return torch.arange(count) % max(1, num_classes)


def draw_samples(
    tokenizer: Tokenizer,
    prior: Prior,
    recipe: Recipe,
    class_ids: Int64[Tensor, " n"],
    *,
    prologue: Int64[Tensor, "n P"] | None = None,
    seed: int = 0,
    seeds: Int64[Tensor, " n"] | None = None,
    batch: int = 64,
    watch: ProgressCallback = unwatched,
    what: str = "samples",
    processes: Processes = ALONE,
) -> Iterator[Samples]:
    """One image per class id, batch by batch; image `i` has seed `seed + i`, as in `Pipeline.generate`.

    With `prologue`, only visual tokens are sampled, as in `Pipeline.resample`. `seeds` are the seeds instead of those
    from `seed` on. Each of several processes draws its share of the batches.

    Raises:
        SamplingError: the recipe is impossible, such as guidance on the null class, or a seed is out of range.
    """
    check_seeds(seed, len(class_ids))
    device = prior.token_embedding.weight.device
    numbers = torch.arange(seed, seed + len(class_ids)) if seeds is None else seeds
    for start in watch(processes.share(range(0, len(class_ids), batch)), what):
        rows = slice(start, start + batch)
        given = () if prologue is None else (prior.layout.pack_prologue(prologue[rows].to(device)),)
        with evaluating(tokenizer, prior):
            ids = sample_sequences(prior, class_ids[rows].to(device), recipe, numbers[rows].tolist(), *given)
            images = to_uint8(tokenizer.decode(prior.layout.unpack(ids).visual)).cpu()
        yield Samples(images, class_ids[rows])


def possible_recipe(recipe: Recipe, prior: Prior, class_ids: Int64[Tensor, " n"] | None = None) -> Recipe:
    """A stored recipe, without guidance if the prior has no classes or a class id is the null class."""
    no_class = not prior.num_classes or (class_ids is not None and bool((class_ids == prior.null_class).any()))
    return recipe.replace(guidance=Guidance.none()) if no_class else recipe


def samples_picture(images: UInt8[Tensor, "n 3 h w"], class_names: Sequence[str]) -> Image.Image:
    """The first samples, with a column per class. Samples cycle through the classes."""
    classes = max(1, len(class_names))
    columns = min(_COLUMNS, classes) if class_names else _COLUMNS
    step = classes if class_names else columns
    rows = [images[start : start + columns] for start in range(0, min(len(images), _ROWS * step), step)]
    return labelled_grid([to_pil(row) for row in rows if len(row)], class_names[:columns])
