"""The decode loop: prefill known tokens, then decode with a static key-value cache (METHOD §9)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prologue.errors import SamplingError
from prologue.models.prior import Prior
from prologue.models.sequence import SequenceLayout
from prologue.sampling.draw import DrawRule, image_keys
from prologue.sampling.engine import Engine
from prologue.sampling.known import Known
from prologue.sampling.recipe import Recipe


@torch.inference_mode()
def sample_sequences(
    prior: Prior,
    class_ids: Int[Tensor, " B"],
    recipe: Recipe | Sequence[Recipe],
    seeds: list[int],
    given: Int[Tensor, "B G"] | Known | None = None,
    engine: Engine | None = None,
    one_shape: bool = False,
) -> Int[Tensor, "B T"]:
    """Sequences of target ids in the prior's vocabulary, EOS included.

    The ids of an image depend on its class, its seed, its recipe and its known tokens, not on the rest of the batch.

    Args:
        recipe: one for all images, or one for each.
        given: the first G target ids of each image, or known tokens at any positions. They are not drawn.
        engine: runs the prior; without one it runs eagerly.
        one_shape: make the shapes of all passes depend only on the batch size, on the guided segments, and on the
            segments that are known in every row. Otherwise equal rows are prefilled once, and a position that is known
            in every row gets no separate pass.

    Raises:
        SamplingError: guidance on the null class, a class that does not exist, given ids that do not fit, or logits
            that are not finite.
    """
    layout = prior.layout
    recipes = [recipe] * len(class_ids) if isinstance(recipe, Recipe) else list(recipe)
    _check(prior, class_ids, recipes, seeds)
    targets, known = _start(layout, given, class_ids)
    some, every = known.any(0).tolist(), known.all(0).tolist()
    drawn = [step for step in range(layout.length) if not every[step]]
    steps = [step for step in range(drawn[-1] + 1) if not _known(layout, every, step)] if drawn and one_shape else drawn
    names = {name for guidance in {each.guidance for each in recipes} for name in guidance.guided_segments(layout)}
    guided = {step for step in steps if layout.segment(step).name in names}
    rows = _Rows(engine or Engine(prior), class_ids, guided, one_shape)
    weights = _weights(layout, recipes, class_ids.device)
    rules = {segment.name: DrawRule.of(recipes, segment.name, class_ids.device) for segment in layout.segments}
    keys = image_keys(seeds, class_ids.device)
    finite = []
    for step in steps:
        segment = layout.segment(step)
        hidden = rows.advance(targets, step)
        if every[step]:
            continue
        logits, flag = rows.engine.logits(hidden, segment, weights[step] if step in guided else None)
        finite.append((step, flag))
        ids = rows.engine.draw(logits, keys, step, rules[segment.name], segment)
        targets[:, step] = torch.where(known[:, step], targets[:, step], ids) if some[step] else ids
    _check_finite(finite, prior)
    return targets


def _known(layout: SequenceLayout, every: list[bool], step: int) -> bool:
    """Whether the whole segment of a step is known in every row."""
    segment = layout.segment(step)
    return all(every[segment.start : segment.stop])


def _weights(layout: SequenceLayout, recipes: Sequence[Recipe], device: torch.device) -> Float[Tensor, "T B 2"]:
    """Weights of the class's and the null class's logits at each step: `c` and `1 − c`."""
    scales = {guidance: guidance.scales(layout) for guidance in {recipe.guidance for recipe in recipes}}
    scale = torch.tensor([scales[recipe.guidance] for recipe in recipes], dtype=torch.float64).T
    return torch.stack([scale, 1 - scale], dim=-1).float().to(device)


class _Rows:
    """The sequences being decoded: the classes' and, at guided steps, the null class's after them.

    Null rows are prefilled in one pass at the first guided step and left out after the last.
    """

    def __init__(self, engine: Engine, class_ids: Int[Tensor, " B"], guided: set[int], one_shape: bool) -> None:
        self.engine = engine
        self.guided = guided
        self.one_shape = one_shape
        self.count = len(class_ids)
        null = torch.full_like(class_ids, engine.prior.null_class)
        self.class_ids = torch.cat([class_ids, null]) if guided else class_ids
        self.cache = engine.begin(len(self.class_ids))
        self.done = {"class": 0, "null": 0}

    def advance(self, targets: Int[Tensor, "B T"], step: int) -> Tensor:
        """The outputs that predict target `step`, (B, 1, D), or (2B, 1, D) with null rows if the step is guided."""
        if step not in self.guided:
            # The null rows skip this step. The next guided step computes them in one pass.
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
        return self.engine.prefill(cache, self.class_ids[first:last], ids, begin, share=not self.one_shape)


def _check_finite(flags: list[tuple[int, Tensor]], prior: Prior) -> None:
    """Read the flags once at the end: each read waits for the device."""
    if flags and not bool(torch.stack([flag for _, flag in flags]).all()):
        step = next(step for step, flag in flags if not bool(flag))
        raise SamplingError(
            f"logits at position {step} are not finite in {prior.precision}: "
            "the weights are damaged or this precision is too small; try dtype='fp32'"
        )


def _check(prior: Prior, class_ids: Tensor, recipes: Sequence[Recipe], seeds: list[int]) -> None:
    prior.check_classes(class_ids)
    for what, values in (("seeds", seeds), ("recipes", recipes)):
        if len(values) != len(class_ids):
            raise SamplingError(f"{len(class_ids)} images need as many {what}, not {len(values)}")
    guided = torch.tensor([recipe.guidance.active for recipe in recipes], device=class_ids.device)
    if bool((guided & (class_ids == prior.null_class)).any()):
        raise SamplingError(
            "guidance needs a class, and some images ask for the null class: "
            "give every image a class, or leave guidance out"
        )


def _start(
    layout: SequenceLayout, given: Int[Tensor, "B G"] | Known | None, class_ids: Int[Tensor, " B"]
) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Target ids in which the given ids and every EOS are set, and the mask of these positions."""
    count, length = len(class_ids), layout.length
    if isinstance(given, Known):
        if len(given) != count:
            raise SamplingError(f"known tokens of {len(given)} images do not fit {count} images")
        return given.to(class_ids.device).pack(layout)
    targets = class_ids.new_zeros(count, length, dtype=torch.int64)
    known = torch.zeros_like(targets, dtype=torch.bool)
    if given is not None:
        if given.shape[1] > length or given.shape[0] != count:
            raise SamplingError(
                f"given ids of shape {tuple(given.shape)} do not fit {count} images of {length} positions"
            )
        targets[:, : given.shape[1]], known[:, : given.shape[1]] = given, True
    for segment in layout.segments:
        place = slice(segment.start, segment.stop)
        ids = targets[:, place]
        wrong = known[:, place] & ((ids < segment.first_id) | (ids >= segment.last_id))
        if bool(wrong.any()):
            row, column = wrong.nonzero()[0].tolist()
            raise SamplingError(
                f"given id {int(ids[row, column])} at position {segment.start + column} of image {row} lies outside "
                f"the {segment.name} segment's ids {segment.first_id}…{segment.last_id - 1}"
            )
        if segment.forced:
            targets[:, place], known[:, place] = segment.first_id, True
    return targets, known
