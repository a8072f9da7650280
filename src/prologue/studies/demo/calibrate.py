"""Measured durations of the parts of a demo on this machine."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from prologue.config import RunConfig, Variant
from prologue.data.order import center_batch
from prologue.data.source import Data, open_data
from prologue.data.token_store import TokenStore
from prologue.evaluation.feature_networks import Features
from prologue.evaluation.kinds.generation import evaluate_generation
from prologue.evaluation.kinds.reconstruction import evaluate_reconstruction
from prologue.evaluation.runs import Split
from prologue.models.tokenizer import to_model_range
from prologue.studies.demo.plan import Timings
from prologue.studies.demo.recipe import RECIPE, demo_config
from prologue.training.context import Context
from prologue.training.loop import StopRequest
from prologue.training.prior_stage import PriorStage
from prologue.training.progress import Progress
from prologue.training.run import RunFolder
from prologue.training.tokenizer_stage import TokenizerStage
from prologue.training.tokens_stage import write_tokens
from prologue.training.train import make_accelerator

_IMAGES = 128
_LEAST = 3
_FIRST_STEP = 300
"""The first step that is timed. The k-means steps of the prologue codebook are earlier."""
_MOST_SECONDS = 12.0
_LARGE = 4.0
"""Minutes of a budget whose evaluations are timed on more images."""
_PART = 0.03
"""Part of the budget for timing steps."""


def calibrate(variant: Variant, minutes: float, device: str, shares: int = 1) -> Timings:
    """Time the parts of a run of `variant` in a temporary folder. `shares` variants divide the time for it."""
    seconds = min(_MOST_SECONDS, _PART * 60 * minutes) / shares / 2
    config = demo_config(1000, 1000, minutes, variant=variant)
    data_config = dataclasses.replace(config.data, shapes_images=_IMAGES, shapes_validation=_IMAGES // 2)
    config = dataclasses.replace(config, data=data_config)
    with tempfile.TemporaryDirectory() as folder:
        data = open_data("shapes", config.data, config.tokenizer.image_size)
        run = RunFolder.open(Path(folder) / "run", config, {})
        context = Context(run, data, make_accelerator(config.precision, device))
        return _measure(context, config, data, seconds, 64 if minutes >= _LARGE else 24)


def _measure(context: Context, config: RunConfig, data: Data, seconds: float, images: int) -> Timings:
    rendering = _seconds(lambda: center_batch(data.train, range(_IMAGES))) / _IMAGES
    tokenizer = TokenizerStage(context)
    tokenizer_step = _median(lambda step: float(tokenizer.step(step)["loss"]), seconds)
    checkpoint = _seconds(lambda: context.run.checkpoints("tokenizer").save(1, tokenizer.state()))
    tokenizer.finish()
    model = tokenizer.ema_model()
    model.encode(to_model_range(center_batch(data.train, range(16)).images.to(context.device)))
    token_view = _seconds(lambda: write_tokens(context, Progress(), StopRequest())) / _IMAGES
    prior = PriorStage(context, TokenStore(context.run.tokens_folder))
    prior_step = _median(lambda step: float(prior.step(step)["loss"]), seconds)
    features = Features.open("shapes", "shapes")

    def sample(count: int) -> None:
        evaluate_generation(model, prior.ema_model(), RECIPE, data.train, features, count=count)

    def reconstruct(count: int) -> None:
        evaluate_reconstruction(model, Split("validation", data.validation), features, count=count)

    sample(8)
    sampled_row = _seconds(lambda: sample(images)) / images / 2
    center_batch(data.validation, range(len(data.validation)))
    reconstruct(12)
    reconstructed = _seconds(lambda: reconstruct(images)) / images
    return Timings(tokenizer_step, prior_step, token_view, sampled_row, reconstructed, rendering, checkpoint)


def _seconds(work: Callable[[], object]) -> float:
    """Wall time of `work`, until the device is idle."""
    begin = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def _median(step: Callable[[int], object], seconds: float) -> float:
    """Median wall time of the steps in about `seconds`, after a warm-up step."""
    step(_FIRST_STEP)
    times: list[float] = []
    while len(times) < _LEAST or sum(times) < seconds:
        number = _FIRST_STEP + 1 + len(times)
        times.append(_seconds(lambda number=number: step(number)))  # type: ignore[misc]
    return statistics.median(times)
