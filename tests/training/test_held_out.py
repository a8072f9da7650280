"""The prior that ships is the one that did best on held-out images, and the user hears of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prologue.config import DataConfig, OptimizerConfig, PriorTraining, RunConfig
from prologue.errors import ConfigError
from prologue.evaluation.codes import encode_images
from prologue.evaluation.kinds.likelihood import token_nats
from prologue.pipeline import Pipeline
from prologue.training.held_out import BestPrior
from prologue.training.loop import Stopped

pytestmark = pytest.mark.slow

STEPS, EVERY = 120, 10


def by_heart(kit: SimpleNamespace, **changes: Any) -> RunConfig:
    """Few images, a prior that soon knows them."""
    training = {"steps": STEPS, "batch": 8, "ema_half_life": 2.0, "label_drop": 0.0, "keep_best_every": EVERY}
    optimizer = OptimizerConfig(lr=2e-2, warmup=3, hold=STEPS)
    config: RunConfig = kit.tiny_config(steps=4, prologue_kmeans=(), gan=0.0)
    return replace(
        config,
        data=DataConfig(shapes_images=8, shapes_validation=8, token_views="center"),
        prior=replace(config.prior, dropout=0.0),
        prior_training=PriorTraining(**({"optimizer": optimizer} | training | changes)),
        log_every=EVERY, sample_every=0,
    )  # fmt: skip


def held_out_loss(kit: SimpleNamespace, run: Path, config: RunConfig) -> float:
    """Nats per token of the shipped prior, by the evaluation's own code."""
    pipe = Pipeline.from_pretrained(run, "cpu", "fp32")
    images = kit.make_context(run.parent / "again", config).data.validation
    tokens = encode_images(pipe.tokenizer, images, torch.arange(len(images)).numpy())
    each = token_nats(pipe.prior, tokens, torch.from_numpy(images.labels))
    return float(each.sum(1).mean()) / pipe.prior.layout.length


def test_the_prior_of_the_lowest_held_out_loss_ships(kit: SimpleNamespace, tmp_path: Path) -> None:
    config, heard = by_heart(kit), kit.Heard()
    run = kit.run_training(tmp_path / "run", config, heard)
    losses = {record["step"]: record["held_out_loss"] for record in run.metrics("prior")}
    best = min(losses, key=losses.__getitem__)
    assert list(losses) == list(range(EVERY, STEPS + 1, EVERY))
    assert best < STEPS
    assert losses[STEPS] > 1.1 * losses[best]
    assert run.record["stages"]["prior"]["kept_step"] == best
    assert held_out_loss(kit, run.path, config) == pytest.approx(losses[best], rel=1e-5)
    (said,) = [sentence for sentence in heard.said if "overfit" in sentence]
    assert f"after step {best} of {STEPS}" in said
    assert "prior.dropout" in said
    record = run.metrics("prior")[-1]
    terms = [record[f"held_out_ce_{name}"] for name in ("prologue", "eos", "visual")]
    assert sum(terms) == pytest.approx(record["held_out_loss"], rel=1e-5)


def test_the_last_ships_where_it_is_asked_for_or_nothing_is_held_out(
    kit: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = by_heart(kit, keep_best_every=0)
    run = kit.run_training(tmp_path / "run", config)
    assert "held_out_loss" not in run.metrics("prior")[-1]
    last = held_out_loss(kit, run.path, config)
    assert last > held_out_loss(kit, kit.run_training(tmp_path / "best", by_heart(kit)).path, config)
    monkeypatch.setattr(BestPrior, "evaluate", lambda *_: pytest.fail("nothing is held out"))
    folder = tmp_path / "images"
    kit.save_pictures(folder, 6)
    alone = replace(by_heart(kit, steps=4), data=DataConfig(validation_fraction=0.0))
    run = kit.run_training(tmp_path / "alone", alone, data=str(folder))
    assert "kept_step" not in run.record["stages"]["prior"]


def test_a_stopped_run_remembers_its_best(kit: SimpleNamespace, tmp_path: Path) -> None:
    """Stopped past the best step, and once between two measurements, of which the log repeats the first."""
    config = replace(by_heart(kit), log_every=3)
    whole = kit.run_training(tmp_path / "whole", config)
    for step in (STEPS - 25, STEPS - 20):
        with pytest.raises(Stopped):
            kit.run_training(tmp_path / "run", config, kit.StopAt("prior", step))
    run = kit.run_training(tmp_path / "run", config)
    assert kit.hashes(run.path) == kit.hashes(whole.path)
    assert kit.figures(run.path) == kit.figures(whole.path)
    assert run.record["stages"]["prior"]["kept_step"] == whole.record["stages"]["prior"]["kept_step"]


def test_it_must_not_be_negative() -> None:
    with pytest.raises(ConfigError, match=r"PriorTraining\.keep_best_every must not be negative"):
        PriorTraining(keep_best_every=-1)
