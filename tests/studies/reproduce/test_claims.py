"""Claims on planted results: pairing, thresholds, and words that go no further than the verdict."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from prologue.studies.reproduce.claims import Claim, headline, judge_claims, sentence
from prologue.studies.reproduce.verdicts import estimate

Make = Callable[..., Any]


def _claims(*results: Any) -> dict[str, Claim]:
    return {claim.key: claim for claim in judge_claims(dict(results))}


def test_few_images_are_judged_by_the_paired_kernel_distance(make: Make) -> None:
    base, ours = (3.0, 3.2, 3.1), (1.0, 1.1, 1.0)
    claims = _claims(
        *(make("2d", seed, unguided__kid=value) for seed, value in enumerate(base)),
        *(make("prologue", seed, unguided__kid=value) for seed, value in enumerate(ours)),
    )
    claim = claims["closer-1.5"]
    assert not claim.logarithmic
    assert list(claim.by_seed.values()) == pytest.approx([1.5, 1.55, 1.6])
    assert claim.outcome == "confirmed"
    assert "KID-X" in claim.text
    record = claim.record()
    assert record["value"] == pytest.approx(1.55)
    assert (record["low"], record["high"]) == pytest.approx((1.55 - 0.12421, 1.55 + 0.12421), abs=1e-4)


def test_many_images_are_judged_by_the_ratio_of_frechet_distances(make: Make) -> None:
    claims = _claims(
        *(make("2d", seed, n=10_000, unguided__fd=value) for seed, value in enumerate((30.0, 33.0, 36.0))),
        *(make("prologue", seed, n=10_000, unguided__fd=value) for seed, value in enumerate((15.0, 15.0, 15.0))),
    )
    claim = claims["closer-1.5"]
    assert claim.logarithmic
    found = estimate([math.log(2.0), math.log(2.2), math.log(2.4)])
    assert found.low is not None
    assert claim.record()["value"] == pytest.approx(math.exp(found.mean))
    assert claim.record()["low"] == pytest.approx(math.exp(found.low))
    assert claim.outcome == "confirmed"


def test_one_side_with_few_images_is_enough_for_the_kernel_distance(make: Make) -> None:
    assert not _claims(make("2d", 0, n=10_000), make("prologue", 0, n=9_999))["closer-1.5"].logarithmic


def test_seeds_are_paired_and_unpaired_ones_left_out(make: Make) -> None:
    # Seeds differ far more than variants do: unpaired, nothing could be said.
    base = {0: 100.0, 1: 10.0, 2: 55.0, 5: 1.0}
    claims = _claims(
        *(make("2d", seed, unguided__kid=value) for seed, value in base.items()),
        *(make("prologue", seed, unguided__kid=value - 0.5 - 0.01 * seed) for seed, value in base.items() if seed < 5),
        make("prologue", 7, unguided__kid=0.0),
    )
    claim = claims["closer-1"]
    assert sorted(claim.by_seed) == [0, 1, 2]
    assert list(claim.by_seed.values()) == pytest.approx([0.5, 0.51, 0.52])
    assert claim.outcome == "confirmed"
    assert claims["closer-1.5"].outcome != "confirmed"


@pytest.mark.parametrize(
    ("ratios", "outcome"),
    [((1.0, 1.01, 0.99), "confirmed"), ((1.04, 1.05, 1.03), "undecided"), ((1.3, 1.31, 1.29), "refuted")],
)
def test_reconstruction_is_judged_by_the_upper_end(make: Make, ratios: tuple[float, ...], outcome: str) -> None:
    claims = _claims(
        *(make("2d", seed, reconstruction__fd=10.0) for seed in range(3)),
        *(make("prologue", seed, reconstruction__fd=10.0 * ratio) for seed, ratio in enumerate(ratios)),
    )
    claim = claims["reconstruction"]
    assert claim.outcome == outcome
    assert claim.record()["threshold"] == pytest.approx(1.05)
    assert claim.notes == ("the ratio of distances of only 2048 reconstructions is nearer to 1 than that of many",)


@pytest.mark.slow
def test_the_effect_needs_both_parts(make: Make) -> None:
    def effect(kid: tuple[float, ...], rfd: float) -> str | None:
        results = dict(
            [make("2d", seed, unguided__kid=3.0) for seed in range(3)]
            + [make("prologue", s, unguided__kid=k, reconstruction__fd=rfd) for s, k in enumerate(kid)]
        )
        return headline(judge_claims(results))

    assert effect((1.0, 1.1, 1.05), 10.0) == "confirmed"
    assert effect((1.0, 1.1, 1.05), 12.0) == "refuted"
    assert effect((1.0, 3.0, 2.0), 10.0) == "undecided"
    assert headline(judge_claims(dict([make("2d", 0)]))) is None


def test_probes_and_layouts(make: Make) -> None:
    claims = _claims(
        *(make("1d", seed, probe__visual_first=0.2) for seed in range(3)),
        *(make("2d", seed, probe__visual_first=0.39) for seed in range(3)),
        *(
            make("prologue", seed, probe__prologue=0.4 + 0.001 * seed, probe__prologue_low=0.3,
                 layout__coarse_ratio=0.6 + 0.01 * seed)
            for seed in range(3)
        ),
    )  # fmt: skip
    assert claims["probe-1d"].outcome == "confirmed"
    assert claims["probe-2d"].outcome == "refuted"
    assert claims["layout"].outcome == "confirmed"
    assert claims["layout"].record()["value"] == pytest.approx((0.6 * 0.61 * 0.62) ** (1 / 3))
    assert not claims["probe-1d"].notes


def test_what_is_at_chance_or_missing_is_said(make: Make) -> None:
    claims = _claims(
        make("1d", 0),
        make("prologue", 0, probe__prologue=0.13, probe__prologue_low=0.1, layout__coarse_ratio=None,
             likelihood__collapsed=True),
    )  # fmt: skip
    assert claims["probe-1d"].notes == ("the probe of the prologue of prologue is not above chance for seed 0",)
    assert claims["layout"].verdict is None
    assert {"seed 0 has no ratio of layouts", "the prologue of seed 0 has collapsed"} == set(claims["layout"].notes)
    assert sentence(claims["layout"]).startswith("Undecided, because no seed can be compared")


def test_a_baseline_at_chance_is_said(make: Make) -> None:
    ours = make("prologue", 0, probe__prologue=0.4, probe__prologue_low=0.3)
    claims = _claims(make("2d", 0, probe__visual_first=0.13, probe__visual_first_low=0.1), ours)
    said = "the probe of the first visual tokens of 2d is not above chance for seed 0"
    assert claims["probe-2d"].notes == (said,)


def test_what_holds_by_construction_is_no_claim(make: Make) -> None:
    """The visual tokens of `prologue-post` are those of its 2d."""
    claims = judge_claims(dict([make("2d", 0), make("prologue", 0), make("prologue-post", 0)]))
    assert [claim.ours for claim in claims if claim.key == "reconstruction"] == ["prologue"]


def test_a_distance_that_is_not_positive_has_no_ratio(make: Make) -> None:
    claim = _claims(make("2d", 0, reconstruction__fd=-1e-9), make("prologue", 0))["reconstruction"]
    assert claim.verdict is None
    assert claim.notes == ("seed 0 has no ratio of this figure",)


def test_sentences_say_no_more_than_the_verdict(make: Make) -> None:
    def said(*ours: float) -> str:
        claims = _claims(
            *(make("2d", seed, unguided__kid=3.0) for seed in range(len(ours))),
            *(make("prologue", seed, unguided__kid=value) for seed, value in enumerate(ours)),
        )
        return sentence(claims["closer-1"])

    assert said(1.0, 1.1, 1.05).startswith("Confirmed over 3 seeds: unguided samples are closer")
    assert said(5.0, 5.1, 5.05).startswith("Refuted over 3 seeds")
    one = said(1.0)
    assert one.startswith("Undecided over 1 seed")
    assert "One seed has no interval" in one
    some = said(1.0, 4.0, 2.0)
    assert some.startswith("Undecided over 3 seeds")
    assert "seeds would decide it with the same mean and deviation" in some
    assert "Even very many seeds" in said(2.0, 4.0, 3.0)
