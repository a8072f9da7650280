"""Likelihoods per image and segment, and what the prologue is measured to carry."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from prologue.errors import EvaluationError, SamplingError
from prologue.evaluation.codes import encode_images
from prologue.evaluation.kinds import likelihood
from prologue.evaluation.kinds.likelihood import evaluate_likelihood, segment_nats, shuffled_partners, token_nats
from prologue.evaluation.runs import true_classes
from prologue.models.sequence import TokenIds
from prologue.models.tokenizer import to_model_range
from prologue.training.losses import cross_entropy_terms
from prologue.utils.rng import torch_stream

SIZE = (8, 12)


def random_tokens(count: int, seed: int = 0) -> TokenIds:
    generator = torch_stream(seed, "tokens")
    return TokenIds(
        torch.randint(0, 8, (count, 3), generator=generator), torch.randint(0, 16, (count, 6), generator=generator)
    )


CLASSES = torch.arange(10) % 3


def test_sums_are_those_of_the_loss(tiny_models) -> None:
    _, prior = tiny_models()
    tokens = random_tokens(10)
    prior.train()
    nats = segment_nats(prior, token_nats(prior, tokens, CLASSES, batch=4))
    assert prior.training
    prior.eval()
    sequence = prior.layout.pack(tokens)
    terms = cross_entropy_terms(prior(sequence, CLASSES).detach(), sequence, prior.layout)
    for name, value in terms._asdict().items():
        assert nats[name].shape == (10,)
        assert nats[name].dtype == torch.float64
        assert float(nats[name].mean()) == pytest.approx(float(value) * prior.layout.length, rel=1e-5)
    with pytest.raises(SamplingError, match="class ids"):
        token_nats(prior, tokens, CLASSES + 2)


def test_figures_per_image(tiny_models) -> None:
    _, prior = tiny_models()
    tokens = random_tokens(10)
    record = evaluate_likelihood(prior, tokens, CLASSES, image_size=SIZE, batch=4)
    nats = segment_nats(prior, token_nats(prior, tokens, CLASSES))
    total = sum(nats.values())
    assert record["nats"] == pytest.approx(float(total.mean()))
    assert record["bits"] == pytest.approx(record["nats"] / math.log(2))
    assert record["token_bits_per_dimension"] == pytest.approx(record["bits"] / (8 * 12 * 3))
    assert record["nats_high"] - record["nats"] == pytest.approx(1.96 * float(total.std()) / 10**0.5, rel=1e-3)
    assert record["cost"] == pytest.approx(record["prologue_nats"] + record["eos_nats"])
    assert record["nats"] == pytest.approx(record["cost"] + record["visual_nats"])
    assert record["visual_bits"] == pytest.approx(record["visual_nats"] / math.log(2))
    assert (record["n"], record["split"], record["indicative"]) == (10, "validation", True)
    assert (record["gain"], record["baseline_visual_nats"]) == (None, None)


def test_bits_at_each_position(tiny_models) -> None:
    _, prior = tiny_models()
    _, baseline = tiny_models(prior_prologue=False)
    tokens = random_tokens(10)
    record = evaluate_likelihood(prior, tokens, CLASSES, image_size=SIZE, baseline=baseline, batch=4)
    sequence = prior.layout.pack(tokens)
    logits = prior(sequence, CLASSES).detach().double()
    exact = -logits.log_softmax(-1).gather(2, sequence[:, :, None])[:, :, 0] / math.log(2)
    assert record["position_bits"] == pytest.approx(exact.mean(0).tolist(), rel=1e-5)
    reach = 1.96 * exact.std(0) / 10**0.5
    assert record["position_bits_high"] == pytest.approx((exact.mean(0) + reach).tolist(), rel=1e-3)
    assert record["segments"] == {"prologue": [0, 3], "eos": [3, 4], "visual": [4, 10]}
    assert sum(record["position_bits"]) == pytest.approx(record["bits"])
    assert sum(record["position_baseline_bits"]) == pytest.approx(record["baseline_visual_nats"] / math.log(2))
    alone = evaluate_likelihood(prior, tokens, CLASSES, image_size=SIZE)
    assert alone["position_baseline_bits"] is None


def test_indicative_below_1024(tiny_models, monkeypatch: pytest.MonkeyPatch) -> None:
    assert likelihood.LIKELIHOOD_IMAGES == 1024
    for least, marked in ((10, False), (11, True)):
        monkeypatch.setattr(likelihood, "LIKELIHOOD_IMAGES", least)
        record = evaluate_likelihood(tiny_models()[1], random_tokens(10), CLASSES, image_size=SIZE)
        assert record["indicative"] is marked


def test_diversity_and_marginal_entropy(tiny_models) -> None:
    prologue = torch.tensor([[0, 1, 0], [1, 1, 1], [2, 1, 0], [3, 1, 1]])
    visual = torch.arange(4)[:, None].expand(4, 6)
    tokens = TokenIds(prologue, visual)
    record = evaluate_likelihood(tiny_models()[1], tokens, CLASSES[:4], image_size=SIZE)
    assert record["diversity"] == pytest.approx(math.log(4) + 0 + math.log(2))
    assert record["visual_entropy_per_token"] == pytest.approx(math.log(4))
    assert record["visual_entropy"] == pytest.approx(6 * math.log(4))


def test_use_is_what_wrong_prologues_cost(tiny_models) -> None:
    _, prior = tiny_models()
    tokens = random_tokens(10)
    record = evaluate_likelihood(prior, tokens, CLASSES, image_size=SIZE, seed=5)
    wrong = TokenIds(tokens.prologue[shuffled_partners(10, 5)], tokens.visual)
    right = segment_nats(prior, token_nats(prior, tokens, CLASSES))["visual"]
    difference = segment_nats(prior, token_nats(prior, wrong, CLASSES))["visual"] - right
    assert record["use"] == pytest.approx(float(difference.mean()))
    assert record["use_high"] - record["use_low"] == pytest.approx(
        2 * 1.96 * float(difference.std()) / 10**0.5, rel=1e-3
    )
    # A prior that cannot see the prologue makes no use of it, which is a collapse.
    with torch.no_grad():
        rows = prior.token_embedding.weight[prior.layout.prologue_offset : prior.layout.eos_id]
        rows.copy_(rows[:1].expand_as(rows))
    blind = evaluate_likelihood(prior, tokens, CLASSES, image_size=SIZE)
    assert blind["use"] == pytest.approx(0, abs=1e-6)
    assert blind["collapsed"] is True
    assert "prologue has collapsed (use 0.00 nats per image)" in blind["notes"][0]
    assert "prologue-kmeans" in blind["notes"][0]


def test_every_image_gets_another_ones_prologue() -> None:
    for count in (2, 3, 10, 101):
        partners = shuffled_partners(count, 0)
        assert sorted(partners.tolist()) == list(range(count))
        assert bool((partners != torch.arange(count)).all())
    assert shuffled_partners(101, 0).tolist() != shuffled_partners(101, 1).tolist()


def test_one_image_has_no_use(tiny_models) -> None:
    record = evaluate_likelihood(tiny_models()[1], random_tokens(1), CLASSES[:1], image_size=SIZE)
    assert (record["use"], record["nats_low"]) == (None, None)
    with pytest.raises(EvaluationError, match="0 images"):
        evaluate_likelihood(tiny_models()[1], random_tokens(0), CLASSES[:0], image_size=SIZE)


def test_a_prior_without_prologue(tiny_models) -> None:
    _, prior = tiny_models(prior_prologue=False)
    record = evaluate_likelihood(prior, random_tokens(10), CLASSES, image_size=SIZE)
    assert (record["prologue_nats"], record["eos_nats"]) == (0.0, 0.0)
    assert record["nats"] == record["visual_nats"]
    assert [record[name] for name in ("cost", "diversity", "use", "use_low", "gain")] == [None] * 5
    assert record["collapsed"] is False


def test_gain_against_a_prior_without_prologue(tiny_models) -> None:
    _, prior = tiny_models()
    _, baseline = tiny_models(prior_prologue=False)
    tokens = random_tokens(10)
    record = evaluate_likelihood(prior, tokens, CLASSES, image_size=SIZE, baseline=baseline)
    without = float(segment_nats(baseline, token_nats(baseline, tokens, CLASSES))["visual"].mean())
    assert record["baseline_visual_nats"] == pytest.approx(without)
    assert record["gain"] == pytest.approx(without - record["visual_nats"] - record["cost"])
    for other, named in (
        (prior, "3 prologue tokens"),
        (tiny_models(prior_prologue=False, image_size=(8, 8))[1], "4 visual tokens"),
        (tiny_models(prior_prologue=False, num_classes=4)[1], "4 classes"),
    ):
        with pytest.raises(EvaluationError, match=named):
            evaluate_likelihood(prior, tokens, CLASSES, image_size=SIZE, baseline=other)
    with pytest.raises(EvaluationError, match="omit --baseline"):
        evaluate_likelihood(baseline, tokens, CLASSES, image_size=SIZE, baseline=baseline)


def test_tokens_are_of_center_views(tiny_models) -> None:
    tokenizer, _ = tiny_models()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3, *SIZE), dtype=np.uint8)

    class Pictures:
        size, views, labels = SIZE, 1, np.arange(6)

        def center_view(self, index: int) -> np.ndarray:
            return pixels[index]

    tokens = encode_images(tokenizer, Pictures(), np.array([1, 4, 5]), batch=2)
    expected = tokenizer.encode(to_model_range(torch.from_numpy(pixels[[1, 4, 5]])))
    assert torch.equal(tokens.visual, expected.visual)
    assert torch.equal(tokens.prologue, expected.prologue)


def test_classes_are_matched_by_name() -> None:
    labels = np.array([0, 1, 1])
    assert true_classes(labels, ("a", "b"), ("a", "b"), 2)[0].tolist() == [0, 1, 1]
    assert true_classes(labels, ("a", "c"), ("c", "b", "a"), 3)[0].tolist() == [2, 0, 0]
    assert true_classes(labels, ("a", "b"), (), 0)[0].tolist() == [0, 0, 0]
    null, notes = true_classes(labels, (), ("a", "b"), 2)
    assert null.tolist() == [2, 2, 2]
    assert "null class" in notes[0]
    numbered, notes = true_classes(labels, ("cat", "dog"), ("0", "1"), 2)
    assert numbered.tolist() == [0, 1, 1]
    assert "in their order" in notes[0]
    with pytest.raises(EvaluationError, match="'dog'"):
        true_classes(labels, ("a", "dog"), ("a", "b"), 2)
