"""Learning rate, EMA decay, ramps, and notes about schedules that do not fit their stage."""

from __future__ import annotations

import dataclasses

import pytest

from prologue.config import OptimizerConfig
from prologue.presets import names, preset
from prologue.training.schedule import Ramp, ema_decay, learning_rate, schedule_notes


def test_no_preset_gives_a_note() -> None:
    assert {name: schedule_notes(preset(name)) for name in names()} == {name: [] for name in names()}


def test_fewer_steps_alone_give_notes() -> None:
    config = preset("small-32")
    training = dataclasses.replace(config.tokenizer_training, steps=1500)
    notes = schedule_notes(dataclasses.replace(config, tokenizer_training=training))
    assert len(notes) == 3
    assert "--tokenizer-training.autoencoder.hold 2000 fill all 1500 steps" in notes[0]
    assert "--tokenizer-training.prior.hold 2000" in notes[1]
    assert "--tokenizer-training.prologue-kmeans" in notes[2]
    prior = dataclasses.replace(config.prior_training, steps=100)
    (note,) = schedule_notes(dataclasses.replace(config, prior_training=prior))
    assert "--prior-training.optimizer.warmup" in note


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
