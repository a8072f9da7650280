"""Tiny runs that train in about a second, with every term of the objective on."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prologue.config import (
    DataConfig,
    OptimizerConfig,
    PriorOptions,
    PriorTraining,
    RunConfig,
    TokenizerConfig,
    TokenizerTraining,
    TransformerConfig,
)
from prologue.data.source import open_data
from prologue.training.context import Context
from prologue.training.progress import Progress
from prologue.training.run import RunFolder
from prologue.training.train import TrainRequest, make_accelerator, train

STACK = TransformerConfig(32, 1, 2)
FAST = OptimizerConfig(lr=1e-3, warmup=3, hold=5)


def tiny_config(variant: str = "prologue", **training: Any) -> RunConfig:
    """24 px, 9 visual and 3 prologue tokens; `training` replaces fields of the tokenizer's training."""
    has_prologue = variant.startswith("prologue")
    defaults: dict[str, Any] = {
        "steps": 20, "batch": 4, "autoencoder": FAST, "prior": FAST, "discriminator": FAST,
        "prior_model": PriorOptions(32, 1, 2, dropout=0.1), "ema_half_life": 3, "prior_ema_half_life": 3,
        "perceptual": "none", "gan": 0.1, "gan_start": 6, "gan_ramp": 3, "gan_channels": 4, "gan_augment": True,
        "r1_every": 3, "dead_code_reset_every": 4,
    }  # fmt: skip
    if has_prologue:
        defaults |= {"ce_start": 7, "ce_ramp": 3, "prologue_kmeans": (8,)}
    else:
        defaults |= {"ce_prologue": 0.0, "ce_visual": 0.0, "visual_dropout": 0.0}
    if variant == "prologue-post":
        defaults |= {"l1": 0.0, "gan": 0.0, "vq": 0.0, "ce_start": 0}
    return RunConfig(
        data=DataConfig(shapes_images=10, shapes_validation=6),
        tokenizer=TokenizerConfig(
            variant=variant, image_size=(24, 24), patch_size=8, encoder=STACK, decoder=STACK,
            prologue_encoder=TransformerConfig(32, 1, 2, "11/4") if variant == "prologue-post" else None,
            code_dim=6, codebook_size=32, prologue_tokens=3 if has_prologue else 0, prologue_codebook_size=8,
        ),
        prior=PriorOptions(32, 1, 2, dropout=0.1),
        tokenizer_training=TokenizerTraining(**(defaults | training)),
        prior_training=PriorTraining(
            steps=20, batch=4, optimizer=FAST, ema_half_life=3, visual_dropout=0.2, keep_best_every=6
        ),
        checkpoint_every=5, log_every=3, sample_every=10,
    )  # fmt: skip


class StopAt(Progress):
    """Sends this process a signal once `step` steps of `stage` are done, as a scheduler or Ctrl-C does."""

    def __init__(self, stage: str, step: int, number: int = signal.SIGTERM) -> None:
        self.stage, self.step, self.number, self.now, self.said = stage, step, number, "", []

    def say(self, sentence: str) -> None:
        self.said.append(sentence)

    def begin(self, name: str, start: int, total: int, batch: int) -> None:
        self.now = name

    def advance(self, done: int) -> None:
        if (self.now, done) == (self.stage, self.step):
            signal.raise_signal(self.number)

    def show(self, done: int, record: dict[str, Any]) -> None:
        self.advance(done)


class Heard(StopAt):
    """Only listens."""

    def __init__(self) -> None:
        super().__init__("", 0)


def run_training(out: Path, config: RunConfig, progress: Progress | None = None, **request: Any) -> RunFolder:
    """`prologue train` on the CPU."""
    request = {"data": "shapes", "device": "cpu"} | request
    return train(TrainRequest(config, out=out, **request), progress or Progress())


def hashes(run: Path) -> dict[str, str]:
    """The hash of every file of the two models and the token store."""
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in ("tokenizer", "prior", "tokens")
        for path in sorted((run / folder).glob("*"))
    }


def figures(run: Path) -> list[dict[str, Any]]:
    """All log records, without what depends on the clock."""
    records = RunFolder.load(run).metrics()
    return [{key: value for key, value in record.items() if key != "images_per_second"} for record in records]


def save_pictures(folder: Path, count: int) -> None:
    """Noise as PNG files."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(generator.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(folder / f"{number}.png")


def make_context(out: Path, config: RunConfig) -> Context:
    """What a stage works with, on a new run of `shapes`."""
    data = open_data("shapes", config.data, config.tokenizer.image_size)
    return Context(RunFolder.open(out, config, {}), data, make_accelerator(config.precision, "cpu"))


@pytest.fixture
def context(tmp_path: Path) -> Callable[..., Context]:
    """`make_context` in an own folder: `context(variant, **training)`."""

    def make(variant: str = "prologue", **training: Any) -> Context:
        return make_context(tmp_path / "run", tiny_config(variant, **training))

    return make


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    """The helpers of this file: test modules are not importable from one another."""

    helpers = (tiny_config, StopAt, Heard, run_training, hashes, figures, make_context, save_pictures)
    return SimpleNamespace(**{helper.__name__: helper for helper in helpers})


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all stages that nothing disturbed."""
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    run_training(out, tiny_config())
    return out
