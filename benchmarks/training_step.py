"""The speed of a training step with several options, and its profile by operator.

    python benchmarks/training_step.py [--preset small-32] [--steps 8] [--rounds 5] [--json FILE]

All variants are warmed up first. Then they alternate, so that a change of the machine's speed affects all of them. A
ratio is the median over rounds of the baseline's time over the variant's.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from prologue.config import Precision, RunConfig
from prologue.data.source import open_data
from prologue.presets import preset
from prologue.training.context import Context
from prologue.training.run import RunFolder
from prologue.training.tokenizer_stage import TokenizerStage
from prologue.training.train import make_accelerator
from prologue.utils.allocator import keep_freed_memory

VARIANTS: dict[str, tuple[Precision, bool]] = {
    "fp32, two passes": ("fp32", False),
    "fp32, shared pass": ("fp32", True),
    "bf16, two passes": ("bf16", False),
    "bf16, shared pass": ("bf16", True),
}
"""Precision, and whether both steps share one pass of the stage-1 prior. The first is the baseline."""


def build(config: RunConfig, precision: Precision, shared: bool, folder: Path) -> TokenizerStage:
    """A tokenizer stage on `shapes` with these options."""
    training = dataclasses.replace(config.tokenizer_training, shared_prior_pass=shared, prologue_kmeans=())
    data = dataclasses.replace(config.data, shapes_images=1024, crop="center", flip=False)
    config = dataclasses.replace(config, tokenizer_training=training, data=data)
    images = open_data("shapes", config.data, config.tokenizer.image_size)
    return TokenizerStage(Context(RunFolder.open(folder, config, {}), images, make_accelerator(precision, "cpu")))


def clock(stage: TokenizerStage, first: int, steps: int) -> float:
    """Seconds per step."""
    start = time.perf_counter()
    for step in range(first, first + steps):
        stage.step(step)
    return (time.perf_counter() - start) / steps


def table(run: Callable[[], object]) -> str:
    """Time by operator, longest first."""
    with profile(activities=[ProfilerActivity.CPU]) as measured:
        run()
    events = sorted(measured.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    lines = [f"{event.self_cpu_time_total / total:6.1%}  {event.count:6d} ×  {event.key}" for event in events[:16]]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small-32")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    keep_freed_memory()
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    with tempfile.TemporaryDirectory() as folder:
        config = preset(options.preset)
        stages = {
            name: build(config, precision, shared, Path(folder) / str(index))
            for index, (name, (precision, shared)) in enumerate(VARIANTS.items())
        }
        for stage in stages.values():
            clock(stage, 0, 3)
        for turn in range(options.rounds):
            for name, stage in stages.items():
                seconds[name].append(clock(stage, 3 + turn * options.steps, options.steps))
        baseline = seconds[next(iter(VARIANTS))]
        batch = config.tokenizer_training.batch
        records = []
        for name, measured in seconds.items():
            ratio = statistics.median(base / own for base, own in zip(baseline, measured, strict=True))
            median = statistics.median(measured)
            records.append({"variant": name, "seconds": median, "images_per_second": batch / median, "ratio": ratio})
            print(f"{name:20s} {median * 1000:8.1f} ms   {batch / median:7.1f} images/s   {ratio:5.2f}×")
        first = 3 + options.rounds * options.steps
        fastest = stages["bf16, shared pass"]
        print(f"\n{torch.get_num_threads()} threads, bf16, shared pass, by operator:")
        print(table(lambda: clock(fastest, first, 4)))
    if options.json:
        provenance = {"preset": options.preset, "threads": torch.get_num_threads(), "torch": torch.__version__}
        options.json.write_text(json.dumps({"provenance": provenance, "records": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
