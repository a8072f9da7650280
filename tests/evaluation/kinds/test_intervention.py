"""Exchanges of prologue tokens: against one image at a time, and on a prior that cannot see them."""

from __future__ import annotations

import pytest
import torch

from prologue.errors import EvaluationError
from prologue.evaluation.kinds.intervention import (
    Intervened,
    Pairs,
    change_maps,
    evaluate_intervention,
    intervene,
    mean_maps,
)
from prologue.models.tokenizer import to_uint8
from prologue.sampling.decode import sample_sequences
from prologue.sampling.guidance import Guidance
from prologue.sampling.recipe import Recipe

PAIRS = Pairs(
    torch.tensor([[0, 1, 2], [3, 4, 5], [6, 7, 0], [1, 1, 1]]),
    torch.tensor([[5, 1, 3], [2, 4, 6], [0, 7, 7], [4, 2, 0]]),
    torch.tensor([0, 1, 2, 0]),
)
RECIPE = Recipe(Guidance.overall("constant", 1.5), temperature=0.8)


def alone(tokenizer, prior, prologue: list[int], class_id: int, seed: int) -> torch.Tensor:
    given = prior.layout.pack_prologue(torch.tensor([prologue]))
    ids = sample_sequences(prior, torch.tensor([class_id]), RECIPE, [seed], given)
    return to_uint8(tokenizer.decode(prior.layout.unpack(ids).visual))[0]


def alike(images: torch.Tensor, others: torch.Tensor) -> bool:
    """The same ids decoded in batches of different sizes: products round differently, so a level may."""
    return int((images.int() - others.int()).abs().max()) <= 1


def test_every_image_is_the_one_sampled_alone(tiny_models) -> None:
    tokenizer, prior = tiny_models()
    images = intervene(tokenizer, prior, RECIPE, PAIRS, seed=5, batch=3)
    assert images.after.shape == (3, 4, 3, 8, 12)
    for row in range(4):
        own, partner = PAIRS.prologue[row].tolist(), PAIRS.partner[row].tolist()
        class_id, seed = int(PAIRS.class_ids[row]), 5 + row
        assert alike(images.before[row], alone(tokenizer, prior, own, class_id, seed))
        assert alike(images.whole[row], alone(tokenizer, prior, partner, class_id, seed))
        for position in range(3):
            mixed = [*own[:position], partner[position], *own[position + 1 :]]
            assert alike(images.after[position, row], alone(tokenizer, prior, mixed, class_id, seed))
    assert not alike(images.resampled, images.before)
    # The codes at position 1 are alike in all pairs but the last.
    assert alike(images.after[1, :3], images.before[:3])


def test_a_prior_that_is_blind_to_the_prologue_shows_no_effect(tiny_models) -> None:
    tokenizer, prior = tiny_models()
    first = prior.layout.prologue_offset
    with torch.no_grad():
        prior.token_embedding.weight[first : first + 8] = prior.token_embedding.weight[first]
    images = intervene(tokenizer, prior, Recipe(), PAIRS)
    record = evaluate_intervention(images, PAIRS, Recipe())
    assert record["whole"] == 0
    assert [part["effect"] for part in record["positions"]] == [0, 0, 0]
    assert record["resampled_low"] > 0
    assert record["whole_beyond_resampled_high"] < 0


def test_figures_by_hand() -> None:
    before = torch.zeros(4, 3, 2, 2, dtype=torch.uint8)
    after = before.expand(3, 4, 3, 2, 2).clone()
    after[0, 0, :, 0, 0] = 40  # a quarter of the pixels of one pair: 10 there, 2.5 over the four pairs
    after[2, :, 0] = 6  # one of three colours everywhere: 2 in every pair
    whole, resampled = before + 30, before + 20
    images = Intervened(before, after, whole, resampled)
    record = evaluate_intervention(images, PAIRS, RECIPE, seed=7)
    assert (record["n"], record["whole"], record["resampled"], record["whole_beyond_resampled"]) == (4, 30, 20, 10)
    assert [part["effect"] for part in record["positions"]] == pytest.approx([2.5, 0, 2])
    assert [part["differ"] for part in record["positions"]] == [4, 1, 4]
    assert record["positions"][1]["effect_differing_low"] is None
    assert record["largest"] == 0
    assert record["recipe"] == RECIPE.to_dict()
    maps = mean_maps(images)
    assert maps["positions"][0].tolist() == [[10, 0], [0, 0]]
    assert maps["whole"].tolist() == [[30, 30], [30, 30]]
    # Unsigned pixels would wrap.
    assert float(change_maps(whole, before).mean()) == 30


def test_a_prior_without_prologue_is_refused(tiny_models) -> None:
    tokenizer, prior = tiny_models(prior_prologue=False)
    with pytest.raises(EvaluationError, match="has no prologue"):
        intervene(tokenizer, prior, Recipe(), PAIRS)
