"""Pictures in `samples/` that show the current state of a stage."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from prologue.data.order import center_batch
from prologue.data.pictures import labelled_grid, save_png, stacked, titled, to_pil
from prologue.data.source import ImageSet
from prologue.models.prior import Prior
from prologue.models.tokenizer import Tokenizer, to_model_range, to_uint8
from prologue.sampling.decode import sample_sequences
from prologue.sampling.recipe import Recipe
from prologue.training.context import Context

RECONSTRUCTIONS = 8
CLASSES = 8
ROWS = 2


OVERVIEW = "overview.png"
"""The picture of a finished run in its folder."""


def save_reconstructions(context: Context, tokenizer: Tokenizer, images: ImageSet, step: int) -> None:
    """Save some images above their reconstructions."""
    save_png(context.run.samples_folder / f"tokenizer-{step:08d}.png", _reconstructions(context, tokenizer, images))


def save_samples(context: Context, tokenizer: Tokenizer, prior: Prior, step: int) -> None:
    """Save samples of the first classes, one column for each class. A prior without classes samples the null class."""
    save_png(context.run.samples_folder / f"prior-{step:08d}.png", _samples(context, tokenizer, prior))


def save_overview(context: Context) -> None:
    """Save reconstructions and unguided samples of a finished run in one picture."""
    tokenizer = Tokenizer.from_pretrained(context.run.tokenizer_folder).to(context.device).eval()
    prior = Prior.from_pretrained(context.run.prior_folder).to(context.device).eval()
    images = context.data.validation if len(context.data.validation) else context.data.train
    upper = titled(_reconstructions(context, tokenizer, images), "reconstructions")
    lower = titled(_samples(context, tokenizer, prior), "samples without guidance, one class in each column")
    save_png(context.run.path / OVERVIEW, stacked([upper, lower]))


@torch.no_grad()
def _reconstructions(context: Context, tokenizer: Tokenizer, images: ImageSet) -> Image.Image:
    # Files are in the order of their classes, so the shown images are spread over all of them.
    shown = np.linspace(0, len(images) - 1, min(RECONSTRUCTIONS, len(images))).astype(int).tolist()
    pictures = center_batch(images, shown).images
    tokens = tokenizer.encode(to_model_range(pictures.to(context.device)))
    rows = [to_pil(pictures), to_pil(to_uint8(tokenizer.decode(tokens.visual)).cpu())]
    return labelled_grid(rows, row_labels=["image", "reconstruction"])


@torch.no_grad()
def _samples(context: Context, tokenizer: Tokenizer, prior: Prior) -> Image.Image:
    classes = list(range(min(CLASSES, prior.num_classes))) or [prior.null_class] * CLASSES
    class_ids = torch.tensor(classes * ROWS, device=context.device)
    sequence = sample_sequences(prior, class_ids, Recipe(), list(range(len(class_ids))))
    pictures = to_pil(to_uint8(tokenizer.decode(prior.layout.unpack(sequence).visual)))
    rows = [pictures[start : start + len(classes)] for start in range(0, len(pictures), len(classes))]
    names = [context.data.class_names[index] for index in classes] if prior.num_classes else []
    return labelled_grid(rows, names)
