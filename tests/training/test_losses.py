"""Loss terms against numbers worked out by hand, and the schedules."""

from __future__ import annotations

import math

import pytest
import torch

from prologue.config import Component, LayoutConfig, OptimizerConfig, TokenizerTraining
from prologue.errors import ConfigError
from prologue.models.quantizers import Quantized
from prologue.models.sequence import SequenceLayout
from prologue.models.tokenizer import Encoding
from prologue.training.losses import (
    LOSSES,
    StepOutputs,
    autoencoder_terms,
    cross_entropy_terms,
    discriminator_loss,
    generator_loss,
    lecam_loss,
    r1_penalty,
    weighted_sum,
)
from prologue.training.schedule import Ramp, ema_decay, learning_rate


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_gan_terms() -> None:
    real, fake = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])
    assert generator_loss(fake).item() == pytest.approx((softplus(-0.5) + softplus(-3)) / 2)
    expected = (softplus(-1) + softplus(2)) / 2 + (softplus(0.5) + softplus(3)) / 2
    assert discriminator_loss(real, fake).item() == pytest.approx(expected)
    # relu(1 − 0.25)², relu(−2 − 0.25)² = 0; relu(0.75 − 0.5)², relu(0.75 − 3)² = 0
    lecam = lecam_loss(real, fake, torch.tensor(0.75), torch.tensor(0.25))
    assert lecam.item() == pytest.approx(0.75**2 / 2 + 0.25**2 / 2)


def test_r1_is_half_the_mean_squared_gradient() -> None:
    images = torch.tensor([[[[1.0, 2.0]]], [[[3.0, -1.0]]]], requires_grad=True)
    logits = (images**2).flatten(1).sum(1)
    # gradients (2, 4) and (6, −2): squared norms 20 and 40
    penalty = r1_penalty(logits, images)
    assert penalty.item() == pytest.approx(0.5 * (20 + 40) / 2)
    penalty.backward()  # it can be differentiated again: d(½·mean Σ 4x²)/dx = 2x
    assert images.grad is not None
    assert torch.allclose(images.grad, 2 * images.detach())


def test_cross_entropy_is_summed_over_a_segment_and_divided_by_all_targets() -> None:
    layout = SequenceLayout(LayoutConfig(2, 3, 4, 5))
    sequence = torch.tensor([[5, 7, 8, 0, 1, 2, 4], [6, 6, 8, 4, 4, 0, 1]])
    logits = torch.zeros(2, 7, 9)
    logits[:, 2, 8] = 5.0
    terms = cross_entropy_terms(logits, sequence, layout)
    assert terms.prologue.item() == pytest.approx(2 * math.log(9) / 7)
    assert terms.visual.item() == pytest.approx(4 * math.log(9) / 7)
    assert terms.eos.item() == pytest.approx((math.log(8 + math.exp(5)) - 5) / 7)
    assert terms.total.item() == pytest.approx(sum(float(term) for term in terms))
    bare = SequenceLayout(LayoutConfig(0, 0, 4, 5))
    terms = cross_entropy_terms(torch.zeros(2, 4, 5), sequence[:, 3:], bare)
    assert (terms.prologue.item(), terms.eos.item()) == (0, 0)
    assert terms.visual.item() == pytest.approx(math.log(5))


def doubled(outputs: StepOutputs, offset: float = 0.0) -> torch.Tensor:
    """A term that lies outside the package."""
    return 2 * outputs.images.mean() + offset


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(LOSSES, "_components", dict(LOSSES._components))
    LOSSES.register(doubled)
    return f"{__name__}:doubled"


def outputs(step: int) -> StepOutputs:
    images = torch.full((1, 3, 2, 2), 0.5)
    quantized = Quantized(torch.zeros(1, 1), images, images, None, torch.tensor(3.0))
    return StepOutputs(step, images, images + 0.25, Encoding(quantized, None))


def test_terms_are_added_with_their_weights(registered: str) -> None:
    added = {"name": registered, "weight": 4.0, "start": 5, "length": 2, "offset": 1.0}
    terms = autoencoder_terms(TokenizerTraining(l1=0.5, l2=0.0, vq=2.0, losses=(added,)))
    before, values = weighted_sum(terms, outputs(4))
    assert before.item() == pytest.approx(0.5 * 0.25 + 2 * 3)
    assert {key: float(value) for key, value in values.items()} == {"l1": 0.25, "l2": 0.0625, "vq": 3.0}
    during, values = weighted_sum(terms, outputs(5))
    assert during.item() == pytest.approx(before.item() + 4.0 / 2 * (2 * 0.5 + 1))
    assert values["doubled"] == 2
    assert weighted_sum(terms, outputs(6))[0].item() == pytest.approx(before.item() + 4.0 * 2)


@pytest.mark.parametrize(
    ("component", "message"),
    [
        ({"name": "edge"}, "unknown loss term 'edge'"),
        ({"name": "my_losses:edges"}, "--import my_losses"),
        ({"name": "{own}", "ofset": 1.0}, "unexpected keyword argument 'ofset'; did you mean 'offset'"),
        ({"name": "{own}", "weight": "1"}, "weight must be a number, not '1'"),
        ({"name": "{own}", "start": -1}, "start must be a number of steps, not -1"),
        ({"name": "l2"}, "two loss terms.*named 'l2'"),
    ],
)
def test_a_wrong_term_is_refused(component: Component, message: str, registered: str) -> None:
    component = component | {"name": component["name"].format(own=registered)}
    with pytest.raises(ConfigError, match=message):
        autoencoder_terms(TokenizerTraining(losses=(component,)))


def test_learning_rate() -> None:
    config = OptimizerConfig(lr=1.0, final_lr=0.1, warmup=4, hold=3)
    rates = [learning_rate(config, update, 12) for update in range(14)]
    assert rates[:5] == [0, 0.25, 0.5, 0.75, 1]
    assert rates[5:8] == [1, 1, 1]
    assert rates[8:11] == pytest.approx([1 - 0.9 / 4, 1 - 1.8 / 4, 1 - 2.7 / 4])
    assert rates[11:] == pytest.approx([0.1] * 3)  # update 11 is the last of 12, and it never rises again
    longer = OptimizerConfig(lr=1.0, final_lr=0.1, warmup=4, hold=100)
    assert learning_rate(longer, 11, 12) == 1.0
    assert learning_rate(OptimizerConfig(lr=1.0, final_lr=0.1, warmup=0, hold=0), 0, 1) == 1.0


def test_a_half_life_halves() -> None:
    assert ema_decay(5) ** 5 == pytest.approx(0.5)
    assert ema_decay(1) == 0.5


def test_ramp() -> None:
    assert [Ramp(2.0, 2, 4).at(step) for step in range(8)] == [0, 0, 0.5, 1, 1.5, 2, 2, 2]
    assert [Ramp(0.5, 2).at(step) for step in range(4)] == [0, 0, 0.5, 0.5]
    assert Ramp().at(0) == 1
