"""A pipeline that is called from several threads gives each the same result as alone."""

from __future__ import annotations

import copy
import functools
import pickle
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from prologue import Guidance, Pipeline, TokenIds
from prologue.evaluation.features import ShapesExtractor
from prologue.models.tokenizer import to_model_range
from prologue.sampling.compiling import Compiler
from prologue.sampling.manifest import Manifest
from prologue.sampling.recipe import Recipe

NAMES = ("ring", "star", "cross")
SPLIT = Guidance.split(prologue=("constant", 0.7), visual=("cosine", 3.75, 0.2))
THREADS = 4


@pytest.fixture(autouse=True)
def _change_threads_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def opened(tiny_models, compile: bool = False) -> Pipeline:
    return Pipeline(*tiny_models(), Manifest(NAMES, Recipe(SPLIT)), compile=compile)


def plain(value: object) -> object:
    """Return the result of a call as bytes and numbers."""
    if isinstance(value, TokenIds):
        return value.prologue.tolist(), value.visual.tolist()
    if isinstance(value, list):
        return [image.tobytes() for image in value]
    return plain(value.tokens), plain(value.images), value.seeds, value.class_ids  # type: ignore[attr-defined]


def jobs(pipe: Pipeline) -> list[Callable[[], object]]:
    """Return calls of every kind with different classes, seeds and sizes."""
    pictures = pipe.generate(["ring", "star"], seed=90).images
    tokens = pipe.sample(["cross", "ring", "star"], seed=70)
    calls: list[Callable[[], object]] = []
    for number, name in enumerate((*NAMES, "ring")):
        calls += [
            lambda name=name, number=number: pipe.generate(name, count=4 + number, seed=10 * number, batch=2),
            lambda name=name, number=number: pipe.sample(name, count=3, seed=number, guidance=SPLIT, top_k=3),
            lambda name=name, number=number: pipe.resample(pictures, name, count=2, seed=number, batch=3),
            lambda number=number: pipe.decode(tokens.visual[number % 3 :], batch=1),
            lambda number=number: pipe.encode(pictures[number % 2]),
        ]
    return calls


def in_threads(calls: Sequence[Callable[[], object]], by: Callable[[object], object] = plain) -> list[object]:
    start = threading.Barrier(THREADS)

    def run(first: int) -> dict[int, object]:
        start.wait()
        return {number: by(calls[number]()) for number in range(first, len(calls), THREADS)}

    with ThreadPoolExecutor(THREADS) as pool:
        found = [done.result() for done in [pool.submit(run, first) for first in range(THREADS)]]
    return [value for _, value in sorted((item for part in found for item in part.items()), key=lambda item: item[0])]


def test_threads_get_the_results_of_single_calls(tiny_models) -> None:
    calls = jobs(opened(tiny_models))
    alone = [plain(call()) for call in calls]
    assert len({str(each) for each in alone}) == len(calls) - 3  # three calls ask for what another asks for
    for _ in range(3):
        assert in_threads(calls) == alone


def test_models_and_features_keep_nothing_between_calls(tiny_models) -> None:
    tokenizer, prior = tiny_models()
    extractor = ShapesExtractor()
    stream = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8, 3, 8, 12), dtype=torch.uint8, generator=stream)
    scenes = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=stream)

    @torch.no_grad()
    def job(first: int) -> bytes:
        tokens = tokenizer.encode(to_model_range(images[first : first + 2]))
        logits = prior(prior.layout.pack(tokens), torch.tensor([0, 1]))
        features = extractor(scenes[first : first + 2])
        return b"".join(part.numpy().tobytes() for part in (tokenizer.decode(tokens.visual), logits, features))

    calls = [functools.partial(job, first) for first in range(7)]
    assert in_threads(calls, by=lambda value: value) == [call() for call in calls]


@pytest.mark.slow
def test_threads_may_share_compiled_graphs(tiny_models, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs and cache belong to the pipeline: one thread compiles, all use the result."""
    torch._dynamo.reset()
    monkeypatch.setattr(Compiler, "whole", lambda _, function: torch.compile(function, backend="eager", fullgraph=True))
    pipe = opened(tiny_models, compile=True)
    calls = [lambda seed=seed: pipe.generate(NAMES, count=4, seed=seed, batch=2) for seed in range(0, 40, 10)]
    at_once = in_threads(calls)
    assert at_once == [plain(call()) for call in calls]
    assert at_once == [plain(opened(tiny_models).generate(NAMES, count=4, seed=s, batch=2)) for s in range(0, 40, 10)]


def test_threads_share_warnings_that_are_shown_once(tiny_models) -> None:
    pipe = opened(tiny_models)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        in_threads([lambda seed=seed: pipe.sample(None, seed=seed) for seed in range(2 * THREADS)])
    assert len(said) == 1


def test_nested_calls_do_not_wait(tiny_models) -> None:
    pipe = opened(tiny_models)
    with ThreadPoolExecutor(1) as pool, pipe._turn(1):
        waiting = pool.submit(pipe.sample, "ring", seed=3)
        assert plain(pipe.sample("ring", seed=3))
        assert not waiting.done()
    assert plain(waiting.result()) == plain(pipe.sample("ring", seed=3))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pipe: pickle.loads(pickle.dumps(pipe))])
def test_a_copy_has_its_own_lock(tiny_models, copied) -> None:
    pipe = opened(tiny_models)
    expected = plain(pipe.generate("star", seed=4))
    other = copied(pipe)
    assert other._shared.engines == {}
    with pipe._shared.turn, ThreadPoolExecutor(1) as pool:
        assert plain(pool.submit(other.generate, "star", seed=4).result(timeout=60)) == expected
