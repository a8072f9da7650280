"""How the codebooks are used, and which images carry a prologue code."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from prologue.errors import EvaluationError
from prologue.evaluation.codes import CodedImages
from prologue.evaluation.metrics.intervals import wilson_interval
from prologue.evaluation.runs import Record
from prologue.models.sequence import TokenIds
from prologue.training.codebooks import Usage


def evaluate_codebook(
    tokens: TokenIds, visual_size: int, prologue_size: int = 0, *, split: str = "validation"
) -> Record:
    """Usage of both codebooks on `tokens`; the prologue's figures are absent where there is none.

    By segment: `usage` and `used` codes, `dead` ones (used by no image at any position), `perplexity` over all
    positions, `entropy_bits` at each position and its mean, `used_by_position`, and `counts`: how often each used code
    occurs, the most frequent first. `carried_at_most` bounds the share of images that carry a code which none of
    the `n` does (95 %). All are figures of these images: entropies of few images are too low.
    """
    n = len(tokens)
    if not n:
        raise EvaluationError("there are no images to measure the codebooks on")
    record: Record = {
        "kind": "codebook",
        "n": n,
        "split": split,
        "views": "center",
        "carried_at_most": 1 - 0.05 ** (1 / n),
    }
    for name, ids, size in (("visual", tokens.visual, visual_size), ("prologue", tokens.prologue, prologue_size)):
        if ids.shape[1]:
            record |= {f"{name}_{key}": value for key, value in _figures(ids, size).items()}
    return record | {"notes": []}


def _figures(ids: Int64[Tensor, "n T"], size: int) -> Record:
    usage = Usage(ids.shape[1], size, torch.device("cpu"))
    usage.add(ids)
    used = int((usage.counts.sum(0) > 0).sum())
    bits = [max(0.0, value / math.log(2)) for value in usage.entropies().tolist()]
    counts = usage.counts.sum(0).sort(descending=True).values[:used]
    return {
        "tokens": ids.shape[1],
        "codebook_size": size,
        "usage": used / size,
        "used": used,
        "dead": size - used,
        "perplexity": usage.perplexity(),
        "entropy_bits": bits,
        "entropy_bits_mean": sum(bits) / len(bits),
        "most_bits": math.log2(min(size, len(ids))),
        "used_by_position": (usage.counts > 0).sum(1).tolist(),
        "counts": counts.tolist(),
    }


def check_code(position: int, code: int, positions: int, size: int) -> None:
    """Refuse a position or a code that the prologue does not have."""
    if not 0 <= position < positions:
        raise EvaluationError(f"there is no prologue position {position}: they are 0…{positions - 1}")
    if not 0 <= code < size:
        raise EvaluationError(f"there is no prologue code {code}: they are 0…{size - 1}")


def code_record(tokens: TokenIds, size: int, position: int, code: int) -> Record:
    """How many of the images carry a prologue code at a position, with the share's Wilson interval, and the most
    frequent codes there."""
    carried = int((tokens.prologue[:, position] == code).sum())
    record: Record = {"code_position": position, "code": code, "code_images": carried}
    record["code_frequent"] = [list(pair) for pair in frequent_codes(tokens, size, position, 5)]
    return record | wilson_interval(carried, len(tokens)).fields("code_share")


def frequent_codes(tokens: TokenIds, size: int, position: int, most: int) -> list[tuple[int, int]]:
    """The most frequent codes at a prologue position, and how many images carry each; those of none are left out."""
    counts = torch.bincount(tokens.prologue[:, position], minlength=size)
    order = torch.argsort(counts, descending=True, stable=True)[:most]
    return [(int(code), int(counts[code])) for code in order if counts[code]]


def nearest_images(coded: CodedImages, position: int, code: int, most: int) -> Int64[Tensor, " m"]:
    """Rows of the images that carry a code at a position, the nearest to it first, `most` of them or fewer."""
    rows = (coded.tokens.prologue[:, position] == code).nonzero()[:, 0]
    near: Float[Tensor, " n"] = coded.nearness[rows, position]
    return rows[torch.argsort(near, descending=True, stable=True)[:most]]
