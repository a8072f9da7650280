"""Learning rate, EMA decay and weights as functions of the number of updates or steps."""

from __future__ import annotations

from dataclasses import dataclass

from prologue.config import OptimizerConfig, RunConfig
from prologue.errors import ConfigError


def learning_rate(config: OptimizerConfig, update: int, total: int) -> float:
    """Linear warm-up from 0 at update 0, hold, linear decay to `final_lr` at the last update (METHOD §7)."""
    if update < config.warmup:
        return config.lr * update / config.warmup
    decay_start = config.warmup + config.hold
    if update < decay_start:
        return config.lr
    progress = min(1.0, (update - decay_start) / max(1, total - 1 - decay_start))
    return config.lr + (config.final_lr - config.lr) * progress


def schedule_notes(config: RunConfig) -> list[str]:
    """Warnings about schedules that do not fit the steps of their stage."""
    first, second = config.tokenizer_training, config.prior_training
    notes = []
    for field, optimizer, steps in (
        ("tokenizer-training.autoencoder", first.autoencoder, first.steps),
        ("tokenizer-training.prior", first.prior, first.steps),
        ("prior-training.optimizer", second.optimizer, second.steps),
    ):
        if optimizer.warmup + optimizer.hold >= steps:
            notes.append(
                f"the learning rate never falls: --{field}.warmup {optimizer.warmup} and --{field}.hold "
                f"{optimizer.hold} fill all {steps} steps; lower them to a part of the steps"
            )
    late = [step for step in first.prologue_kmeans if step >= first.steps / 2]
    if late:
        notes.append(
            f"the prologue codebook would start from data again at step {late[-1]}, too late in {first.steps} steps: "
            "set --tokenizer-training.prologue-kmeans to steps in the first third"
        )
    return notes


def ema_decay(half_life: float) -> float:
    """`0.5^(1/half_life)`, with the half-life in updates."""
    return float(0.5 ** (1 / half_life))


@dataclass(frozen=True)
class Ramp:
    """A weight that is 0 before step `start` and then rises linearly to `weight` over `length` steps."""

    weight: float = 1.0
    start: int = 0
    length: int = 0

    def __post_init__(self) -> None:
        for name, kinds in (("weight", (int, float)), ("start", (int,)), ("length", (int,))):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, kinds) or (name != "weight" and value < 0):
                kind = "a number" if name == "weight" else "a number of steps"
                raise ConfigError(f"{name} must be {kind}, not {value!r}")

    def at(self, step: int) -> float:
        """The weight at `step`."""
        if step < self.start:
            return 0.0
        return self.weight * (1.0 if self.length == 0 else min(1.0, (step - self.start + 1) / self.length))
