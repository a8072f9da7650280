"""Pictures in `samples/` that show the current state of a stage."""

from __future__ import annotations

import torch

from prologue.data.order import center_batch
from prologue.data.pictures import labelled_grid, save_png, to_pil
from prologue.data.source import ImageSet
from prologue.models.prior import Prior
from prologue.models.tokenizer import Tokenizer, to_model_range, to_uint8
from prologue.sampling.decode import sample_sequences
from prologue.sampling.recipe import Recipe
from prologue.training.context import Context

RECONSTRUCTIONS = 8
CLASSES = 8
ROWS = 2


@torch.no_grad()
def save_reconstructions(context: Context, tokenizer: Tokenizer, images: ImageSet, step: int) -> None:
    """Save some images above their reconstructions."""
    pictures = center_batch(images, range(min(RECONSTRUCTIONS, len(images)))).images
    tokens = tokenizer.encode(to_model_range(pictures.to(context.device)))
    rows = [to_pil(pictures), to_pil(to_uint8(tokenizer.decode(tokens.visual)).cpu())]
    path = context.run.samples_folder / f"tokenizer-{step:08d}.png"
    save_png(path, labelled_grid(rows, row_labels=["image", "reconstruction"]))


@torch.no_grad()
def save_samples(context: Context, tokenizer: Tokenizer, prior: Prior, step: int) -> None:
    """Save samples of the first classes, one column for each class. A prior without classes samples the null class."""
    classes = list(range(min(CLASSES, prior.num_classes))) or [prior.null_class] * CLASSES
    class_ids = torch.tensor(classes * ROWS, device=context.device)
    sequence = sample_sequences(prior, class_ids, Recipe(), list(range(len(class_ids))))
    pictures = to_pil(to_uint8(tokenizer.decode(prior.layout.unpack(sequence).visual)))
    rows = [pictures[start : start + len(classes)] for start in range(0, len(pictures), len(classes))]
    names = [context.data.class_names[index] for index in classes] if prior.num_classes else []
    save_png(context.run.samples_folder / f"prior-{step:08d}.png", labelled_grid(rows, names))
