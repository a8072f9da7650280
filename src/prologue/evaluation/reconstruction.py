"""How well a tokenizer keeps an image: PSNR, SSIM, distances to the originals, use of the codebook (METHOD §10)."""

from __future__ import annotations

from prologue.data.sampler import center_batch
from prologue.evaluation.pixels import psnr, ssim
from prologue.evaluation.runs import (
    Distances,
    Features,
    Record,
    Split,
    Watch,
    choose_images,
    evaluating,
    mean_interval,
    per_image,
    unwatched,
)
from prologue.tokenizer import Tokenizer, to_model_range, to_uint8
from prologue.training.codebooks import Usage, collapse_sentences


def evaluate_reconstruction(
    tokenizer: Tokenizer,
    split: Split,
    features: Features,
    *,
    count: int | None = None,
    batch: int = 64,
    seed: int = 0,
    revives: bool = False,
    watch: Watch = unwatched,
) -> Record:
    """Center crops of `split` (all, or `count` of them at random) against their reconstructions.

    PSNR in dB and SSIM per image with 95 % intervals, the distances of `Distances.record`, part of the visual codebook
    in use and its perplexity. `revives` says that the training re-seeded dead codes, which the remedy of a collapse
    depends on. Raises `EvaluationError` where there are no images, or images too small for SSIM.
    """
    device = next(tokenizer.parameters()).device
    indices = choose_images(len(split.images), count, seed, "reconstruction")
    distances, usage = Distances(features), Usage(1, tokenizer.config.codebook_size, device)
    decibels, similarities = [], []
    with evaluating(tokenizer):
        for start in watch(range(0, len(indices), batch), "reconstructions"):
            originals = center_batch(split.images, indices[start : start + batch]).images
            visual = tokenizer.encode(to_model_range(originals.to(device))).visual
            reconstructions = to_uint8(tokenizer.decode(visual)).cpu()
            usage.add(visual)
            decibels.append(psnr(reconstructions, originals))
            similarities.append(ssim(reconstructions, originals))
            distances.add_measured(reconstructions)
            distances.add_reference(originals)
    record: Record = {"kind": "reconstruction", "n": len(indices), "split": split.name, "views": "center"}
    record |= mean_interval(per_image(decibels)).fields("psnr")
    record |= mean_interval(per_image(similarities)).fields("ssim")
    record |= distances.record(seed)
    record |= {"visual_usage": usage.used, "visual_perplexity": usage.perplexity()}
    record |= {"visual_codebook_size": tokenizer.config.codebook_size, "seed": seed}
    # Few images cannot use a large codebook widely, which must not be called a collapse.
    reachable = min(1.0, len(indices) * tokenizer.config.visual_tokens / tokenizer.config.codebook_size)
    collapse = collapse_sentences(usage.used / reachable, None, None, revives, True)
    return record | {"collapsed": bool(collapse), "notes": [*split.notes, *collapse]}
