"""Sampling on a GPU: compiled steps and recorded graphs against eager ones, and against a CPU."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import pytest
import torch
from tests.sampling.test_decode import RECIPES, SPLIT, assert_equal_up_to_near_ties, reference

from prologue import Pipeline
from prologue.models.precision import convert
from prologue.sampling.compiling import Compiler
from prologue.sampling.decode import sample_sequences
from prologue.sampling.engine import Engine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GPU = torch.device("cuda")


@pytest.fixture
def models(tiny_models):
    """On the CPU, in fp32."""
    torch._dynamo.reset()
    return deepcopy(tiny_models(width=64))


def pipeline(models, dtype: str = "fp32", compile: bool = True) -> Pipeline:
    return Pipeline(*convert(*deepcopy(models), dtype, GPU), compile=compile)


def bytes_of(images) -> list[bytes]:
    return [image.tobytes() for image in images]


@pytest.mark.parametrize("name", ["plain", "split", "overall", "greedy"])
@pytest.mark.parametrize("compiled", [False, True])
def test_fp32_equals_the_reference(models, name: str, compiled: bool) -> None:
    _, prior = models
    on_gpu = deepcopy(prior).to(GPU)
    engine = Engine(on_gpu, Compiler(GPU) if compiled else None)
    for seed in range(3):
        classes, seeds = torch.tensor([2, 0, 1]), [seed, seed + 10, seed + 20]
        expected, lead = reference(prior, classes, RECIPES[name], seeds)
        found = sample_sequences(on_gpu, classes.to(GPU), RECIPES[name], seeds, engine=engine)
        assert_equal_up_to_near_ties(found.cpu(), expected, lead)


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_half_precision_agrees_mostly(models, dtype: str) -> None:
    """Of the tokens before which all are the same; a draw of other logits is another token only near a tie."""
    same = pairs = 0
    eager, compiled = pipeline(models, dtype, compile=False), pipeline(models, dtype)
    first, second = (
        pipe.prior.layout.pack(pipe.sample(count=96, guidance=SPLIT, batch=32)) for pipe in (eager, compiled)
    )
    for a, b in zip(first.tolist(), second.tolist(), strict=True):
        until = next((index for index, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))
        same, pairs = same + until, pairs + min(until + 1, len(a))
    assert same / pairs > 0.95


def test_the_compiled_decoder_decodes(models) -> None:
    eager, compiled = pipeline(models, compile=False), pipeline(models)
    visual = eager.sample(count=7, seed=3).visual
    for one, other in zip(eager.decode(visual, batch=3), compiled.decode(visual, batch=3), strict=True):
        a, b = (torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).int() for image in (one, other))
        assert int((a - b).abs().max()) <= 1


def test_what_is_kept_is_not_overwritten(models) -> None:
    pipe = pipeline(models)
    for _ in range(3):  # warm-up, recording, replay
        whole = pipe.generate(count=6, seed=5, batch=2, guidance=SPLIT)
    for start in range(0, 6, 2):
        part = pipe.decode(whole.tokens.visual[start : start + 2], batch=2)
        assert bytes_of(part) == bytes_of(whole.images[start : start + 2])
    again = pipe.generate(count=6, seed=5, batch=2, guidance=SPLIT)
    pipe.generate(count=6, seed=50, batch=2, guidance=SPLIT)
    assert torch.equal(again.tokens.visual, whole.tokens.visual)
    assert bytes_of(again.images) == bytes_of(whole.images)


def test_graphs_recorded_by_one_thread_serve_all(models) -> None:
    pipe = pipeline(models)

    def draw(seed: int) -> list[bytes]:
        with torch.cuda.stream(torch.cuda.Stream()):
            return bytes_of(pipe.generate(count=4, seed=seed, batch=2, guidance=SPLIT).images)

    with ThreadPoolExecutor(4) as pool:
        at_once = list(pool.map(draw, range(0, 80, 10)))
    assert at_once == [draw(seed) for seed in range(0, 80, 10)]
