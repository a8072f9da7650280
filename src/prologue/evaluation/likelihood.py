"""What a prior pays for an image's tokens, and what the prologue carries (METHOD §1)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float64, Int64
from torch import Tensor

from prologue.data.source import ImageSet
from prologue.errors import EvaluationError
from prologue.evaluation.metrics.intervals import Interval, mean_interval
from prologue.evaluation.runs import LIKELIHOOD_IMAGES, ProgressCallback, Record, center_crops, evaluating, unwatched
from prologue.models.prior import Prior
from prologue.models.sequence import TokenIds
from prologue.models.tokenizer import Tokenizer, to_model_range
from prologue.training.codebooks import COLLAPSED_NATS, Usage, collapse_sentences
from prologue.utils.rng import torch_stream

Nats = Float64[Tensor, " n"]
_TO_BITS = 1 / math.log(2)


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

    A P = 0 prior takes the visual ids alone. Raises `SamplingError` for ids or classes that do not fit the prior.
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
    return {name: spans.get(name, each.new_zeros(len(each))) for name in ("prologue", "eos", "visual")}


def shuffled_partners(count: int, seed: int) -> Int64[Tensor, " n"]:
    """A derangement: for each image another one, every image once (a random cycle). At least two images."""
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
    """What `prior` pays per image for `tokens` of the true classes, and what the prologue carries (METHOD §1).

    Nats and bits per image and by segment, token bits per dimension (bits / (H·W·3)), each with its 95 % interval over
    images. Cost, diversity, use and gain are in nats per image; None without a prologue, `use` also for one image,
    `gain` without `baseline`, a P = 0 prior of the same visual ids. `starts_from_data` says that the prologue
    codebook was started from encoder outputs, which the remedy of a collapse depends on.
    """
    if not len(tokens) or len(tokens) != len(class_ids):
        raise EvaluationError(f"{len(tokens)} images with {len(class_ids)} classes: one class for each of some images")
    each = token_nats(prior, tokens, class_ids, batch=batch, watch=watch)
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
    record |= _marginal(tokens, prior)
    record |= _carried(prior, tokens, class_ids, nats, seed, batch, watch)
    record |= _gain(prior, baseline, tokens, class_ids, nats, batch, watch)
    low = [record[name] for name in ("diversity", "use") if record[name] is not None]
    record |= {"collapsed": any(value < COLLAPSED_NATS for value in low), "seed": seed}
    return record | {"notes": collapse_sentences(1.0, record["diversity"], record["use"], True, starts_from_data)}


def _marginal(tokens: TokenIds, prior: Prior) -> Record:
    """Entropy of the visual ids of all positions together, per token, and per image: the price without any context."""
    usage = Usage(1, prior.layout.config.visual_codebook_size, torch.device("cpu"))
    usage.add(tokens.visual.cpu())
    entropy = float(usage.entropies()[0])
    return {"visual_entropy_per_token": entropy, "visual_entropy": entropy * prior.layout.visual_tokens}


def _carried(
    prior: Prior,
    tokens: TokenIds,
    class_ids: Int64[Tensor, " n"],
    nats: dict[str, Nats],
    seed: int,
    batch: int,
    watch: ProgressCallback,
) -> Record:
    """Cost, diversity and use of the prologue."""
    layout = prior.layout
    if not layout.has_prologue:
        return _absent("cost") | {"diversity": None} | _absent("use")
    usage = Usage(layout.prologue_tokens, layout.config.prologue_codebook_size, torch.device("cpu"))
    usage.add(tokens.prologue.cpu())
    record = mean_interval(nats["prologue"] + nats["eos"]).fields("cost")
    record |= {"diversity": float(usage.entropies().sum())}
    if len(tokens) < 2:
        return record | _absent("use")
    shuffled = TokenIds(tokens.prologue[shuffled_partners(len(tokens), seed).to(tokens.prologue.device)], tokens.visual)
    wrong = segment_nats(
        prior, token_nats(prior, shuffled, class_ids, batch=batch, watch=watch, what="shuffled prologues")
    )
    return record | mean_interval(wrong["visual"] - nats["visual"]).fields("use")


def _gain(
    prior: Prior,
    baseline: Prior | None,
    tokens: TokenIds,
    class_ids: Int64[Tensor, " n"],
    nats: dict[str, Nats],
    batch: int,
    watch: ProgressCallback,
) -> Record:
    """What the prologue saves against a P = 0 prior: its visual cross-entropy minus (visual + cost)."""
    if baseline is None:
        return _absent("baseline_visual_nats") | _absent("gain") | _by_position("baseline_bits")
    _check_baseline(prior, baseline)
    each = token_nats(baseline, tokens, class_ids, batch=batch, watch=watch, what="baseline")
    without = each.sum(1)
    paid = nats["prologue"] + nats["eos"] + nats["visual"]
    record = mean_interval(without).fields("baseline_visual_nats") | mean_interval(without - paid).fields("gain")
    return record | _by_position("baseline_bits", each)


def _by_position(name: str, each: Float64[Tensor, "n T"] | None = None) -> Record:
    """Means over images at each position, in bits, with their 95 % intervals, as lists; Nones without values."""
    names = [f"position_{name}{end}" for end in ("", "_low", "_high")]
    if each is None:
        return dict.fromkeys(names)
    intervals = [mean_interval(column).fields(name, _TO_BITS) for column in each.T]
    return dict(zip(names, zip(*(part.values() for part in intervals), strict=True), strict=True))


def _check_baseline(prior: Prior, baseline: Prior) -> None:
    """Refuse a baseline whose figures would not be of the same visual ids and classes."""
    ours, theirs = prior.layout.config, baseline.layout.config
    if not prior.layout.has_prologue:
        raise EvaluationError(
            "a gain is of a prior with a prologue, and this run's prior has none: leave --baseline out"
        )
    if baseline.layout.has_prologue:
        raise EvaluationError(
            "the baseline must be a prior without a prologue, and this one has "
            f"{theirs.prologue_tokens} prologue tokens: train one with --tokenizer RUN --prior.prologue false"
        )
    if (ours.visual_tokens, ours.visual_codebook_size) != (theirs.visual_tokens, theirs.visual_codebook_size):
        raise EvaluationError(
            f"the baseline is of {theirs.visual_tokens} visual tokens of {theirs.visual_codebook_size} codes, "
            f"not of {ours.visual_tokens} of {ours.visual_codebook_size}: train it with --tokenizer RUN"
        )
    if prior.num_classes != baseline.num_classes:
        raise EvaluationError(f"the baseline has {baseline.num_classes} classes, not {prior.num_classes}")


def _absent(name: str) -> Record:
    return dict.fromkeys(Interval(0.0, None, None).fields(name))


def true_classes(
    labels: Int64[np.ndarray, " n"], data_names: Sequence[str], run_names: Sequence[str], num_classes: int
) -> tuple[Int64[Tensor, " n"], tuple[str, ...]]:
    """The prior's class ids of images labelled with `data_names`, and notes: classes are matched by name.

    The null class where prior or images have no classes. Names that are only numbers (imported models) match as many
    classes in their order. A class that the prior was not trained on is an `EvaluationError` naming it.
    """
    given = torch.from_numpy(labels.astype(np.int64))
    if not num_classes:
        return torch.zeros_like(given), ()
    if not data_names:
        return torch.full_like(given, num_classes), ("the images have no classes, so the null class is measured",)
    if tuple(data_names) == tuple(run_names):
        return given, ()
    numbered = tuple(run_names) == tuple(str(index) for index in range(num_classes))
    if numbered and len(data_names) == num_classes:
        return given, ("the run numbers its classes, and the images' classes are taken in their order",)
    unknown = [name for name in data_names if name not in run_names]
    if unknown:
        raise EvaluationError(
            f"the images have the class {unknown[0]!r}, which the run was not trained on: "
            "measure on images of the run's classes"
        )
    table = torch.tensor([list(run_names).index(name) for name in data_names])
    return table[given], ()
