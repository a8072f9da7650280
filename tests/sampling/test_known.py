"""Known tokens at any positions, and a recipe for each row, against the reference without a cache."""

from __future__ import annotations

import pytest
import torch
from tests.sampling.test_decode import RECIPES, assert_equal_up_to_near_ties, reference
from torch import Tensor

from prologue import TokenIds
from prologue.errors import SamplingError
from prologue.models.prior import Prior
from prologue.sampling.decode import sample_sequences
from prologue.sampling.engine import Engine
from prologue.sampling.known import Known
from prologue.sampling.recipe import Recipe

SEEDS = [3, 3, 11, -2]
CLASSES = torch.tensor([0, 1, 2, 0])


def random_known(prior: Prior, share: float = 0.5) -> tuple[Known, Tensor, Tensor]:
    """Known tokens at other positions in each row; the ids of the unknown ones are outside any codebook."""
    stream = torch.Generator().manual_seed(5)
    ids = sample_sequences(prior, CLASSES, Recipe(), [90, 91, 92, 93])
    tokens = prior.layout.unpack(ids)
    masks = [torch.rand(part.shape, generator=stream) < share for part in (tokens.prologue, tokens.visual)]
    hidden = [torch.where(mask, part, -7) for mask, part in zip(masks, (tokens.prologue, tokens.visual), strict=True)]
    known = Known(TokenIds(*hidden), *masks)
    return known, ids, known.pack(prior.layout)[1]


@pytest.mark.parametrize("name", ["plain", "split", "greedy"])
@pytest.mark.parametrize("one_shape", [False, True])
@pytest.mark.parametrize("options", [{}, {"variant": "2d"}])
def test_known_tokens_stay_and_the_others_depend_on_them(
    tiny_models, name: str, one_shape: bool, options: dict[str, str]
) -> None:
    _, prior = tiny_models(**options)
    known, ids, mask = random_known(prior)
    expected, lead = reference(prior, CLASSES, RECIPES[name], SEEDS, ids, mask)
    actual = sample_sequences(prior, CLASSES, RECIPES[name], SEEDS, known, None, one_shape)
    assert torch.equal(actual[mask], ids[mask])
    assert 0.2 < mask.float().mean() < 0.8
    assert_equal_up_to_near_ties(actual, expected, lead)
    free = sample_sequences(prior, CLASSES, RECIPES[name], SEEDS)
    assert not torch.equal(actual[~mask], free[~mask])


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_an_images_own_tokens_and_seed_give_the_image_again(tiny_models, share: float) -> None:
    """The noise of a drawn position does not depend on what is known."""
    _, prior = tiny_models()
    ids = sample_sequences(prior, CLASSES, RECIPES["split"], SEEDS)
    masks = random_known(prior, share)[0]
    known = Known(prior.layout.unpack(ids), masks.prologue, masks.visual)
    assert torch.equal(sample_sequences(prior, CLASSES, RECIPES["split"], SEEDS, known), ids)


def test_a_prefix_is_known_tokens(tiny_models) -> None:
    _, prior = tiny_models()
    ids = sample_sequences(prior, CLASSES, Recipe(), [90, 91, 92, 93])
    known = Known(prior.layout.unpack(ids), visual=torch.tensor([True, True, False, False, False, False]))
    engines = [Counting(prior), Counting(prior)]
    drawn = [
        sample_sequences(prior, CLASSES, Recipe(), SEEDS, given, engine)
        for given, engine in zip((known, ids[:, :6]), engines, strict=True)
    ]
    assert torch.equal(*drawn)
    assert engines[0].passes == engines[1].passes == [(4, 7), (4, 1), (4, 1), (4, 1)]


class Counting(Engine):
    """Records (rows, positions) of every pass."""

    def __init__(self, prior: Prior) -> None:
        super().__init__(prior)
        self.passes: list[tuple[int, int]] = []

    def _run(self, cache, x, start):
        self.passes.append((len(x), x.shape[1]))
        return super()._run(cache, x, start)


def passes(prior: Prior, known: Known | None, one_shape: bool, recipe: str = "plain") -> list[tuple[int, int]]:
    engine = Counting(prior)
    sample_sequences(prior, CLASSES, RECIPES[recipe], SEEDS, known, engine, one_shape)
    return engine.passes


def test_passes_of_one_shape_do_not_depend_on_the_other_rows(tiny_models) -> None:
    _, prior = tiny_models()  # a prologue of 3, EOS, 6 visual ids
    tokens = prior.layout.unpack(sample_sequences(prior, CLASSES, Recipe(), SEEDS))
    runs = torch.tensor([False, True, True, False, False, True])
    # Known in every row: the ids join the next pass, and nothing follows the last drawn position.
    assert passes(prior, Known(tokens, visual=runs), False) == [(4, 5), (4, 3), (4, 1)]
    other = runs.repeat(4, 1)
    other[2] = torch.tensor([False, True, False, True, False, False])
    alike, mixed = (passes(prior, Known(tokens, visual=mask), True) for mask in (runs, other))
    assert alike == [(4, 5), *[(4, 1)] * 4]
    assert mixed == [*alike, (4, 1)]  # one row also draws the last position
    assert passes(prior, None, True) == [(4, 1)] * 3 + [(4, 2)] + [(4, 1)] * 5
    same = [passes(prior, Known(tokens), True, recipe) for recipe in ("overall", "split")]
    assert same[0] == same[1] == [(8, 5), *[(8, 1)] * 5]
    # Equal rows are computed once elsewhere.
    assert passes(prior, None, False)[0] == (3, 1)


@pytest.mark.parametrize("names", [list(RECIPES)[:4], list(RECIPES)[4:]])
@pytest.mark.parametrize("one_shape", [False, True])
def test_each_row_has_its_own_recipe(tiny_models, names: list[str], one_shape: bool) -> None:
    _, prior = tiny_models()
    recipes = [RECIPES[name] for name in names]
    drawn = sample_sequences(prior, CLASSES, recipes, SEEDS, None, None, one_shape)
    for row, recipe in enumerate(recipes):
        own = slice(row, row + 1)
        expected, lead = reference(prior, CLASSES[own], recipe, SEEDS[own])
        assert_equal_up_to_near_ties(drawn[own], expected, lead)
    assert len({tuple(row) for row in drawn.tolist()}) == 4


def test_impossible_known_tokens(tiny_models) -> None:
    _, prior = tiny_models()
    tokens = prior.layout.unpack(sample_sequences(prior, CLASSES, Recipe(), SEEDS))
    for arguments, named in (
        ((tokens.visual,), "known tokens are TokenIds, not Tensor"),
        ((tokens, torch.ones(4, 3)), "prologue mask is a bool tensor, not torch.float32"),
        ((tokens, True, torch.ones(5, dtype=torch.bool)), r"visual mask has shape \(5,\)"),
        ((TokenIds([[0]], [[0]]),), "prologue ids are an int64 tensor, not list"),
    ):
        with pytest.raises(SamplingError, match=named):
            Known(*arguments)
    for known, named in (
        (Known(tokens[:2]), "known tokens of 2 images do not fit 4 images"),
        (Known(tokens.without_prologue()), "expected 3 prologue ids"),
        (Known(TokenIds(tokens.prologue + 8, tokens.visual)), "prologue id .* lies outside its codebook 0…7"),
    ):
        with pytest.raises(SamplingError, match=named):
            sample_sequences(prior, CLASSES, Recipe(), SEEDS, known)
    with pytest.raises(SamplingError, match="4 images need as many recipes, not 1"):
        sample_sequences(prior, CLASSES, [Recipe()], SEEDS)
