"""A schedule that does not fit its stage is said, with the flags that mend it."""

from __future__ import annotations

import dataclasses

from prologue.presets import names, preset
from prologue.training.schedule import schedule_notes


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
