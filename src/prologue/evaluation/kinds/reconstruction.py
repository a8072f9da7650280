"""`prologue evaluate reconstruction`: PSNR, SSIM, LPIPS and distances of reconstructions (METHOD §10)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from tyro.conf import arg

from prologue.data.order import center_batch
from prologue.data.pictures import labelled_grid, to_pil
from prologue.data.source import ImageSet
from prologue.errors import ConfigError
from prologue.evaluation.distances import Distances
from prologue.evaluation.feature_networks import Features
from prologue.evaluation.kinds._distances import (
    DistanceOptions,
    distance_rows,
    distance_sentences,
    reference_facts,
    reference_notes,
)
from prologue.evaluation.kinds.base import (
    HeldOutOptions,
    Kind,
    Measurement,
    Prepared,
    Row,
    StatedBy,
    Subject,
    images_sentence,
    row,
    training_of,
    with_notes,
)
from prologue.evaluation.metrics.intervals import mean_interval
from prologue.evaluation.metrics.pixels import psnr, ssim
from prologue.evaluation.nearest import decoded
from prologue.evaluation.recognition import Classifier, recognised_classes
from prologue.evaluation.reference import Reference
from prologue.evaluation.runs import (
    ProgressCallback,
    Record,
    RunInfo,
    Split,
    center_crops,
    choose_images,
    evaluating,
    unwatched,
)
from prologue.models.perceptual import PerceptualLoss, perceptual_loss
from prologue.models.precision import pick_dtype
from prologue.models.published import place
from prologue.models.tokenizer import Tokenizer, to_model_range, to_uint8
from prologue.models.weights import file_hash
from prologue.training.codebooks import Usage, collapse_sentences
from prologue.utils.processes import ALONE, Processes
from prologue.utils.progress import progress

_LPIPS_SIDE = 16
_SHOWN = 8
"""Images in the picture."""
"""Pixels of the shortest side that LPIPS can compare."""


@dataclass(frozen=True, kw_only=True)
class ReconstructionOptions(DistanceOptions, HeldOutOptions):
    lpips: Annotated[Literal["auto", "off"] | Path, arg(metavar="auto|off|FILE"), StatedBy("lpips_hash")] = "auto"
    """LPIPS weights (VGG-16) of the training's format. auto takes the file of `prologue weights lpips`, if it exists
    and the images are large enough; without weights LPIPS is not measured."""

    def lpips_file(self, image_size: tuple[int, int]) -> Path | None:
        """The weights to use, if any."""
        small = min(image_size) < _LPIPS_SIDE
        if isinstance(self.lpips, Path):
            if small:
                raise ConfigError(f"LPIPS compares images of at least {_LPIPS_SIDE} px: omit --lpips")
            return self.lpips
        made = place("lpips")
        return made if self.lpips == "auto" and not small and made.is_file() else None


class Reconstruction(Kind[ReconstructionOptions]):
    """Center crops of held-out images against their reconstructions."""

    summary = "PSNR, SSIM, distances to the originals, use of the codebook"
    options = ReconstructionOptions

    def prepare(self, options: ReconstructionOptions) -> Prepared:
        info = RunInfo.load(options.run, options.checkpoint)
        processes = Processes.join(options.device)
        device = processes.device
        features = options.open_features(info, device, info.manifest.trained_on)
        tokenizer = info.source.tokenizer().to(device, pick_dtype(options.dtype, device))
        size = tokenizer.config.image_size
        subject = Subject(options, info, device, tokenizer)
        split = "train" if subject.split.name == "train" else "validation"
        statistics = options.open_reference(features, size, split)
        notes = (*subject.images.notes, *reference_notes(statistics, subject.images.data.fingerprint))
        file = options.lpips_file(size)
        lpips = None if file is None else perceptual_loss("lpips", file)

        def measure() -> Measurement:
            record = evaluate_reconstruction(
                tokenizer,
                subject.split,
                features,
                count=options.count,
                batch=options.batch,
                seed=options.seed,
                revives=training_of(info).tokenizer_training.dead_code_reset_every > 0,
                watch=progress,
                statistics=statistics,
                lpips=None if lpips is None else lpips.to(device),
                processes=processes,
            )
            indices = subject.choose(options.count, "reconstruction")[:_SHOWN]
            images = center_batch(subject.split.images, indices).images
            rows = [to_pil(images), to_pil(decoded(tokenizer, images))]
            return Measurement(with_notes(record, notes), {"images": labelled_grid(rows, [], ["image", "decoded"])})

        origin = subject.facts() | features.facts() | reference_facts(statistics)
        return Prepared(options, origin | {"lpips_hash": None if file is None else file_hash(file)}, measure)

    def rows(self, record: Record) -> Iterator[Row]:
        yield row("PSNR, dB", record, "psnr", ".2f")
        yield row("SSIM", record, "ssim", ".4f")
        if record.get("lpips") is not None:
            yield row(record["lpips_name"], record, "lpips", ".4f")
        yield from distance_rows(record)
        size = record["visual_codebook_size"]
        yield "visual codes in use", f"{record['visual_usage']:.1%} of {size}", ""
        yield "perplexity of the visual codes", f"{record['visual_perplexity']:.1f}", ""

    def sentences(self, record: Record) -> Iterator[str]:
        yield images_sentence(record)
        if record.get("reference") is not None:
            number = "" if record["n_reference"] is None else f" (N = {record['n_reference']} images)"
            yield f"Distances are measured against {record['reference']}{number}."
        yield from distance_sentences(record)


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

    PSNR in dB, SSIM and, with its network, LPIPS per image with 95 % intervals; the distances of `Distances.record` to
    the same crops, or to the file `statistics`; the used part of the visual codebook and its perplexity. `revives` says
    whether the training resets dead codes, on which the advice about a collapse depends. Without images, and for images
    too small for SSIM, an `EvaluationError`.
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
    # A few images use a small part of a large codebook, which is no collapse.
    reachable = min(1.0, len(indices) * tokenizer.config.visual_tokens / tokenizer.config.codebook_size)
    collapse = collapse_sentences(usage.used / reachable, None, None, revives, True)
    return record | {"collapsed": bool(collapse), "notes": [*split.notes, *distances.notes, *collapse]}


def _lpips(network: PerceptualLoss, reconstructions: Tensor, originals: Tensor) -> Tensor:
    """One value per image; the network itself averages over a batch."""
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
    seen: list[Tensor] = []
    seen_originals: list[Tensor] = []
    for originals in center_crops(images, indices, batch=batch):
        seen.append(classifier.classify(decoded(tokenizer, originals)))
        seen_originals.append(classifier.classify(originals))
    labels = torch.from_numpy(images.labels[indices].astype(np.int64))
    record = recognised_classes(labels, torch.cat(seen), class_names)
    originals_rate = recognised_classes(labels, torch.cat(seen_originals))["rate"]
    name = "recognition of reconstructions"
    return {"kind": name, "split": "validation", **record, "originals_rate": originals_rate}
