"""`prologue evaluate likelihood`: the prior's cross-entropy per image, and what the prologue carries (METHOD §1)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float64, Int64
from PIL import Image
from torch import Tensor
from tyro.conf import arg

from prologue import builtin
from prologue.errors import EvaluationError
from prologue.evaluation.codes import encode_images
from prologue.evaluation.kinds.base import (
    HeldOutOptions,
    Kind,
    Measurement,
    Prepared,
    Row,
    SampledSubject,
    StatedBy,
    Told,
    images_sentence,
    row,
    training_of,
)
from prologue.evaluation.metrics.intervals import mean_interval, missing_fields
from prologue.evaluation.runs import (
    LIKELIHOOD_IMAGES,
    ProgressCallback,
    Record,
    RunInfo,
    check_paired,
    evaluating,
    unwatched,
)
from prologue.models.prior import Prior
from prologue.models.sequence import TokenIds
from prologue.models.weights import WEIGHTS, file_hash
from prologue.pipeline import Pipeline
from prologue.report.figures import COLOURS, INK, add_legend, grid_maps, panels, picture_of, style_axes
from prologue.training.codebooks import COLLAPSED_NATS, Usage, collapse_sentences
from prologue.utils.progress import progress
from prologue.utils.rng import torch_stream

Nats = Float64[Tensor, " n"]
_TO_BITS = 1 / math.log(2)
_SEGMENTS = ("prologue", "eos", "visual")
_COLOURS = {"prologue": 1, "eos": 4, "visual": 0}


@dataclass(frozen=True, kw_only=True)
class LikelihoodOptions(HeldOutOptions):
    baseline: Annotated[Path | None, arg(metavar="RUN"), StatedBy("baseline_weights", "baseline_configs")] = None
    """Run for the gain: a prior without a prologue on the visual ids of the same tokenizer
    (`prologue train --tokenizer RUN --prior.prologue false`)."""


class Likelihood(Kind[LikelihoodOptions]):
    """The prior's cross-entropy of the tokens of held-out images."""

    summary = "the prior's cross-entropy per image, and what the prologue carries"
    options = LikelihoodOptions

    def prepare(self, options: LikelihoodOptions) -> Prepared:
        if options.baseline is not None:
            options = dataclasses.replace(options, baseline=builtin.locate(options.baseline))
        subject = SampledSubject.open(options)
        baseline = None if options.baseline is None else _baseline(options, subject.pipeline)
        indices = subject.choose(options.count, "likelihood")
        class_ids, notes = subject.classes(indices)
        config = subject.tokenizer.config

        def measure() -> Measurement:
            shared: dict[str, Any] = {"batch": options.batch, "watch": progress}
            tokens = encode_images(subject.tokenizer, subject.split.images, indices, **shared)
            record = evaluate_likelihood(
                subject.prior,
                tokens,
                class_ids,
                image_size=config.image_size,
                split=subject.split.name,
                baseline=baseline,
                seed=options.seed,
                starts_from_data=bool(training_of(subject.info).tokenizer_training.prologue_kmeans),
                **shared,
            )
            pictures = {"bits": bits_chart(record)}
            if config.visual_tokens_on_grid:
                pictures["grid"] = bits_maps(record, config.grid)
            return Measurement(subject.noted(record, *notes), pictures)

        origin = subject.facts()
        if options.baseline is not None:
            other = RunInfo.load(options.baseline).facts()
            origin |= {"baseline": Told(options.baseline)}
            origin |= {f"baseline_{name}": other[name] for name in ("weights", "configs")}
        return Prepared(options, origin, measure)

    def rows(self, record: Record) -> Iterator[Row]:
        yield row("nats per image", record, "nats", ".2f")
        yield row("bits per image", record, "bits", ".2f")
        yield row("token bits per dimension", record, "token_bits_per_dimension", ".5f")
        for name in _SEGMENTS:
            label = "EOS" if name == "eos" else name
            yield row(f"  {label}, nats", record, f"{name}_nats", ".2f")
            yield row(f"  {label}, bits", record, f"{name}_bits", ".2f")
        yield "entropy of the visual ids, nats per image", f"{record['visual_entropy']:.2f}", ""
        yield "entropy of the visual ids, nats per token", f"{record['visual_entropy_per_token']:.3f}", ""
        if record["cost"] is None:
            return
        yield row("prologue: cost, nats", record, "cost", ".2f")
        yield "prologue: diversity, nats", f"{record['diversity']:.2f}", ""
        if record["use"] is not None:
            yield row("prologue: use, nats", record, "use", ".2f")
        if record["gain"] is not None:
            yield row("prologue: gain, nats", record, "gain", ".2f")
            yield row("baseline: visual, nats", record, "baseline_visual_nats", ".2f")

    def sentences(self, record: Record) -> Iterator[str]:
        yield images_sentence(record)
        if record["gain"] is not None:
            yield (
                f"Bounds on −log p of the visual ids: {record['nats']:.2f} nats per image with the prologue (prologue, "
                f"EOS and visual tokens together), {record['baseline_visual_nats']:.2f} without."
            )
            if record["gain_low"] is None or record["gain_low"] <= 0 <= record["gain_high"]:
                yield "The two bounds are not distinguishable at this N."
            else:
                yield f"The prior {'with' if record['gain'] > 0 else 'without'} a prologue predicts them better."
        if record["indicative"]:
            yield f"These figures are indicative: N is below {LIKELIHOOD_IMAGES} images."


def _baseline(options: LikelihoodOptions, pipeline: Pipeline) -> Prior:
    """The baseline's prior; an `EvaluationError` if its tokenizer or its classes are not those of the run."""
    assert options.baseline is not None
    other = Pipeline.from_pretrained(options.baseline, pipeline.device, pipeline.dtype)
    hashes = {file_hash(folder / "tokenizer" / WEIGHTS) for folder in (options.run, options.baseline)}
    if len(hashes) > 1:
        raise EvaluationError(
            f"{options.baseline} has another tokenizer than {options.run}, and likelihoods compare only on the same "
            f"visual ids: train the baseline with --tokenizer {options.run} --prior.prologue false"
        )
    if other.class_names != pipeline.class_names:
        raise EvaluationError(f"{options.baseline} has other classes than {options.run}: train both on the same images")
    return other.prior


def token_nats(
    prior: Prior,
    tokens: TokenIds,
    class_ids: Int64[Tensor, " n"],
    *,
    batch: int = 64,
    watch: ProgressCallback = unwatched,
    what: str = "likelihood",
) -> Float64[Tensor, "n T"]:
    """Cross-entropy of every image at every target position, over the whole vocabulary, in nats; fp32 terms.

    A prior without a prologue takes the visual ids alone. Ids or classes that do not fit are a `SamplingError`.
    """
    layout = prior.layout
    tokens = layout.kept(tokens)
    prior.check_classes(class_ids)
    device = prior.token_embedding.weight.device
    parts = []
    with evaluating(prior):
        for start in watch(range(0, len(tokens), batch), what):
            sequence = layout.pack(tokens[slice(start, start + batch)].to(device))
            logits = prior(sequence, class_ids[start : start + batch].to(device))
            each = F.cross_entropy(logits.flatten(0, 1), sequence.flatten(), reduction="none").view(sequence.shape)
            parts.append(each.cpu().double())
    return torch.cat(parts)


def segment_nats(prior: Prior, each: Float64[Tensor, "n T"]) -> dict[str, Nats]:
    """`token_nats` summed by segment (prologue, eos, visual); 0 for segments that the prior does not have."""
    spans = {segment.name: each[:, segment.start : segment.stop].sum(1) for segment in prior.layout.segments}
    return {name: spans.get(name, each.new_zeros(len(each))) for name in _SEGMENTS}


def shuffled_partners(count: int, seed: int) -> Int64[Tensor, " n"]:
    """A random derangement of at least two images, as one cycle."""
    order = torch.randperm(count, generator=torch_stream(seed, "evaluation", "shuffled prologues"))
    partners = torch.empty_like(order)
    partners[order] = order.roll(-1)
    return partners


def evaluate_likelihood(
    prior: Prior,
    tokens: TokenIds,
    class_ids: Int64[Tensor, " n"],
    *,
    image_size: tuple[int, int],
    split: str = "validation",
    baseline: Prior | None = None,
    seed: int = 0,
    batch: int = 64,
    starts_from_data: bool = False,
    watch: ProgressCallback = unwatched,
) -> Record:
    """The cross-entropy of `tokens` given their true classes, and what the prologue carries (METHOD §1).

    Nats and bits per image and by segment, token bits per dimension (bits / (H·W·3)), each with its 95 % interval over
    images. Cost, diversity, use and gain are in nats per image; None without a prologue, `use` also for one image,
    `gain` without `baseline`, a prior without a prologue on the same visual ids. `starts_from_data` says whether the
    prologue codebook was initialised from encoder outputs, on which the advice about a collapse depends.
    """
    check_paired(tokens, class_ids)
    shared: dict[str, Any] = {"batch": batch, "watch": watch}
    each = token_nats(prior, tokens, class_ids, **shared)
    nats = segment_nats(prior, each)
    total = nats["prologue"] + nats["eos"] + nats["visual"]
    record: Record = {"kind": "likelihood", "n": len(tokens), "split": split, "views": "center"}
    record["indicative"] = len(tokens) < LIKELIHOOD_IMAGES
    record |= mean_interval(total).fields("nats") | mean_interval(total).fields("bits", _TO_BITS)
    for name, values in nats.items():
        record |= mean_interval(values).fields(f"{name}_nats") | mean_interval(values).fields(f"{name}_bits", _TO_BITS)
    dimensions = image_size[0] * image_size[1] * 3
    record |= mean_interval(total).fields("token_bits_per_dimension", _TO_BITS / dimensions)
    record |= _by_position("bits", each)
    record |= {"segments": {segment.name: [segment.start, segment.stop] for segment in prior.layout.segments}}
    usage = Usage(1, prior.layout.config.visual_codebook_size, torch.device("cpu"))
    usage.add(tokens.visual.cpu())
    entropy = float(usage.entropies()[0])  # without any context
    record |= {"visual_entropy_per_token": entropy, "visual_entropy": entropy * prior.layout.visual_tokens}
    record |= _carried(prior, tokens, class_ids, nats, seed, shared)
    if baseline is None:
        record |= missing_fields("baseline_visual_nats", "gain") | _by_position("baseline_bits")
    else:
        _check_baseline(prior, baseline)
        without = token_nats(baseline, tokens, class_ids, what="baseline", **shared)
        record |= mean_interval(without.sum(1)).fields("baseline_visual_nats")
        record |= mean_interval(without.sum(1) - total).fields("gain") | _by_position("baseline_bits", without)
    low = [record[name] for name in ("diversity", "use") if record[name] is not None]
    record |= {"collapsed": any(value < COLLAPSED_NATS for value in low), "seed": seed}
    return record | {"notes": collapse_sentences(1.0, record["diversity"], record["use"], True, starts_from_data)}


def _carried(
    prior: Prior,
    tokens: TokenIds,
    class_ids: Int64[Tensor, " n"],
    nats: dict[str, Nats],
    seed: int,
    shared: dict[str, Any],
) -> Record:
    """Cost, diversity and use of the prologue."""
    layout = prior.layout
    if not layout.has_prologue:
        return missing_fields("cost") | {"diversity": None} | missing_fields("use")
    usage = Usage(layout.prologue_tokens, layout.config.prologue_codebook_size, torch.device("cpu"))
    usage.add(tokens.prologue.cpu())
    record = mean_interval(nats["prologue"] + nats["eos"]).fields("cost")
    record |= {"diversity": float(usage.entropies().sum())}
    if len(tokens) < 2:
        return record | missing_fields("use")
    partners = shuffled_partners(len(tokens), seed).to(tokens.prologue.device)
    shuffled = TokenIds(tokens.prologue[partners], tokens.visual)
    wrong = segment_nats(prior, token_nats(prior, shuffled, class_ids, what="shuffled prologues", **shared))
    return record | mean_interval(wrong["visual"] - nats["visual"]).fields("use")


def _by_position(name: str, each: Float64[Tensor, "n T"] | None = None) -> Record:
    """Means over images at each position, in bits, with 95 % intervals, as lists; None without values."""
    names = [f"position_{name}{end}" for end in ("", "_low", "_high")]
    if each is None:
        return dict.fromkeys(names)
    intervals = [mean_interval(column).fields(name, _TO_BITS) for column in each.T]
    return dict(zip(names, zip(*(part.values() for part in intervals), strict=True), strict=True))


def _check_baseline(prior: Prior, baseline: Prior) -> None:
    """Refuse a baseline with a prologue, other visual ids or other classes."""
    ours, theirs = prior.layout.config, baseline.layout.config
    if not prior.layout.has_prologue:
        raise EvaluationError("the gain is that of a prologue, and this run's prior has none: omit --baseline")
    if baseline.layout.has_prologue:
        raise EvaluationError(
            "the baseline must be a prior without a prologue, and this one has "
            f"{theirs.prologue_tokens} prologue tokens: train one with --tokenizer RUN --prior.prologue false"
        )
    if (ours.visual_tokens, ours.visual_codebook_size) != (theirs.visual_tokens, theirs.visual_codebook_size):
        raise EvaluationError(
            f"the baseline has {theirs.visual_tokens} visual tokens of {theirs.visual_codebook_size} codes, "
            f"not {ours.visual_tokens} of {ours.visual_codebook_size}: train it with --tokenizer RUN"
        )
    if prior.num_classes != baseline.num_classes:
        raise EvaluationError(f"the baseline has {baseline.num_classes} classes, not {prior.num_classes}")


def bits_chart(record: Record) -> Image.Image:
    """Mean bits at each target position with 95 % intervals, and the baseline's at its visual positions."""
    figure, (axes,) = panels()
    style_axes(axes, "Cross-entropy at each position", "target position", "bits")
    bits = np.array(record["position_bits"])
    known = record["position_bits_low"][0] is not None  # a single image gives no interval
    low, high = (np.array(record[f"position_bits{end}"]) if known else bits for end in ("_low", "_high"))
    for name, (start, stop) in record["segments"].items():
        span, colour = np.arange(start, stop), COLOURS[_COLOURS[name]]
        label = "EOS" if name == "eos" else name
        axes.plot(span, bits[start:stop], "o-", markersize=3, linewidth=1.4, color=colour, label=label)
        axes.fill_between(span, low[start:stop], high[start:stop], color=colour, alpha=0.25, linewidth=0)
    if record["position_baseline_bits"] is not None:
        span, label = np.arange(*record["segments"]["visual"]), "visual, without a prologue"
        axes.plot(span, record["position_baseline_bits"], "--", color=INK, linewidth=1.4, label=label)
    axes.set_ylim(bottom=0)
    add_legend(axes, ncols=math.ceil(len(record["segments"]) / 2))
    return picture_of(figure)


def bits_maps(record: Record, grid: tuple[int, int]) -> Image.Image:
    """Mean bits of the visual tokens over the image (rows, columns), and those of the baseline."""
    start, stop = record["segments"]["visual"]
    name = "with the prologue" if "prologue" in record["segments"] else "visual tokens"
    maps = {name: record["position_bits"][start:stop]}
    if record["position_baseline_bits"] is not None:
        maps["without"] = record["position_baseline_bits"]
    parts = np.stack([np.array(bits, dtype=np.float64).reshape(grid) for bits in maps.values()])
    return grid_maps("Bits of the visual tokens, over the image", list(maps), parts, "bits")
