"""One update of a network, and the state that the next one depends on."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prologue.config import OptimizerConfig
from prologue.errors import CheckpointError
from prologue.training.learner import Learner

PLAIN = OptimizerConfig(lr=0.1, final_lr=0.1, warmup=0, hold=100, betas=(0.0, 0.99))


class Net(nn.Module):
    """A matrix, a vector, a part that gets no gradient, a frozen part and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.matrix = nn.Parameter(torch.randn(3, 2, generator=generator))
        self.vector = nn.Parameter(torch.randn(3, generator=generator))
        self.late = nn.Parameter(torch.randn(2, 2, generator=generator))
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)
        self.register_buffer("seen", torch.zeros(1))

    def loss(self, step: int) -> torch.Tensor:
        self.seen += 1
        x = torch.randn(5, 2, generator=torch.Generator().manual_seed(step))
        loss = (x @ self.matrix.T + self.vector).square().mean()
        return loss + (x @ self.late).square().mean() if step >= 4 else loss


def make(config: OptimizerConfig = PLAIN, half_life: float | None = 2) -> Learner:
    net = Net()
    return Learner("net", net, net, config, 100, half_life)


def advance(learner: Learner, steps: range) -> None:
    for step in steps:
        learner.module.loss(step).backward()  # type: ignore[operator]
        learner.update()


def tensors(learner: Learner) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in learner.state().items()}


def test_adamw_with_decay_on_matrices_only() -> None:
    learner = make(OptimizerConfig(lr=0.1, final_lr=0.1, warmup=0, hold=9, betas=(0.0, 0.99), weight_decay=0.5))
    net = learner.module
    before = {key: value.clone() for key, value in net.named_parameters()}
    advance(learner, range(1))
    # The first step of AdamW goes by lr · sign(gradient), after decay by lr · 0.5.
    moved = net.matrix.detach() - before["matrix"] * (1 - 0.1 * 0.5)
    assert torch.allclose(moved.abs(), torch.full_like(moved, 0.1), atol=1e-4)
    moved = net.vector.detach() - before["vector"]
    assert torch.allclose(moved.abs(), torch.full_like(moved, 0.1), atol=1e-4)
    assert torch.equal(net.late, before["late"])
    assert torch.equal(net.frozen, before["frozen"])


def test_the_rate_follows_the_updates_and_begins_at_zero() -> None:
    learner = make(OptimizerConfig(lr=0.1, final_lr=0.01, warmup=2, hold=0))
    before = learner.module.matrix.detach().clone()
    advance(learner, range(1))
    assert torch.equal(learner.module.matrix, before)
    assert learner.optimizer.param_groups[0]["lr"] == 0
    advance(learner, range(1, 2))
    assert learner.optimizer.param_groups[1]["lr"] == 0.05
    assert not torch.equal(learner.module.matrix, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_skips_the_step_and_is_counted(value: float) -> None:
    learner = make()
    advance(learner, range(3))
    before = tensors(learner)
    learner.module.loss(3).backward()
    learner.module.vector.grad[1] = value  # type: ignore[index]
    learner.update()
    after = tensors(learner)
    assert (learner.skips.tolist(), learner.updates) == ([1, 1], 4)
    assert learner.module.vector.grad is None
    for key in before:
        if ".model.matrix" in key or ".adam." in key:
            assert torch.equal(before[key], after[key]), key
    advance(learner, range(3, 4))
    assert learner.skips.tolist() == [1, 0]
    assert not torch.equal(before["net.model.matrix"], learner.module.matrix)


def test_clipping_scales_all_gradients_together() -> None:
    seen: list[torch.Tensor] = []
    for clip in (0.0, 0.5, 1e6):
        learner = make(OptimizerConfig(lr=0.1, clip=clip))
        step = learner.optimizer.step
        learner.optimizer.step = lambda net=learner.module, step=step: (  # type: ignore[method-assign]
            seen.append(torch.cat([net.matrix.grad.flatten(), net.vector.grad])),
            step(),
        )
        learner.module.loss(0).backward()
        norm = learner.update()
        assert norm == pytest.approx(float(seen[0].norm()))  # the norm before clipping is reported
    assert torch.equal(seen[0], seen[2])
    assert torch.allclose(seen[1], seen[0] * 0.5 / seen[0].norm(), rtol=1e-4)
    assert float(seen[0].norm()) > 0.5


def test_ema() -> None:
    learner = make(half_life=2)
    expected = learner.module.matrix.detach().clone()
    for step in range(6):
        advance(learner, range(step, step + 1))
        expected += (1 - 0.5**0.5) * (learner.module.matrix.detach() - expected)
    assert learner.ema is not None
    assert torch.allclose(learner.ema.matrix, expected, atol=1e-6)
    assert learner.ema.seen.item() == 6  # buffers are copied
    assert not any(p.requires_grad for p in learner.ema.parameters())
    assert learner.ema_model is learner.ema
    assert make(half_life=None).ema_model is not None


def test_an_update_before_any_loss_counts_and_changes_nothing() -> None:
    learner = make()
    before = tensors(learner)
    assert float(learner.update()) == 0
    after = tensors(learner)
    assert learner.updates == 1
    assert all(torch.equal(before[key], after[key]) for key in before if "counts" not in key)


@pytest.mark.parametrize("stop", [0, 2, 6])
def test_a_restored_learner_goes_on_with_the_same_bits(stop: int) -> None:
    """At 2 a parameter has not had a gradient: its moments must not exist, or its bias correction would differ."""
    config = OptimizerConfig(lr=0.1, final_lr=0.01, warmup=3, hold=2, betas=(0.9, 0.99), weight_decay=0.1, clip=1.0)
    learner = make(config)
    advance(learner, range(stop))
    saved = tensors(learner)
    advance(learner, range(stop, 10))
    restored = make(config)
    advance(restored, range(20, 29))  # whatever it was before
    restored.load_state(saved)
    assert tensors(restored).keys() == saved.keys()
    advance(restored, range(stop, 10))
    whole, again = tensors(learner), tensors(restored)
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[key], again[key]) for key in whole)


def test_a_state_with_a_missing_or_misshapen_tensor_is_named() -> None:
    learner = make()
    advance(learner, range(2))
    for key in ("net.model.matrix", "net.ema.vector", "net.adam.matrix.exp_avg", "net.counts"):
        saved = tensors(learner)
        del saved[key]
        with pytest.raises(CheckpointError, match=f"no tensor '{key}'"):
            make().load_state(saved)
    with pytest.raises(CheckpointError, match=r"'net.model.matrix' of shape \(3, 2\)"):
        make().load_state(tensors(learner) | {"net.model.matrix": torch.zeros(2, 2)})


def test_replaced_rows_are_forgotten_by_the_optimizer_and_set_in_the_ema() -> None:
    learner = make()
    advance(learner, range(3))
    before = tensors(learner)
    rows, values = torch.tensor([2, 0]), torch.tensor([[7.0, 8.0], [9.0, 10.0]])
    learner.replace_rows("matrix", rows, values)
    after = tensors(learner)
    for owner in ("model", "ema"):
        assert after[f"net.{owner}.matrix"][[2, 0]].tolist() == values.tolist()
        assert torch.equal(after[f"net.{owner}.matrix"][1], before[f"net.{owner}.matrix"][1])
    for moment in ("exp_avg", "exp_avg_sq"):
        key = f"net.adam.matrix.{moment}"
        assert (after[key][[2, 0]] == 0).all()
        assert torch.equal(after[key][1], before[key][1])
