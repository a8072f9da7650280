"""The decode loop against a reference without cache or segments, and what a result may depend on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prologue.errors import SamplingError
from prologue.models.prior import Prior
from prologue.sampling.decode import sample_sequences
from prologue.sampling.draw import filter_logits, gumbel_noise, image_keys
from prologue.sampling.guidance import Guidance
from prologue.sampling.recipe import Recipe

NEAR_TIE = 1e-4
SPLIT = Guidance.split(prologue=("constant", 0.7), visual=("cosine", 3.75, 0.2))
RECIPES = {
    "plain": Recipe(),
    "temperatures": Recipe(temperature=0.6, prologue_temperature=1.7),
    "top-k": Recipe(top_k=3),
    "top-p": Recipe(top_p=0.6),
    "overall": Recipe(Guidance.overall("linear", 3.0), top_k=9, top_p=0.9),
    "split": Recipe(SPLIT, temperature=0.9),
    "split linear": Recipe(Guidance.split(("linear", 2.0), ("linear", 4.0)), prologue_temperature=0.8),
    "greedy": Recipe(SPLIT, top_k=1),
}


@torch.no_grad()
def reference(
    prior: Prior,
    classes: Tensor,
    recipe: Recipe,
    seeds: list[int],
    given: Tensor | None = None,
    known: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Sequences by a whole forward pass for each step over the whole vocabulary, and each step's lead (B, T).

    `given` is a prefix, or whole sequences with a mask `known` (B, T).
    """
    layout = prior.layout
    start = 0 if given is None or known is not None else given.shape[1]
    sequence = torch.zeros(len(classes), layout.length, dtype=torch.int64)
    lead = torch.full((len(classes), layout.length), torch.inf)
    if given is not None:
        sequence[:, :start] = given[:, :start]
    null, scales, allowed = torch.full_like(classes, prior.null_class), recipe.guidance.scales(layout), layout.allowed()
    for step in range(start, layout.length):
        logits = prior(sequence, classes)[:, step]
        if recipe.guidance.active:
            logits = scales[step] * logits + (1 - scales[step]) * prior(sequence, null)[:, step]
        in_prologue = step < layout.prologue_tokens and recipe.prologue_temperature is not None
        logits = logits / (recipe.prologue_temperature if in_prologue else recipe.temperature)
        logits = filter_logits(logits.masked_fill(~allowed[step], -torch.inf), recipe.top_k, recipe.top_p)
        perturbed = logits + gumbel_noise(image_keys(seeds), step, 0, layout.vocabulary)
        best = perturbed.topk(2).values
        lead[:, step] = best[:, 0] - best[:, 1]
        sequence[:, step] = perturbed.argmax(-1)
        if given is not None and known is not None:
            sequence[:, step] = torch.where(known[:, step], given[:, step], sequence[:, step])
            lead[known[:, step], step] = torch.inf
    return sequence, lead


def assert_equal_up_to_near_ties(actual: Tensor, expected: Tensor, lead: Tensor) -> None:
    for row in range(len(actual)):
        ties = (lead[row] < NEAR_TIE).nonzero()
        stop = int(ties[0]) if len(ties) else actual.shape[1]
        assert actual[row, :stop].tolist() == expected[row, :stop].tolist(), row


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("shape", ["prologue", "none", "tied", "one class"])
def test_cached_equals_uncached(tiny_models, name: str, shape: str) -> None:
    options = {
        "prologue": {},
        "none": {"variant": "2d"},
        "tied": {"tied": True},
        "one class": {"num_classes": 1, "image_size": (4, 8)},
    }[shape]
    _, prior = tiny_models(**options)
    seeds = [3, 3, 11, -2]
    classes = torch.arange(4) % prior.num_classes
    expected, lead = reference(prior, classes, RECIPES[name], seeds)
    actual = sample_sequences(prior, classes, RECIPES[name], seeds)
    assert (lead > NEAR_TIE).float().mean() > 0.9
    assert_equal_up_to_near_ties(actual, expected, lead)


@pytest.mark.parametrize("given", [0, 1, 3, 4, 6, 10])
def test_given_tokens_are_kept_and_continued_as_by_the_reference(tiny_models, given: int) -> None:
    _, prior = tiny_models()
    seeds, classes = [4, 5], torch.tensor([0, 2])
    prefix = sample_sequences(prior, classes, Recipe(), [90, 91])[:, :given]
    expected, lead = reference(prior, classes, RECIPES["split"], seeds, prefix)
    actual = sample_sequences(prior, classes, RECIPES["split"], seeds, prefix)
    assert torch.equal(actual[:, :given], prefix)
    assert_equal_up_to_near_ties(actual, expected, lead)


@pytest.mark.parametrize("name", ["plain", "split", "top-p"])
def test_a_batch_equals_singles(tiny_models, name: str) -> None:
    _, prior = tiny_models(image_size=(12, 8))
    classes, seeds = torch.arange(6) % 3, [7, 7, 8, 100, 0, 2**40]
    batch = sample_sequences(prior, classes, RECIPES[name], seeds)
    singles = [
        sample_sequences(prior, classes[i : i + 1], RECIPES[name], seeds[i : i + 1])[0] for i in range(len(classes))
    ]
    assert torch.equal(batch, torch.stack(singles))
    assert len({tuple(row) for row in batch.tolist()}) == 6


def test_eos_stands_in_its_place_alone_however_likely(tiny_models) -> None:
    _, prior = tiny_models()
    with torch.no_grad():
        prior.out.weight[prior.layout.eos_id] *= 100
    sequence = sample_sequences(prior, torch.arange(24) % 3, Recipe(temperature=5.0), list(range(24)))
    expected = torch.arange(prior.layout.length) == prior.layout.prologue_tokens
    assert torch.equal(sequence == prior.layout.eos_id, expected.expand(24, -1))
    prior.layout.unpack(sequence)


def test_temperatures_act_on_their_own_segment(tiny_models) -> None:
    """A nearly frozen segment is the greedy one, while the other still varies."""
    _, prior = tiny_models()
    layout, seeds = prior.layout, list(range(12))
    classes = torch.zeros(12, dtype=torch.int64)
    frozen = sample_sequences(prior, classes, Recipe(prologue_temperature=1e-5), seeds)
    greedy = sample_sequences(prior, classes[:1], Recipe(top_k=1), [0])
    assert torch.equal(frozen[:, : layout.visual_start], greedy[:, : layout.visual_start].expand(12, -1))
    assert len({tuple(row) for row in frozen[:, layout.visual_start :].tolist()}) > 1
    free = sample_sequences(prior, classes, Recipe(temperature=1e-5, prologue_temperature=1.0), seeds)
    assert len({tuple(row) for row in free[:, : layout.prologue_tokens].tolist()}) > 1
    for row in free:
        again = sample_sequences(prior, classes[:1], Recipe(top_k=1), [0], row[None, : layout.visual_start])
        assert torch.equal(again[0], row)


def test_no_classes_at_all(tiny_models) -> None:
    _, prior = tiny_models(num_classes=0)
    sequence = sample_sequences(prior, torch.zeros(3, dtype=torch.int64), Recipe(), [0, 1, 2])
    assert len(prior.layout.unpack(sequence)) == 3


def test_sampling_leaves_the_global_generator_alone(tiny_models) -> None:
    _, prior = tiny_models()
    before = torch.get_rng_state()
    sample_sequences(prior, torch.tensor([0]), Recipe(), [0])
    assert torch.equal(torch.get_rng_state(), before)


def test_impossible_requests(tiny_models) -> None:
    _, prior = tiny_models()
    one = torch.tensor([0])
    with pytest.raises(SamplingError, match="null class"):
        sample_sequences(prior, torch.tensor([0, 3]), Recipe(SPLIT), [0, 1])
    with pytest.raises(SamplingError, match="0…3"):
        sample_sequences(prior, torch.tensor([4]), Recipe(), [0])
    with pytest.raises(SamplingError, match="seeds"):
        sample_sequences(prior, one, Recipe(), [0, 1])
    with pytest.raises(SamplingError, match="positions"):
        sample_sequences(prior, one, Recipe(), [0], torch.zeros(1, 11, dtype=torch.int64))
    with torch.no_grad():
        prior.out_norm.weight.fill_(torch.nan)
    with pytest.raises(SamplingError, match="not finite"):
        sample_sequences(prior, one, Recipe(), [0])
