"""The objects that all stages share: the run, its data, the process group and the random streams."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from prologue.config import OptimizerConfig, RunConfig
from prologue.data.source import Data
from prologue.models.layers import Dropout
from prologue.training.learner import Learner
from prologue.training.prefetch import Prefetcher
from prologue.training.run import RunFolder
from prologue.utils.cpu_threads import threads_for, user_count
from prologue.utils.rng import torch_stream
from prologue.utils.transfer import send


@dataclass
class Context:
    """A run as one process sees it. `accelerator` gives device, precision, process group and gradient exchange."""

    run: RunFolder
    data: Data
    accelerator: Any

    @property
    def config(self) -> RunConfig:
        return self.run.config

    @property
    def device(self) -> torch.device:
        device: torch.device = self.accelerator.device
        return device

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return bool(self.accelerator.is_main_process)

    @property
    def rank(self) -> int:
        return int(self.accelerator.process_index)

    @property
    def world(self) -> int:
        return int(self.accelerator.num_processes)

    def threads(self, stage: str, rows: int, width: int) -> int:
        """CPU threads of a stage whose matrix products have these sizes. A started stage keeps its number.

        Earlier versions stored no number and used all threads. A number in the user's environment takes precedence.
        """
        known = self.run.record["stages"].get(stage, {})
        if not known.keys() & {"steps", "threads"}:
            return threads_for(rows, width)
        available = torch.get_num_threads()
        return available if user_count() else int(known.get("threads", available))

    @cached_property
    def batches(self) -> Prefetcher:
        """The training images of each step, loaded ahead if loading is slow."""
        return Prefetcher(self.data.train, self.config.seed, self.rank, self.world)

    def learner(
        self, name: str, module: nn.Module, config: OptimizerConfig, total: int, ema_half_life: float | None
    ) -> Learner:
        """Move `module` to the device, wrap it for the process group, and create its learner."""
        module.to(self.device)
        wrapped = module
        if self.world > 1:
            # `accelerator.prepare_model` would put autocast into the unwrapped module too, and R1 needs fp32.
            devices = [self.device] if self.device.type == "cuda" else None
            with warnings.catch_warnings():
                # Newer versions of torch rename the option; older ones know only this name.
                warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
                wrapped = nn.parallel.DistributedDataParallel(module, device_ids=devices, broadcast_buffers=False)
        return Learner(name, module, wrapped, config, total, ema_half_life)

    def images(self, step: int, batch: int) -> tuple[Tensor, Tensor]:
        """The training images of this process at `step` as uint8, and their class ids, on the device."""
        taken = self.batches.get(step, batch)
        return send(taken.images, self.device), send(taken.labels, self.device)

    def chance(self, probability: float, step: int, batch: int, name: str) -> Bool[Tensor, " B"]:
        """This process's share of a batch of coin flips, which do not depend on the number of processes."""
        if probability in (0.0, 1.0):
            share = batch // self.world
            return torch.full((share,), bool(probability), device=self.device)
        draws = torch.rand(batch, generator=torch_stream(self.config.seed, name, step))
        share = batch // self.world
        mine = draws[self.rank * share : (self.rank + 1) * share] < probability
        return send(mine, self.device)

    def gather(self, tensor: Tensor) -> Tensor:
        """Concatenate `tensor` of all processes along the first dimension."""
        if self.world == 1:
            return tensor
        gathered: Tensor = self.accelerator.gather(tensor)
        return gathered

    def mean(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """The mean of each metric over the processes. All processes must give the same names in the same order."""
        values = {key: float(value) for key, value in metrics.items()}
        if self.world == 1 or not values:
            return values
        own = torch.tensor([list(values.values())], dtype=torch.float32, device=self.device)
        return dict(zip(values, self.gather(own).mean(0).tolist(), strict=True))

    def set_dropout_stream(self, module: nn.Module, name: str, step: int) -> None:
        """Let every dropout of `module` draw from a stream of this step and this process."""
        generator = torch_stream(self.config.seed, name, step, self.rank, device=self.device)
        for child in module.modules():
            if isinstance(child, Dropout):
                child.generator = generator
