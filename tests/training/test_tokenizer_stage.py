"""Stage 1: what each step may touch, what reaches what, and that draws do not depend on the number of processes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prologue.models.sequence import TokenIds
from prologue.models.tokenizer import Tokenizer, to_model_range
from prologue.training import losses
from prologue.training.context import Context
from prologue.training.losses import cross_entropy_terms, generator_loss
from prologue.training.tokenizer_stage import TokenizerStage

MakeContext = Callable[..., Context]


def contents(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def same(before: dict[str, Tensor], module: nn.Module) -> bool:
    return all(torch.equal(before[key], value) for key, value in module.state_dict().items())


def no_gradients(module: nn.Module) -> bool:
    return all(parameter.grad is None for parameter in module.parameters())


def batch(stage: TokenizerStage, step: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    pictures, labels = stage.context.images(step, stage.batch)
    return to_model_range(pictures), labels, torch.ones(stage.batch, dtype=torch.bool)


def moving(context: MakeContext, **training: Any) -> TokenizerStage:
    """A stage whose terms are all on from the first step, a few steps on, so that no rate is 0."""
    options = {
        "gan_start": 0,
        "gan_ramp": 0,
        "ce_start": 0,
        "ce_ramp": 0,
        "prologue_kmeans": (),
        "dead_code_reset_every": 0,
    }
    stage = TokenizerStage(context(**(options | training)))
    for step in range(3):
        stage.step(step)
    return stage


def test_the_autoencoder_step_touches_the_tokenizer_alone(context: MakeContext) -> None:
    stage = moving(context)
    assert stage.prior is not None
    assert stage.adversary is not None
    tokenizer, prior, judge = contents(stage.model), contents(stage.prior.model), contents(stage.adversary.model)
    stage._autoencoder_step(3, *batch(stage, 3))
    assert not same(tokenizer, stage.model)
    for untouched, before in ((stage.prior.model, prior), (stage.adversary.model, judge)):
        assert same(before, untouched)  # running statistics too
        assert no_gradients(untouched)
        assert untouched.training


def test_the_second_step_touches_prior_and_discriminator_alone(context: MakeContext) -> None:
    stage = moving(context)
    assert stage.prior is not None
    assert stage.adversary is not None
    images, labels, null = batch(stage, 3)
    encoding, reconstruction, _ = stage._autoencoder_step(3, images, labels, null)
    assert reconstruction is not None
    tokenizer, prior, judge = contents(stage.model), contents(stage.prior.model), contents(stage.adversary.model)
    stage.prior.step(3, encoding.tokens, labels)
    assert not same(prior, stage.prior.model)
    assert same(judge, stage.adversary.model)
    prior = contents(stage.prior.model)
    stage.adversary.step(3, images, reconstruction.detach())
    assert not same(judge, stage.adversary.model)
    assert same(tokenizer, stage.model)
    assert no_gradients(stage.model)
    assert same(prior, stage.prior.model)


def test_the_loss_is_the_weighted_sum_of_its_terms(context: MakeContext) -> None:
    weights = {"l1": 0.7, "l2": 0.3, "vq": 0.5, "gan": 0.2, "ce_prologue": 2.0, "ce_visual": 1.5}
    stage = moving(context, **weights)
    assert stage.prior is not None
    assert stage.adversary is not None
    images, labels, null = batch(stage, 3)
    with torch.no_grad():
        encoding, reconstruction = stage.model(images)
        ce = stage.prior.encoder_terms(3, encoding, torch.full_like(labels, stage.prior.model.null_class), False)
        expected = (
            0.7 * (reconstruction - images).abs().mean()
            + 0.3 * (reconstruction - images).square().mean()
            + 0.5 * encoding.visual.loss
            + 0.2 * generator_loss(stage.adversary.fake_logits(3, reconstruction))
            + 2.0 * (ce.prologue + ce.eos)
            + 1.5 * ce.visual
        )
    metrics = stage._autoencoder_step(3, images, labels, null)[2]
    assert float(metrics["loss"]) == pytest.approx(float(expected), rel=1e-5)


def test_visual_dropout_may_begin_late_and_rise(context: MakeContext) -> None:
    stage = TokenizerStage(
        context(visual_dropout=1.0, visual_dropout_start=5, visual_dropout_ramp=4, batch=200, prologue_kmeans=())
    )
    assert stage.prior is not None
    for who in ("encoder", "prior"):
        shares = [float(stage.prior._dropped(step, who).float().mean()) for step in (0, 4, 6, 8, 19)]
        assert shares[:2] == [0.0, 0.0]
        assert shares[2] == pytest.approx(0.5, abs=0.15)
        assert shares[3:] == [1.0, 1.0]


def test_the_cross_entropy_reaches_the_prologue_through_its_one_hot_only(context: MakeContext) -> None:
    stage = moving(context)
    assert stage.prior is not None
    images, labels, _ = batch(stage, 3)
    encoding, _ = stage.model(images)
    terms = stage.prior.encoder_terms(3, encoding, labels, shared=False)
    (gradient,) = torch.autograd.grad(terms.total, encoding.prologue.one_hot, retain_graph=True)
    assert float(gradient.abs().sum()) > 0
    gradients = torch.autograd.grad(terms.total, list(stage.model.parameters()), allow_unused=True)
    reached = {
        name for (name, _), found in zip(stage.model.named_parameters(), gradients, strict=True) if found is not None
    }
    assert any(name.startswith("prologue_quantizer") for name in reached)
    assert not any(name.startswith(("visual_quantizer", "decoder", "out")) for name in reached)
    # All visual inputs dropped: the loss may depend on the visual ids as targets alone.
    with torch.no_grad():
        sequence = stage.prior.model.layout.pack(encoding.tokens)
        stage.prior.model.eval()
        every = torch.ones(len(images), dtype=torch.bool)
        other = torch.cat([sequence[:, :4], sequence[:, 4:].flip(1)], dim=1)
        logits = [stage.prior.model(ids, labels, visual_dropout=every) for ids in (sequence, other)]
        assert torch.equal(*logits)


def test_the_generator_term_reaches_the_reconstruction(context: MakeContext) -> None:
    stage = moving(context, gan_augment=False)
    assert stage.adversary is not None
    fake = torch.zeros(4, 3, 24, 24).uniform_(-1, 1, generator=torch.Generator().manual_seed(0)).requires_grad_()
    generator_loss(stage.adversary.fake_logits(3, fake)).backward()
    assert fake.grad is not None
    assert float(fake.grad.abs().sum()) > 0
    assert no_gradients(stage.adversary.model)


def test_the_adversary_begins_late_and_ramps(context: MakeContext) -> None:
    stage = TokenizerStage(context(gan_start=2, gan_ramp=2, gan=0.4))
    assert stage.adversary is not None
    (ramp,) = (term.ramp for term in stage.terms if term.name == "gan_generator")
    assert [ramp.at(step) for step in range(5)] == pytest.approx([0, 0, 0.2, 0.4, 0.4])
    before = contents(stage.adversary.model)
    for step in range(2):
        assert "gan_generator" not in stage.step(step)
        assert same(before, stage.adversary.model)
    stage.step(2)
    assert stage.adversary.learner.updates == 1
    assert stage.adversary.learner.total == 18


def test_lecam_averages_are_updated_before_use_and_r1_comes_every_few_updates(
    context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    lecam = losses.lecam_loss
    monkeypatch.setattr(
        losses,
        "lecam_loss",
        lambda *given: seen.append(tuple(value.detach().clone() for value in given)) or lecam(*given),
    )
    stage = TokenizerStage(context(gan_start=0, r1_every=3, gan_augment=False))
    assert stage.adversary is not None
    penalties = ["r1" in stage.step(step) for step in range(7)]
    assert penalties == [True, False, False, True, False, False, True]
    expected = torch.zeros(2)
    for real, fake, ema_real, ema_fake in seen:
        expected = 0.999 * expected + 0.001 * torch.stack([real.mean(), fake.mean()])
        assert torch.allclose(torch.stack([ema_real, ema_fake]), expected, atol=1e-7)
    assert torch.equal(stage.adversary.ema_logits, torch.stack(seen[-1][2:]))


def test_r1_and_lecam_enter_with_their_weights(context: MakeContext) -> None:
    losses = {}
    for name, options in {"plain": (0, 0), "lecam": (0.5, 0), "r1": (0, 0.5)}.items():
        stage = TokenizerStage(context(gan_start=0, gan_augment=False, lecam=options[0], r1=options[1]))
        assert stage.adversary is not None
        backward = stage.context.accelerator.backward
        taken: list[float] = []
        stage.context.accelerator.backward = lambda loss, b=backward, t=taken: (t.append(loss.item()), b(loss))
        images = batch(stage)[0]
        metrics = stage.adversary.step(0, images, images.flip(0) * 0.5)
        losses[name] = taken[0]
        if name == "plain":
            assert taken[0] == pytest.approx(float(metrics["gan_discriminator"]))
            assert "r1" not in metrics
        if name == "r1":
            assert losses["r1"] == pytest.approx(losses["plain"] + 0.5 * float(metrics["r1"]), rel=1e-4)
    assert losses["lecam"] > losses["plain"]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_coin_flips_are_the_same_for_any_number_of_processes(world: int, kit: SimpleNamespace, tmp_path: Path) -> None:
    context = kit.make_context(tmp_path / "run", kit.tiny_config())
    whole = context.chance(0.5, 7, 64, "visual dropout")
    share = 64 // world
    parts = []
    for rank in range(world):
        part = Context(
            context.run,
            context.data,
            SimpleNamespace(device=torch.device("cpu"), process_index=rank, num_processes=world),
        )
        parts.append(part.chance(0.5, 7, 64, "visual dropout"))
        assert part.chance(1.0, 7, 64, "x").tolist() == [True] * share
        assert part.chance(0.0, 7, 64, "x").tolist() == [False] * share
        assert torch.equal(part.images(3, 8)[0], context.images(3, 8)[0][rank * 8 // world : (rank + 1) * 8 // world])
    assert torch.equal(torch.cat(parts), whole)
    assert 0 < int(whole.sum()) < 64
    assert not torch.equal(whole, context.chance(0.5, 8, 64, "visual dropout"))
    assert not torch.equal(whole, context.chance(0.5, 7, 64, "label drop"))


def test_the_two_steps_draw_their_visual_dropout_apart(context: MakeContext) -> None:
    stage = moving(context, batch=64)
    assert stage.prior is not None
    draws = {
        (who, step): tuple(stage.prior._dropped(step, who).tolist()) for who in ("encoder", "prior") for step in (3, 4)
    }
    assert len(set(draws.values())) == 4


def test_dead_codes_are_reset(context: MakeContext) -> None:
    stage = TokenizerStage(context(dead_code_reset_every=4, dead_code_reset_until=0.5, prologue_kmeans=(), gan=0.0))
    codebook = "tokenizer.model.visual_quantizer.codebook"
    used: set[int] = set()
    for step in range(4):
        before = {key: value.clone() for key, value in stage.state().items()}
        images = to_model_range(stage.context.images(step, stage.batch)[0])
        encoding = stage.model.quantize(images)
        used |= set(encoding.visual.ids.flatten().tolist())
        stage.step(step)
    after = stage.state()
    dead = sorted(set(range(32)) - used)
    assert 0 < len(dead) <= 36
    rows = after[codebook][dead]
    assert torch.allclose(rows.norm(dim=1), torch.ones(len(dead)), atol=1e-5)
    outputs = encoding.visual.z.detach().flatten(0, 1)
    assert float((rows @ outputs.T).max(1).values.min()) > 1 - 1e-5
    assert len({tuple(row.tolist()) for row in rows}) == len(dead)
    assert torch.equal(after["tokenizer.ema.visual_quantizer.codebook"][dead], rows)
    for moment in ("exp_avg", "exp_avg_sq"):
        assert (after[f"tokenizer.adam.visual_quantizer.codebook.{moment}"][dead] == 0).all()
    kept = sorted(used)
    assert not torch.equal(after[codebook][kept], after[codebook][dead[:1]].expand(len(kept), -1))
    assert (after[codebook][kept] - before[codebook][kept]).abs().max() < 0.01  # only the optimizer moved these
    assert (after["dead_code_window"] == 0).all()
    for step in range(4, 12):
        stage.step(step)
    assert int(stage.upkeep.counts.counts.sum()) == 2 * 4 * 9  # steps 8 and 9; from 10 on codes are left alone


def test_the_prologue_codebook_starts_from_the_encoder(context: MakeContext) -> None:
    stage = TokenizerStage(context(prologue_kmeans=(2,), ce_start=0))
    for step in range(2):
        stage.step(step)
    quantizer = stage.model.prologue_quantizer
    assert quantizer is not None
    before = quantizer.codebook.detach().clone()
    assert float((before.norm(dim=1) - 1).abs().max()) > 0.1
    stage.upkeep.start_prologue(2)
    rows = quantizer.codebook.detach()
    assert torch.allclose(rows.norm(dim=1), torch.ones(8), atol=1e-5)
    assert torch.equal(stage.ema_model().prologue_quantizer.codebook, rows)
    state = stage.tokenizer.optimizer.state[quantizer.codebook]
    assert (state["exp_avg_sq"] == 0).all()
    again = rows.clone()
    stage.upkeep.start_prologue(2)
    assert torch.equal(again, quantizer.codebook)


def test_the_use_of_the_prologue_is_measured_without_a_trace(context: MakeContext) -> None:
    stage = moving(context)
    assert stage.prior is not None
    before = {key: value.clone() for key, value in stage.state().items()}
    generator = torch.get_rng_state()
    taken = stage.snapshot(3)
    assert torch.equal(generator, torch.get_rng_state())
    assert taken["prologue_use_images"] == 6
    assert stage.snapshot(3) == taken
    after = stage.state()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert stage.prior.model.training
    assert "prologue_use" not in stage.summary(3)[0]


def test_use_is_the_loss_of_foreign_prologues_in_nats_per_image(context: MakeContext) -> None:
    stage = moving(context)
    assert stage.prior is not None
    prior, layout = stage.prior.learner.ema_model, stage.prior.model.layout
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    tokens = TokenIds(torch.randint(8, (5, 3), generator=generator), torch.randint(32, (5, 9), generator=generator))
    classes = torch.full((5,), 8)
    cost = torch.zeros(5, 5)  # of image i's visual ids behind image j's prologue
    with torch.no_grad():
        for i in range(5):
            for j in range(5):
                sequence = layout.pack(TokenIds(tokens.prologue[j : j + 1], tokens.visual[i : i + 1]))
                cost[i, j] = cross_entropy_terms(prior(sequence, classes[:1]), sequence, layout).visual * layout.length
    found = stage.prior.use(tokens, classes, batch=2)
    # Every image gets exactly one other's prologue: one of the ways to do so gives this mean.
    ways = [
        sum(float(cost[i, j] - cost[i, i]) for i, j in enumerate(way)) / 5
        for way in permutations(range(5))
        if all(i != j for i, j in enumerate(way))
    ]
    assert min(abs(found - way) for way in ways) < 1e-4
    assert abs(found) > 1e-3
    assert stage.prior.use(tokens, classes, batch=5) == pytest.approx(found, abs=1e-4)


@pytest.mark.parametrize("variant", ["2d", "1d"])
def test_baselines_have_no_prior(variant: str, context: MakeContext) -> None:
    stage = TokenizerStage(context(variant, gan_start=0))
    assert stage.prior is None
    metrics = stage.step(0) | stage.summary(0)[0]
    assert {"l1", "vq", "gan_generator"} <= metrics.keys()
    assert not any(name.startswith(("ce_", "prologue_")) for name in metrics)
    assert stage.snapshot(1) == {}


def test_a_loss_that_is_not_finite_is_counted_and_training_goes_on(context: MakeContext) -> None:
    stage = moving(context)
    images, labels, null = batch(stage, 3)
    before = contents(stage.model)
    stage._autoencoder_step(3, images * math.inf, labels, null)
    assert same(before, stage.model)
    assert stage.tokenizer.skips.tolist() == [1, 1]
    stage._autoencoder_step(4, images, labels, null)
    assert not same(before, stage.model)


def test_post_hoc_before_its_cross_entropy_begins(kit: SimpleNamespace, tmp_path: Path) -> None:
    config = kit.tiny_config("prologue-post", ce_start=2)
    visual = Tokenizer(replace(config.tokenizer, variant="2d", prologue_tokens=0, prologue_encoder=None), seed=5)
    stage = TokenizerStage(kit.make_context(tmp_path / "run", config), visual)
    for step in range(4):
        metrics = stage.step(step)
        assert (float(metrics["gradient_norm"]) > 0) == (step >= 2)
    for own, given in zip(stage.model.visual_path(), visual.visual_path(), strict=True):
        assert all(torch.equal(value, own.state_dict()[key]) for key, value in given.state_dict().items())
        assert no_gradients(own)
        assert not any(parameter.requires_grad for parameter in own.parameters())


def test_bf16(kit: SimpleNamespace, tmp_path: Path) -> None:
    config = replace(kit.tiny_config(gan_start=0, ce_start=0, prologue_kmeans=(1,)), precision="bf16")
    stage = TokenizerStage(kit.make_context(tmp_path / "run", config))
    for step in range(3):
        metrics = stage.step(step)
    assert all(math.isfinite(float(value)) for value in metrics.values())
    assert all(value.dtype == torch.float32 for value in stage.model.state_dict().values())
    # Another precision in the same program, one run after the other.
    other = TokenizerStage(kit.make_context(tmp_path / "other", kit.tiny_config()))
    assert math.isfinite(float(other.step(0)["loss"]))
