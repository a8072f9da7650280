"""The one decode loop: prefill what is given, then decode with a static key-value cache (METHOD §9)."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from prologue.errors import SamplingError
from prologue.models.prior import Prior
from prologue.sampling.draw import image_keys
from prologue.sampling.engine import Engine
from prologue.sampling.recipe import Recipe


@torch.inference_mode()
def sample_sequences(
    prior: Prior,
    class_ids: Int[Tensor, " B"],
    recipe: Recipe,
    seeds: list[int],
    given: Int[Tensor, "B G"] | None = None,
    engine: Engine | None = None,
) -> Int[Tensor, "B T"]:
    """Sequences of target ids as the prior counts them, EOS included.

    `given` holds the first G target ids of each image; they are prefilled, not sampled. The ids of an image depend
    on its class, its seed, what is given and the recipe alone, not on the batch it is in. `engine` runs the prior;
    without one it runs eagerly. Raises `SamplingError` for guidance on the null class, classes that do not exist,
    more given ids than positions, ids outside their segment, or logits that are not finite.
    """
    layout = prior.layout
    scales = recipe.guidance.scales(layout)
    given = class_ids.new_zeros(len(class_ids), 0) if given is None else given
    _check(prior, class_ids, recipe, seeds, given)
    rows = _Rows(engine or Engine(prior), class_ids, [scale != 1.0 for scale in scales])
    keys = image_keys(seeds, class_ids.device)
    targets = torch.empty(len(class_ids), layout.length, dtype=torch.int64, device=class_ids.device)
    targets[:, : given.shape[1]] = given
    finite = []
    for step in range(given.shape[1], layout.length):
        segment = layout.segment(step)
        if segment.forced:
            targets[:, step] = segment.first_id  # one id is allowed: its input joins the next prefill
            continue
        hidden = rows.advance(targets, step)
        guided = len(hidden) > len(class_ids)
        logits, whole = rows.engine.logits(hidden, segment, scales[step] if guided else None)
        finite.append((step, whole))
        targets[:, step] = rows.engine.draw(logits, keys, step, recipe, segment)
    _check_finite(finite, prior)
    return targets


class _Rows:
    """The sequences being decoded: the classes' and, at the steps that need them, the null class's behind them.

    Null rows are prefilled in one pass at the first step whose scale is not 1 and left after the last.
    """

    def __init__(self, engine: Engine, class_ids: Int[Tensor, " B"], guided: list[bool]) -> None:
        layout = engine.prior.layout
        free = [step for step, needed in enumerate(guided) if needed and not layout.segment(step).forced]
        self.engine = engine
        self.guided = set(free)
        self.count = len(class_ids)
        null = torch.full_like(class_ids, engine.prior.null_class)
        self.class_ids = torch.cat([class_ids, null]) if free else class_ids
        self.cache = engine.begin(len(self.class_ids))
        self.done = {"class": 0, "null": 0}

    def advance(self, targets: Int[Tensor, "B T"], step: int) -> Tensor:
        """The outputs that predict target `step`, (B or 2B, 1, D): null rows follow where the step is guided."""
        if step not in self.guided:
            # Null rows that are needed again later wait; what they missed is run in one pass then.
            return self._run(targets, step, 0, self.count, "class")
        if self.done["null"] != self.done["class"]:
            self._run(targets, self.done["class"] - 1, self.count, 2 * self.count, "null")
        hidden = self._run(targets, step, 0, 2 * self.count, "class")
        self.done["null"] = self.done["class"]
        return hidden

    def _run(self, targets: Tensor, step: int, first: int, last: int, name: str) -> Tensor:
        """Run the rows `first:last` over the input positions up to `step`, whose inputs are the targets before it."""
        begin, self.done[name] = self.done[name], step + 1
        cache = self.cache[:, :, first:last]
        segment = self.engine.prior.layout.segment(step)
        ids = targets[:, :step].repeat((last - first) // self.count, 1)
        if begin == step > 0:
            return self.engine.step(cache, ids[:, -1], step, segment)
        return self.engine.prefill(cache, self.class_ids[first:last], ids, begin)


def _check_finite(flags: list[tuple[int, Tensor]], prior: Prior) -> None:
    """Looked at once in the end, since each look waits for the device."""
    if flags and not bool(torch.stack([flag for _, flag in flags]).all()):
        step = next(step for step, flag in flags if not bool(flag))
        raise SamplingError(
            f"logits at position {step} are not finite in {prior.precision}: "
            "the weights are damaged or this precision is too small; try dtype='fp32'"
        )


def _check(prior: Prior, class_ids: Tensor, recipe: Recipe, seeds: list[int], given: Tensor) -> None:
    prior.check_classes(class_ids)
    if len(seeds) != len(class_ids):
        raise SamplingError(f"{len(class_ids)} images need as many seeds, not {len(seeds)}")
    if recipe.guidance.active and bool((class_ids == prior.null_class).any()):
        raise SamplingError(
            "guidance needs a class to lean on, and some images ask for the null class: "
            "give every image a class, or leave guidance out"
        )
    layout = prior.layout
    if given.shape[1] > layout.length or given.shape[0] != len(class_ids):
        raise SamplingError(
            f"given ids {tuple(given.shape)} do not fit {len(class_ids)} images of {layout.length} positions"
        )
    for segment in layout.segments:
        ids = given[:, segment.start : segment.stop]
        wrong = (ids < segment.first_id) | (ids >= segment.last_id)
        if bool(wrong.any()):
            row, column = wrong.nonzero()[0].tolist()
            raise SamplingError(
                f"given id {int(ids[row, column])} at position {segment.start + column} of image {row} lies outside "
                f"the {segment.name} segment's ids {segment.first_id}…{segment.last_id - 1}"
            )
