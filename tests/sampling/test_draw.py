"""Noise and filters: the draws follow the exact probabilities, whatever the seed, position or batch."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from prologue.sampling.draw import DrawRule, draw, filter_logits, gumbel_noise, image_keys
from prologue.sampling.recipe import Recipe

LOGITS = [2.0, 1.5, 0.3, 0.0, -0.5, -1.0, -2.0]
DRAWS = 20_000


def softmax(logits: list[float]) -> list[float]:
    weights = [math.exp(value) for value in logits]
    return [weight / sum(weights) for weight in weights]


def exact(temperature: float, top_k: int | None, top_p: float | None) -> list[float]:
    """Probabilities by METHOD §9 in plain Python: temperature, then top-k, then top-p, the crossing id kept."""
    probabilities = dict(enumerate(softmax([value / temperature for value in LOGITS])))
    order = sorted(probabilities, key=lambda index: -probabilities[index])
    kept = order[:top_k]
    if top_p is not None:
        total, mass, nucleus = sum(probabilities[index] for index in kept), 0.0, []
        for index in kept:
            nucleus.append(index)
            mass += probabilities[index] / total
            if mass > top_p:
                break
        kept = nucleus
    total = sum(probabilities[index] for index in kept)
    return [probabilities[index] / total if index in kept else 0.0 for index in range(len(LOGITS))]


@pytest.mark.parametrize("position", [0, 7])
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, None, None), (0.5, None, None), (2.0, None, None), (1.0, 3, None), (1.0, None, 0.7), (1.3, 5, 0.8)],
)
def test_draws_follow_the_exact_probabilities(
    position: int, temperature: float, top_k: int | None, top_p: float | None
) -> None:
    noise = gumbel_noise(image_keys(list(range(DRAWS))), position, 0, len(LOGITS))
    ids = draw(torch.tensor(LOGITS).expand(DRAWS, -1), noise, temperature, top_k, top_p)
    counts = torch.bincount(ids, minlength=len(LOGITS)).tolist()
    expected = exact(temperature, top_k, top_p)
    kept = [index for index, probability in enumerate(expected) if probability > 0]
    assert sum(counts[index] for index in kept) == DRAWS
    assert len(kept) == 1 or chisquare([counts[i] for i in kept], [DRAWS * expected[i] for i in kept]).pvalue > 1e-3


def test_positions_and_ids_are_independent() -> None:
    keys = image_keys(list(range(DRAWS)))
    noise = torch.cat([gumbel_noise(keys, position, 0, 4) for position in (0, 1, 40)], dim=1)
    correlation = torch.corrcoef(noise.T) - torch.eye(12)
    assert correlation.abs().max() < 5 / math.sqrt(DRAWS)
    assert abs(noise.mean().item() - 0.5772) < 0.01
    assert abs(noise.var().item() - math.pi**2 / 6) < 0.02


def test_noise_depends_on_seed_position_and_id_alone() -> None:
    whole = gumbel_noise(image_keys([5, 6, 7]), 3, 0, 50)
    assert torch.equal(gumbel_noise(image_keys([7]), 3, 20, 30)[0], whole[2, 20:30])
    assert not torch.equal(gumbel_noise(image_keys([7]), 4, 0, 50)[0], whole[2])
    assert torch.isfinite(gumbel_noise(image_keys([0]), 0, 0, 200_000)).all()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=12),
    st.integers(1, 14),
    st.floats(0.01, 1.0),
)
def test_filters_keep_the_best_and_never_everything_away(values: list[float], top_k: int, top_p: float) -> None:
    logits = torch.tensor([values])
    filtered = filter_logits(logits, top_k, top_p)
    kept = torch.isfinite(filtered[0])
    assert kept[logits.argmax()]
    assert torch.equal(filtered[0][kept], logits[0][kept])
    assert logits[0][kept].min() >= logits[0][~kept].max() if bool((~kept).any()) else True
    assert int(kept.sum()) <= max(top_k, values.count(sorted(values)[-min(top_k, len(values))]) + top_k)


def test_top_p_keeps_the_id_that_crosses() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    assert torch.isfinite(filter_logits(logits, None, 0.45)).tolist() == [[True, False, False]]
    assert torch.isfinite(filter_logits(logits, None, 0.6)).tolist() == [[True, True, False]]
    assert torch.isfinite(filter_logits(logits, None, 1.0)).all()


def test_top_p_counts_the_mass_that_top_k_left() -> None:
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    # Of the best two the first has 4/7 of the mass, so 0.5 is crossed at once; of all four it would have 0.4.
    assert torch.isfinite(filter_logits(logits, 2, 0.5)).tolist() == [[True, False, False, False]]
    assert torch.isfinite(filter_logits(logits, None, 0.5)).tolist() == [[True, True, False, False]]


def test_rows_have_limits_of_their_own() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 0.0]]).expand(4, -1)
    limits = [(1, None, 1.0), (3, 0.5, 2.0), (None, 0.9, 0.3), (None, None, 1.0)]
    noise = gumbel_noise(image_keys([1, 2, 3, 4]), 0, 0, 4)
    noise[0, 2] = 9.0  # top_k = 1 takes the first of equal logits, without noise
    rule = DrawRule.of([Recipe(top_k=k, top_p=p, temperature=t) for k, p, t in limits], "visual", torch.device("cpu"))
    together = draw(logits, noise, rule.temperature, rule.top_k, rule.top_p)
    alone = [draw(logits[:1], noise[i : i + 1], t, k, p) for i, (k, p, t) in enumerate(limits)]
    assert together.tolist() == torch.cat(alone).tolist()
    assert together[0] == 1
    assert rule.filtered == [True, True, True, False]
