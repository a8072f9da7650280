"""How well a tokenizer keeps an image: PSNR, SSIM, distances to the originals, use of the codebook (METHOD §10)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from prologue.data.order import center_batch
from prologue.data.source import ImageSet
from prologue.evaluation.distances import Distances
from prologue.evaluation.feature_networks import Features
from prologue.evaluation.generation import recognised_classes
from prologue.evaluation.metrics.intervals import mean_interval
from prologue.evaluation.metrics.pixels import psnr, ssim
from prologue.evaluation.recognition import Classifier
from prologue.evaluation.reference import Reference
from prologue.evaluation.runs import ProgressCallback, Record, Split, choose_images, evaluating, unwatched
from prologue.models.perceptual import PerceptualLoss
from prologue.models.tokenizer import Tokenizer, to_model_range, to_uint8
from prologue.training.codebooks import Usage, collapse_sentences
from prologue.utils.processes import ALONE, Processes


def evaluate_reconstruction(
    tokenizer: Tokenizer,
    split: Split,
    features: Features,
    *,
    count: int | None = None,
    batch: int = 64,
    seed: int = 0,
    revives: bool = False,
    watch: ProgressCallback = unwatched,
    statistics: Reference | None = None,
    lpips: PerceptualLoss | None = None,
    processes: Processes = ALONE,
) -> Record:
    """Center crops of `split` (all, or `count` of them at random) against their reconstructions.

    PSNR in dB, SSIM and, with that network, LPIPS per image with 95 % intervals; the distances of `Distances.record`,
    to the same crops or to the file `statistics`; part of the visual codebook in use and its perplexity. `revives` says
    that the training re-seeded dead codes, which the remedy of a collapse depends on. Raises `EvaluationError` where
    there are no images, or images too small for SSIM.
    """
    device = next(tokenizer.parameters()).device
    indices = choose_images(len(split.images), count, seed, "reconstruction")
    distances = Distances(features, statistics, processes=processes)
    usage = Usage(1, tokenizer.config.codebook_size, device)
    values: list[Tensor] = []
    with evaluating(tokenizer):
        for start in watch(processes.share(range(0, len(indices), batch)), "reconstructions"):
            originals = center_batch(split.images, indices[start : start + batch]).images
            visual = tokenizer.encode(to_model_range(originals.to(device))).visual
            reconstructions = to_uint8(tokenizer.decode(visual)).cpu()
            usage.add(visual)
            columns = [psnr(reconstructions, originals), ssim(reconstructions, originals)]
            if lpips is not None:
                columns.append(_lpips(lpips, reconstructions.to(device), originals.to(device)))
            values.append(torch.stack([column.detach().cpu().double() for column in columns], dim=1))
            distances.add_measured(reconstructions)
            if statistics is None:
                distances.add_reference(originals)
    distances.add_reference_file(batch, watch)
    table = processes.gather(torch.cat(values) if values else torch.empty(0, 0, dtype=torch.float64))
    usage.counts = processes.gather(usage.counts.cpu()).sum(0, keepdim=True)
    record: Record = {"kind": "reconstruction", "n": len(indices), "split": split.name, "views": "center"}
    record |= mean_interval(table[:, 0]).fields("psnr") | mean_interval(table[:, 1]).fields("ssim")
    if lpips is not None:
        record |= {"lpips_name": "LPIPS-VGG16"} | mean_interval(table[:, 2]).fields("lpips")
    if statistics is not None:
        record |= statistics.facts() | {"n_reference": statistics.count}
    record |= distances.record(seed)
    record |= {"visual_usage": usage.used, "visual_perplexity": usage.perplexity()}
    record |= {"visual_codebook_size": tokenizer.config.codebook_size, "seed": seed}
    # Few images cannot use a large codebook widely, which must not be called a collapse.
    reachable = min(1.0, len(indices) * tokenizer.config.visual_tokens / tokenizer.config.codebook_size)
    collapse = collapse_sentences(usage.used / reachable, None, None, revives, True)
    return record | {"collapsed": bool(collapse), "notes": [*split.notes, *distances.notes, *collapse]}


def _lpips(network: PerceptualLoss, reconstructions: Tensor, originals: Tensor) -> Tensor:
    """One value for each image; the network itself averages over a batch."""
    pairs = zip(to_model_range(reconstructions)[:, None], to_model_range(originals)[:, None], strict=True)
    return torch.stack([network(*pair) for pair in pairs])


def recognise_reconstructions(
    tokenizer: Tokenizer,
    images: ImageSet,
    indices: Int64[np.ndarray, " n"],
    classifier: Classifier,
    class_names: Sequence[str] = (),
    *,
    batch: int = 64,
) -> Record:
    """How often the classifier recognises the class of the reconstructions of held-out images.

    `originals_rate` is the same rate for the images themselves.
    """
    device = next(tokenizer.parameters()).device
    seen: list[Tensor] = []
    seen_originals: list[Tensor] = []
    with evaluating(tokenizer):
        for start in range(0, len(indices), batch):
            originals = center_batch(images, indices[start : start + batch]).images
            visual = tokenizer.encode(to_model_range(originals.to(device))).visual
            seen.append(classifier.classify(to_uint8(tokenizer.decode(visual)).cpu()))
            seen_originals.append(classifier.classify(originals))
    labels = torch.from_numpy(images.labels[indices].astype(np.int64))
    record = recognised_classes(labels, torch.cat(seen), class_names)
    originals_rate = recognised_classes(labels, torch.cat(seen_originals))["rate"]
    name = "recognition of reconstructions"
    return {"kind": name, "split": "validation", **record, "originals_rate": originals_rate}
