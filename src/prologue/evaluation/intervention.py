"""What one prologue token does: exchange it between two images, sample the visual tokens again with the same noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float64, Int64, UInt8
from torch import Tensor

from prologue.errors import EvaluationError
from prologue.evaluation.metrics.intervals import Interval, mean_interval, wilson_interval
from prologue.evaluation.recognition import Classifier
from prologue.evaluation.runs import ProgressCallback, Record, evaluating, unwatched
from prologue.models.prior import Prior
from prologue.models.tokenizer import Tokenizer, to_uint8
from prologue.sampling.decode import sample_sequences
from prologue.sampling.recipe import Recipe
from prologue.utils.rng import check_seeds

_FAR = 1 << 32
"""Between the seeds of an image and those of its second sampling, farther than there are images."""


class Pairs(NamedTuple):
    """Prologues of `k` images and of their partners, and the classes of the former, on the CPU."""

    prologue: Int64[Tensor, "k P"]
    partner: Int64[Tensor, "k P"]
    class_ids: Int64[Tensor, " k"]


class Intervened(NamedTuple):
    """Images before and after: `after[p]` has position `p` exchanged; all sampled with the same noise as `before`,
    but `resampled`, whose prologue is untouched and whose noise is another."""

    before: UInt8[Tensor, "k 3 H W"]
    after: UInt8[Tensor, "P k 3 H W"]
    whole: UInt8[Tensor, "k 3 H W"]
    resampled: UInt8[Tensor, "k 3 H W"]


def exchanged(pairs: Pairs, position: int) -> Int64[Tensor, "k P"]:
    """The prologues with the partner's code at one position."""
    out = pairs.prologue.clone()
    out[:, position] = pairs.partner[:, position]
    return out


def intervene(
    tokenizer: Tokenizer,
    prior: Prior,
    recipe: Recipe,
    pairs: Pairs,
    *,
    seed: int = 0,
    batch: int = 64,
    watch: ProgressCallback = unwatched,
) -> Intervened:
    """Sample the visual tokens of every exchange; pair `i` has seed `seed + i`.

    Where a pair has the same code at a position nothing is exchanged, and the image before is taken. Raises
    `EvaluationError` for a prior without a prologue, `SamplingError` as `sample_sequences` does.
    """
    if not prior.layout.has_prologue:
        raise EvaluationError("this run's prior has no prologue to intervene on: measure a run whose prior has one")
    sample = _sampler(tokenizer, prior, recipe, batch, watch)
    count, positions = pairs.prologue.shape
    check_seeds(seed, _FAR + count)
    seeds = torch.arange(seed, seed + count)
    before, whole, resampled = (
        sample(prologue, pairs.class_ids, seeds + shift, what)
        for prologue, shift, what in (
            (pairs.prologue, 0, "before"),
            (pairs.partner, 0, "whole prologue"),
            (pairs.prologue, _FAR, "other noise"),
        )
    )
    after = before.expand(positions, *before.shape).clone()
    differs = pairs.prologue != pairs.partner
    rows, places = differs.nonzero(as_tuple=True)
    if len(rows):
        prologues = torch.stack([exchanged(pairs, position) for position in range(positions)])
        after[places, rows] = sample(prologues[places, rows], pairs.class_ids[rows], seeds[rows], "exchanges")
    return Intervened(before, after, whole, resampled)


Sampler = Callable[[Tensor, Tensor, Tensor, str], Tensor]


def _sampler(tokenizer: Tokenizer, prior: Prior, recipe: Recipe, batch: int, watch: ProgressCallback) -> Sampler:
    """Images, on the CPU, of (prologues, class ids, seeds, what they are)."""
    device = prior.token_embedding.weight.device

    def chunks(prologue: Tensor, class_ids: Tensor, seeds: Tensor, what: str) -> Iterator[Tensor]:
        for start in watch(range(0, len(prologue), batch), what):
            rows = slice(start, start + batch)
            given = prior.layout.pack_prologue(prologue[rows].to(device))
            ids = sample_sequences(prior, class_ids[rows].to(device), recipe, seeds[rows].tolist(), given)
            yield to_uint8(tokenizer.decode(prior.layout.unpack(ids).visual)).cpu()

    def sample(prologue: Tensor, class_ids: Tensor, seeds: Tensor, what: str) -> Tensor:
        with evaluating(tokenizer, prior):
            return torch.cat(list(chunks(prologue, class_ids, seeds, what)))

    return sample


def change_maps(before: UInt8[Tensor, "k 3 H W"], after: UInt8[Tensor, "k 3 H W"]) -> Float64[Tensor, "k H W"]:
    """Absolute change of each pixel, 0…255, the mean over colours."""
    return (before.double() - after.double()).abs().mean(1)


def mean_maps(images: Intervened) -> dict[str, Float64[Tensor, "... H W"]]:
    """Where images change, the mean over pairs: `positions` (P, H, W), `whole` and `resampled` (H, W)."""
    positions = torch.stack([change_maps(images.before, after).mean(0) for after in images.after])
    controls = {name: change_maps(images.before, getattr(images, name)).mean(0) for name in ("whole", "resampled")}
    return {"positions": positions} | controls


def evaluate_intervention(
    images: Intervened,
    pairs: Pairs,
    recipe: Recipe,
    *,
    split: str = "validation",
    seed: int = 0,
    classifier: Classifier | None = None,
) -> Record:
    """How much images change, in mean absolute pixel values (0…255), with intervals over pairs.

    `positions` holds for each prologue position its `effect` over all pairs, the pairs whose codes there `differ`, and
    the `effect_differing` over these. `whole` is the exchange of the whole prologue, `resampled` other noise and the
    same prologue: what sampling alone changes; `whole_beyond_resampled` is their difference, pair by pair. `largest`
    is the position of the largest effect. With `classifier`, also how often its verdict changes.
    """
    differs = pairs.prologue != pairs.partner
    verdicts = None if classifier is None else classifier.classify(images.before)
    record: Record = {"kind": "intervention", "n": len(differs), "split": split, "views": "center"}
    for name, after in (("whole", images.whole), ("resampled", images.resampled)):
        record |= _mean_change(change_maps(images.before, after).mean((1, 2))).fields(name)
        if classifier is not None and verdicts is not None:
            changed = int((classifier.classify(after) != verdicts).sum())
            record |= wilson_interval(changed, len(differs)).fields(f"{name}_verdict")
    whole, resampled = (change_maps(images.before, after).mean((1, 2)) for after in (images.whole, images.resampled))
    record |= mean_interval(whole - resampled).fields("whole_beyond_resampled")
    record["positions"] = [
        {"position": position, **_effect(images.before, after, differs[:, position], verdicts, classifier)}
        for position, after in enumerate(images.after)
    ]
    effects = [part["effect"] for part in record["positions"]]
    record["largest"] = max(range(len(effects)), key=effects.__getitem__)
    return record | {"recipe": recipe.to_dict(), "guided": recipe.guidance.active, "seed": seed, "notes": []}


def _mean_change(change: Float64[Tensor, " k"]) -> Interval:
    """The mean with its interval, cut at 0, below which no change lies."""
    value, low, high = mean_interval(change)
    return Interval(value, None if low is None else max(0.0, low), high)


def _effect(
    before: UInt8[Tensor, "k 3 H W"],
    after: UInt8[Tensor, "k 3 H W"],
    differs: Bool[Tensor, " k"],
    verdicts: Int64[Tensor, " k"] | None,
    classifier: Classifier | None,
) -> Record:
    change = change_maps(before, after).mean((1, 2))
    record = _mean_change(change).fields("effect") | {"differ": int(differs.sum())}
    some = bool(differs.any())
    record |= (_mean_change(change[differs]) if some else Interval(0.0, None, None)).fields("effect_differing")
    if classifier is not None and verdicts is not None:
        changed = int((classifier.classify(after) != verdicts).sum())
        record |= wilson_interval(changed, len(differs)).fields("verdict")
    return record
