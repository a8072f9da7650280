"""Presets have the settings of METHOD §7 and §8; the small ones follow their own rules."""

from __future__ import annotations

import json

import pytest

from prologue import presets
from prologue.cli.presets import prior_parameters, tokenizer_parameters
from prologue.config import OptimizerConfig, PriorConfig, RunConfig, TransformerConfig
from prologue.errors import ConfigError
from prologue.models.prior import Prior
from prologue.models.sequence import SequenceLayout
from prologue.models.tokenizer import Tokenizer
from prologue.utils.serialization import from_dict, to_dict

SMALL = [name for name in presets.names() if name.startswith(("small", "shapes", "builtin"))]
PAPER = [name for name in presets.names() if name not in SMALL]
TWO_STAGE = [f"{size}-{prior}" for size in ("base", "large") for prior in ("s", "b", "l", "xl")]


def test_names() -> None:
    assert set(PAPER) == {*TWO_STAGE, "2d-b", "1d-b", "post-b", "one-stage-b"}
    ours = {"shapes-smoke", "small-32", "small-64", "small-32-2d", "small-32-1d", "small-32-post", "builtin-shapes"}
    assert set(SMALL) == ours


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_survives_json(name: str) -> None:
    config = presets.preset(name)
    assert from_dict(RunConfig, json.loads(json.dumps(to_dict(config)))) == config
    assert presets.describe(name)


def test_unknown_preset_names_the_nearest_and_the_list() -> None:
    with pytest.raises(ConfigError, match="unknown preset 'base-x': did you mean 'base-xl'") as caught:
        presets.preset("base-x")
    assert all(name in str(caught.value) for name in presets.names())


@pytest.mark.parametrize(
    ("name", "millions"), [("base-s", 41.55), ("base-b", 114.23), ("base-l", 345.0), ("base-xl", 688.2)]
)
def test_prior_sizes_of_the_paper(name: str, millions: float) -> None:
    assert prior_parameters(presets.preset(name), 1000) / 1e6 == pytest.approx(millions, rel=2e-4)


@pytest.mark.parametrize("name", SMALL)
def test_counted_sizes_are_those_of_the_models(name: str) -> None:
    config = presets.preset(name)
    tokenizer = Tokenizer(config.tokenizer)
    assert tokenizer_parameters(config.tokenizer) == sum(tensor.numel() for tensor in tokenizer.parameters())
    layout = SequenceLayout.of(config.tokenizer).config
    prior = Prior(PriorConfig(layout, 10, config.prior.transformer, config.prior.tied))
    assert prior_parameters(config, 10) == sum(tensor.numel() for tensor in prior.parameters())


def test_tokenizer_sizes_of_the_paper() -> None:
    base = presets.preset("base-b").tokenizer
    assert tokenizer_parameters(base) / 1e6 == pytest.approx(85.89 + 85.63, abs=0.011)
    large = presets.preset("large-b").tokenizer
    assert large.encoder == base.encoder == TransformerConfig(768, 12, 12, "8/3")
    assert large.decoder == TransformerConfig(1024, 24, 16, "8/3")
    assert (base.codebook_size, large.codebook_size) == (16384, 4096)


@pytest.mark.parametrize("name", PAPER)
def test_settings_common_to_the_papers_models(name: str) -> None:
    config = presets.preset(name)
    tokenizer, stage_1, stage_2 = config.tokenizer, config.tokenizer_training, config.prior_training
    schedule = {"lr": 1e-4, "final_lr": 1e-5, "warmup": 20_000, "hold": 100_000, "clip": 0.0}
    assert (tokenizer.image_size, tokenizer.patch_size, tokenizer.code_dim) == ((256, 256), 16, 14)
    assert (tokenizer.visual_tokens, tokenizer.prologue_temperature) == (256, 0.1)
    assert stage_1.autoencoder == OptimizerConfig(**schedule, betas=(0.0, 0.99), weight_decay=0.0)
    assert stage_1.prior == OptimizerConfig(**schedule, betas=(0.9, 0.99), weight_decay=0.03)
    assert stage_1.discriminator == OptimizerConfig(**schedule, betas=(0.0, 0.99), weight_decay=1e-4)
    assert stage_1.prior_model.transformer == TransformerConfig(512, 7, 8, "11/4")
    assert (stage_1.prior_model.tied, stage_1.prior_model.dropout) == (False, 0.0)
    assert (stage_1.batch, stage_1.ema_half_life, stage_1.prior_ema_half_life) == (256, 1000, 2500)
    assert (stage_1.lecam, stage_1.r1, stage_1.r1_every, stage_1.l2) == (0.001, 0.01, 25, 0.0)
    assert (stage_1.dead_code_reset_every, stage_1.prologue_kmeans) == (0, ())
    assert stage_2.optimizer == OptimizerConfig(
        lr=4e-4, final_lr=1e-5, warmup=62_500, hold=0, betas=(0.9, 0.96), weight_decay=0.03, clip=1.0
    )
    assert (stage_2.steps, stage_2.batch, stage_2.ema_half_life) == (500_000, 2048, 2500)
    assert (stage_2.label_drop, stage_2.visual_dropout) == (0.1, 0.0)
    assert config.precision == "bf16"
    assert (config.data.flip, config.data.crop, config.data.token_views) == (True, "random", "ten-crop")


@pytest.mark.parametrize("name", TWO_STAGE)
def test_two_stage_models(name: str) -> None:
    config = presets.preset(name)
    stage_1 = config.tokenizer_training
    assert (config.tokenizer.variant, config.tokenizer.prologue_tokens) == ("prologue", 16)
    assert config.tokenizer.prologue_codebook_size == 1024
    assert (stage_1.steps, stage_1.label_drop, stage_1.visual_dropout) == (1_000_000, 1.0, 0.5)
    assert (stage_1.l1, stage_1.perceptual_weight, stage_1.gan, stage_1.vq) == (1.0, 1.0, 0.1, 1.0)
    assert (stage_1.ce_prologue, stage_1.ce_visual, stage_1.one_stage) == (3.0, 3.0, False)
    assert stage_1.perceptual == ("lpips" if name.startswith("base") else "convnext")
    assert (config.prior.tied, config.prior.dropout) == (name.endswith("-s"), 0.1)


@pytest.mark.parametrize("name", ["2d-b", "1d-b"])
def test_baselines_have_no_prologue_and_no_cross_entropy(name: str) -> None:
    config = presets.preset(name)
    assert (config.tokenizer.variant, config.tokenizer.prologue_tokens) == (name.removesuffix("-b"), 0)
    assert config.tokenizer_training.steps == 750_000
    assert config.tokenizer_training.ce_prologue == config.tokenizer_training.ce_visual == 0
    assert config.prior == presets.preset("base-b").prior


def test_post_hoc_trains_the_cross_entropy_alone() -> None:
    config = presets.preset("post-b")
    stage_1 = config.tokenizer_training
    assert config.tokenizer.prologue_encoder == TransformerConfig(512, 10, 8, "11/4")
    assert (stage_1.steps, stage_1.ce_prologue, stage_1.ce_visual) == (1_300_000, 3.0, 3.0)
    assert (stage_1.l1, stage_1.l2, stage_1.gan, stage_1.vq, stage_1.perceptual) == (0, 0, 0, 0, "none")


def test_one_stage_keeps_the_prior_of_stage_1() -> None:
    config = presets.preset("one-stage-b")
    assert (config.tokenizer_training.one_stage, config.tokenizer_training.label_drop) == (True, 0.1)
    assert config.prior == config.tokenizer_training.prior_model


@pytest.mark.parametrize("name", SMALL)
def test_small_presets(name: str) -> None:
    config = presets.preset(name)
    stage_1, stage_2 = config.tokenizer_training, config.prior_training
    assert stage_1.perceptual == "none"
    assert stage_1.gan == 0
    assert max(stage_1.ema_half_life, stage_1.prior_ema_half_life) <= 0.05 * stage_1.steps
    assert stage_2.ema_half_life <= 0.05 * stage_2.steps
    assert all(0 < step < stage_1.steps for step in stage_1.prologue_kmeans)
    assert bool(stage_1.prologue_kmeans) == (config.tokenizer.prologue_tokens > 0)
    assert stage_1.dead_code_reset_every == (0 if config.tokenizer.variant == "prologue-post" else 20)
    for optimizer, steps in ((stage_1.autoencoder, stage_1.steps), (stage_2.optimizer, stage_2.steps)):
        assert optimizer.warmup + optimizer.hold < steps


def test_small_baselines_differ_only_in_the_prologue() -> None:
    for variant in ("2d", "1d"):
        ours, theirs = presets.preset("small-32"), presets.preset(f"small-32-{variant}")
        assert (ours.data, ours.prior, ours.prior_training) == (theirs.data, theirs.prior, theirs.prior_training)
        assert (ours.tokenizer.encoder, ours.tokenizer.decoder) == (theirs.tokenizer.encoder, theirs.tokenizer.decoder)
        assert ours.tokenizer_training.steps * ours.tokenizer_training.batch == (
            theirs.tokenizer_training.steps * theirs.tokenizer_training.batch
        )


def test_post_hoc_fits_the_small_2d_tokenizer() -> None:
    post, frozen = presets.preset("small-32-post").tokenizer, presets.preset("small-32-2d").tokenizer
    for part in ("image_size", "patch_size", "encoder", "decoder", "code_dim", "codebook_size"):
        assert getattr(post, part) == getattr(frozen, part)
