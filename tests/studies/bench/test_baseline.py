"""The baseline computes what the package computes, only slower."""

from __future__ import annotations

import pytest
import torch

from prologue.models.tokenizer import to_uint8
from prologue.pipeline import Pipeline
from prologue.sampling.guidance import Guidance
from prologue.studies.bench.baseline import baseline_images, baseline_sequences
from prologue.studies.bench.sampling import GUIDANCE


@pytest.mark.parametrize("guidance", [Guidance.none(), GUIDANCE], ids=["unguided", "guided"])
@pytest.mark.parametrize("prologue", [True, False], ids=["prologue", "plain"])
def test_greedy_ids_are_those_of_the_package(tiny_models, guidance: Guidance, prologue: bool) -> None:
    tokenizer, prior = tiny_models(prior_prologue=prologue)
    class_ids = torch.tensor([0, 2, 1])
    ids = baseline_sequences(prior, class_ids, guidance, greedy=True)
    expected = Pipeline(tokenizer, prior).sample(class_ids, guidance=guidance, top_k=1)
    assert torch.equal(ids, prior.layout.pack(expected))


def test_draws_follow_the_probabilities_of_the_first_position(tiny_models) -> None:
    _, prior = tiny_models()
    class_ids = torch.full((4000,), 1)
    ids = baseline_sequences(prior, class_ids, Guidance.none(), seed=5, positions=1)[:, 0]
    segment = prior.layout.segments[0]
    begin = prior.hidden(prior.begin(class_ids[:1])).detach()
    expected = prior.logits(begin, segment.first_id, segment.last_id)[0, 0].detach().softmax(-1) * len(ids)
    seen = torch.bincount(ids - segment.first_id, minlength=len(expected))
    assert float(((seen - expected) ** 2 / expected).sum()) < 24.3  # chi-square, 7 degrees of freedom, p = 0.001


def test_a_warm_up_stops_early_and_draws_repeat(tiny_models) -> None:
    _, prior = tiny_models()
    short, again, whole = (
        baseline_sequences(prior, torch.tensor([0, 1]), GUIDANCE, seed=3, positions=count) for count in (2, 2, None)
    )
    assert torch.equal(short, again)
    assert torch.equal(short, whole[:, :2])
    assert whole.shape == (2, prior.layout.length)
    prior.layout.unpack(whole)  # every id in its segment, EOS in its place


def test_pixels_are_those_of_the_decoder(tiny_models) -> None:
    tokenizer, _ = tiny_models()
    visual = torch.arange(12).reshape(2, 6)
    assert torch.equal(baseline_images(tokenizer, visual), to_uint8(tokenizer.decode(visual)))
