"""Codes of images: the vectors that ids stand for, and how near each image lies to the code it was given."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int, Int64, UInt8
from torch import Tensor

from prologue.config import VARIANTS
from prologue.data.source import ImageSet
from prologue.errors import EvaluationError
from prologue.evaluation.runs import ProgressCallback, center_crops, evaluating, unwatched
from prologue.models.quantizers import Quantizer
from prologue.models.sequence import TokenIds
from prologue.models.tokenizer import Tokenizer, to_model_range

Vectors = Float32[Tensor, "n T d"]


class CodedImages(NamedTuple):
    """Tokens of images on the CPU and, for the prologue, the cosine of the encoder's output with its code."""

    tokens: TokenIds
    nearness: Float32[Tensor, "n P"]


def require_prologue(tokenizer: Tokenizer) -> Quantizer:
    """The prologue's quantizer; an `EvaluationError` for a tokenizer without a prologue."""
    if tokenizer.prologue_quantizer is None:
        raise EvaluationError(
            f"this run's tokenizer ({tokenizer.config.variant}) has no prologue: "
            f"measure a run of the variant {' or '.join(name for name, each in VARIANTS.items() if each.has_prologue)}"
        )
    return tokenizer.prologue_quantizer


def encode_images(
    tokenizer: Tokenizer,
    images: ImageSet,
    indices: Int64[np.ndarray, " n"],
    *,
    batch: int = 64,
    watch: ProgressCallback = unwatched,
) -> TokenIds:
    """Tokens of the center crops of the images at `indices`, on the CPU."""
    device = next(tokenizer.parameters()).device
    crops = center_crops(images, indices, batch=batch, watch=watch, what="encoding")
    with evaluating(tokenizer):
        return TokenIds.cat([tokenizer.encode(to_model_range(pictures.to(device))).to("cpu") for pictures in crops])


def encode_with_nearness(
    tokenizer: Tokenizer,
    images: ImageSet,
    indices: Int64[np.ndarray, " n"],
    *,
    batch: int = 64,
    watch: ProgressCallback = unwatched,
) -> CodedImages:
    """Tokens of the center crops of the images at `indices`, as `Tokenizer.encode` gives them, and their nearness."""
    device = next(tokenizer.parameters()).device
    tokens, nearness = [], []
    with evaluating(tokenizer):
        for pictures in center_crops(images, indices, batch=batch, watch=watch, what="encoding"):
            part, near = _encode(tokenizer, pictures.to(device))
            tokens.append(part.to("cpu"))
            nearness.append(near.cpu())
    return CodedImages(TokenIds.cat(tokens), torch.cat(nearness))


def _encode(tokenizer: Tokenizer, pictures: UInt8[Tensor, "b 3 H W"]) -> tuple[TokenIds, Tensor]:
    visual, prologue = tokenizer.features(to_model_range(pictures))
    ids = tokenizer.visual_quantizer.encode(visual)
    quantizer = tokenizer.prologue_quantizer
    if quantizer is None or prologue is None:
        return TokenIds(ids[:, :0], ids), ids[:, :0].float()
    own = quantizer(prologue)
    return TokenIds(own.ids, ids), (own.z * quantizer.codes(own.ids)).sum(-1)


@torch.no_grad()
def prologue_vectors(tokenizer: Tokenizer, ids: Int[Tensor, "n P"]) -> Vectors:
    """The code vectors of prologue ids, on the CPU."""
    quantizer = require_prologue(tokenizer)
    return quantizer.codes(ids.to(next(quantizer.parameters()).device)).float().cpu()


@torch.no_grad()
def visual_vectors(tokenizer: Tokenizer, ids: Int[Tensor, "n N"]) -> Vectors:
    """The code vectors of visual ids, on the CPU."""
    quantizer = tokenizer.visual_quantizer
    return quantizer.codes(ids.to(next(quantizer.parameters()).device)).float().cpu()
