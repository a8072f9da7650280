"""One network with its optimizer, learning-rate schedule and EMA."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.swa_utils import get_ema_multi_avg_fn

from prologue.config import OptimizerConfig
from prologue.errors import CheckpointError
from prologue.training.schedule import ema_decay, learning_rate
from prologue.utils.private_api import step_unless


def stored(tensors: dict[str, Tensor], key: str, like: Tensor) -> Tensor:
    """The checkpoint's tensor `key`. If it is missing or differs in shape from `like`, this raises a
    `CheckpointError`."""
    found = tensors.get(key)
    if found is None or found.shape != like.shape:
        raise CheckpointError(f"the checkpoint has no tensor {key!r} of shape {tuple(like.shape)}")
    return found


class Learner:
    """Updates `module` with AdamW for `total` updates, and keeps its EMA.

    `wrapped` is the module as the process group prepared it: its backward pass synchronises gradients. Only parameters
    that require a gradient are trained. Biases, norms and other 1-D parameters have no weight decay (METHOD §8).
    """

    def __init__(
        self, name: str, module: nn.Module, wrapped: nn.Module, config: OptimizerConfig, total: int,
        ema_half_life: float | None,
    ) -> None:  # fmt: skip
        self.name = name
        self.module = module
        self.wrapped = wrapped
        self.config = config
        self.total = total
        self.updates = 0
        self.device = next(module.parameters()).device
        self.skips = torch.zeros(2, dtype=torch.int64, device=self.device)
        """Numbers of skipped updates: the total, and the current number in a row. They stay on the device, so that
        nothing waits."""
        self.parameters = {key: p for key, p in module.named_parameters() if p.requires_grad}
        decayed = [p for p in self.parameters.values() if p.ndim > 1]
        spared = [p for p in self.parameters.values() if p.ndim <= 1]
        groups: list[dict[str, Any]] = [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": spared, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=config.lr, betas=config.betas, fused=True
        )
        self.ema: nn.Module | None = None
        if ema_half_life is not None:
            self._average = get_ema_multi_avg_fn(ema_decay(ema_half_life))  # type: ignore[no-untyped-call]
            self.ema = copy.deepcopy(module).eval().requires_grad_(False)

    def no_sync(self, last: bool) -> AbstractContextManager[None]:
        """A block around the passes of a microbatch: processes exchange gradients only with the last one."""
        if last or not isinstance(self.wrapped, nn.parallel.DistributedDataParallel):
            return nullcontext()
        return self.wrapped.no_sync()

    def update(self, weight: float = 1.0) -> Tensor:
        """Update on gradients of `weight` times the loss, and clear them. Returns the gradient norm of the loss.

        If a gradient is not finite, the step of the optimizer is skipped and counted in `skips`; it still counts as an
        update (METHOD §7). Nothing here waits for the device.
        """
        rate = learning_rate(self.config, self.updates, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        if weight != 1.0:
            for gradient in gradients:
                gradient.div_(weight)
        norm = self._norm(gradients)
        skip = torch.isfinite(norm).logical_not()
        self.skips.add_(skip)
        self.skips[1].mul_(skip)
        if self.config.clip > 0:
            clip_grads_with_norm_(list(self.parameters.values()), self.config.clip, norm)
        self._step(skip)
        self.optimizer.zero_grad(set_to_none=True)
        self.updates += 1
        self._update_ema()
        return norm

    def _step(self, skip: Tensor) -> None:
        """Step the optimizer, unless `skip`: then weights, moments and step counts stay as they are."""
        if self.device.type in ("cpu", "cuda"):
            step_unless(self.optimizer, skip)
        elif not bool(skip):  # on other devices the fused step does not support this
            self.optimizer.step()

    def _norm(self, gradients: list[Tensor]) -> Tensor:
        """The norm of all gradients together; 0 while no loss reaches this network yet."""
        if not gradients:
            return torch.zeros((), device=self.device)
        return get_total_norm(gradients)

    @torch.no_grad()
    def _update_ema(self) -> None:
        if self.ema is None:
            return
        own = dict(self.ema.named_parameters())
        targets: list[Tensor] = [own[key] for key in self.parameters]
        self._average(targets, [p.detach() for p in self.parameters.values()], None)
        for target, source in zip(self.ema.buffers(), self.module.buffers(), strict=True):
            target.copy_(source)

    @torch.no_grad()
    def replace_rows(self, key: str, rows: Tensor, values: Tensor) -> None:
        """Set rows of a parameter and of its EMA, and set their optimizer moments to 0."""
        parameter = self.parameters[key]
        parameter[rows] = values.to(parameter.dtype)
        if self.ema is not None:
            self.ema.get_parameter(key)[rows] = values.to(parameter.dtype)
        state = self.optimizer.state.get(parameter, {})
        for moment in ("exp_avg", "exp_avg_sq"):
            if moment in state:
                state[moment][rows] = 0

    @property
    def ema_model(self) -> nn.Module:
        """The module to evaluate and save: the EMA, or the module itself without one."""
        return self.module if self.ema is None else self.ema

    def state(self) -> dict[str, Tensor]:
        """Every tensor that the next update depends on; all keys begin with this learner's name."""
        skipped, in_a_row = self.skips.cpu()
        return dict(self._tensors()) | {
            f"{self.name}.counts": torch.stack([torch.tensor(self.updates), skipped]),
            f"{self.name}.in_a_row": in_a_row.clone(),
        }

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state` returned, bit by bit."""
        self._create_moments(tensors)
        counts = torch.zeros(2, dtype=torch.int64)
        for key, target in (*self._tensors(), (f"{self.name}.counts", counts)):
            with torch.no_grad():
                target.copy_(stored(tensors, key, target))
        in_a_row = tensors.get(f"{self.name}.in_a_row", torch.zeros_like(counts[0]))  # not in checkpoints of 0.1
        self.updates = int(counts[0])
        self.skips.copy_(torch.stack([counts[1], in_a_row]))

    def warm_start(self, model: nn.Module, updates: int) -> None:
        """Continue after `updates` updates from a model's weights, with new optimizer moments."""
        for own in (self.module, *([self.ema] if self.ema is not None else [])):
            own.load_state_dict(model.state_dict())
        self.optimizer.state.clear()
        self.updates = updates

    def _create_moments(self, tensors: dict[str, Tensor]) -> None:
        """Create the optimizer state of the parameters that have one in the checkpoint: the others had no gradient."""
        self.optimizer.state.clear()
        for key, parameter in self.parameters.items():
            if f"{self.name}.adam.{key}.step" not in tensors:
                continue
            self.optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for key, value in self.module.state_dict().items():
            yield f"{self.name}.model.{key}", value
        if self.ema is not None:
            for key, value in self.ema.state_dict().items():
                yield f"{self.name}.ema.{key}", value
        for key, parameter in self.parameters.items():
            for name, value in self.optimizer.state.get(parameter, {}).items():
                yield f"{self.name}.adam.{key}.{name}", value
