"""The one decode loop: prefill what is given, then decode with a static key-value cache (METHOD §9)."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from prologue.errors import SamplingError
from prologue.prior import Prior
from prologue.sampling.draw import draw, gumbel_noise, image_keys
from prologue.sampling.recipe import Recipe


@torch.inference_mode()
def sample_sequences(
    prior: Prior,
    class_ids: Int[Tensor, " B"],
    recipe: Recipe,
    seeds: list[int],
    given: Int[Tensor, "B G"] | None = None,
) -> Int[Tensor, "B T"]:
    """Sequences of target ids as the prior counts them, EOS included.

    `given` holds the first G target ids of each image; they are prefilled, not sampled. The ids of an image depend
    on its class, its seed, what is given and the recipe alone, not on the batch it is in. Raises `SamplingError`
    for guidance on the null class, classes that do not exist, more given ids than positions, or logits that are
    not finite.
    """
    layout = prior.layout
    scales = recipe.guidance.scales(layout)
    given = class_ids.new_zeros(len(class_ids), 0) if given is None else given
    _check(prior, class_ids, recipe, seeds, given)
    guided = any(scale != 1.0 for scale in scales[given.shape[1] :])
    rows = torch.cat([class_ids, torch.full_like(class_ids, prior.null_class)]) if guided else class_ids
    repeat = 2 if guided else 1
    caches = prior.new_caches(len(rows))
    keys = image_keys(seeds, class_ids.device)
    targets = [given]
    # Inputs that the model has not seen yet; EOS joins the next prefill, since only one id is allowed there.
    pending, start = torch.cat([prior.begin(rows), prior.embed(given.repeat(repeat, 1))], dim=1), 0
    for step in range(given.shape[1], layout.length):
        segment = layout.segment(step)
        if segment.last_id - segment.first_id == 1:
            ids = torch.full_like(class_ids, segment.first_id)
        else:
            hidden = prior.hidden(pending, caches, start)[:, -1:]
            start += pending.shape[1]
            pending = pending[:, :0]
            logits = prior.logits(hidden, segment.first_id, segment.last_id)[:, 0]
            if guided:
                conditional, null = logits.chunk(2)
                logits = scales[step] * conditional + (1 - scales[step]) * null
            if not bool(torch.isfinite(logits).all()):
                raise SamplingError(
                    f"logits at position {step} are not finite in {prior.token_embedding.weight.dtype}: "
                    "the weights are damaged or this precision is too small; try dtype='fp32'"
                )
            noise = gumbel_noise(keys, step, segment.first_id, segment.last_id)
            temperature = recipe.segment_temperature(segment.name)
            ids = segment.first_id + draw(logits, noise, temperature, recipe.top_k, recipe.top_p)
        targets.append(ids[:, None])
        pending = torch.cat([pending, prior.embed(ids[:, None]).repeat(repeat, 1, 1)], dim=1)
    return torch.cat(targets, dim=1)


def _check(prior: Prior, class_ids: Tensor, recipe: Recipe, seeds: list[int], given: Tensor) -> None:
    prior.check_classes(class_ids)
    if len(seeds) != len(class_ids):
        raise SamplingError(f"{len(class_ids)} images need as many seeds, not {len(seeds)}")
    if recipe.guidance.active and bool((class_ids == prior.null_class).any()):
        raise SamplingError(
            "guidance needs a class to lean on, and some images ask for the null class: "
            "give every image a class, or leave guidance out"
        )
    if given.shape[1] > prior.layout.length or given.shape[0] != len(class_ids):
        raise SamplingError(
            f"given ids {tuple(given.shape)} do not fit {len(class_ids)} images of {prior.layout.length} positions"
        )
