"""How the loop runs a prior: which rows at which steps, what is shared, and the same results when compiled."""

from __future__ import annotations

import shutil
import warnings
from copy import deepcopy

import pytest
import torch
import torch._inductor.config
from tests.conftest import shake
from tests.sampling.test_decode import RECIPES, SPLIT, assert_equal_up_to_near_ties, reference

from prologue.errors import SamplingError
from prologue.models.precision import convert
from prologue.models.prior import Prior
from prologue.sampling import compiling
from prologue.sampling.compiling import Compiler, worth_compiling
from prologue.sampling.decode import sample_sequences
from prologue.sampling.engine import Engine
from prologue.sampling.graphs import Logits
from prologue.sampling.guidance import Guidance
from prologue.sampling.recipe import Recipe

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="compiling on a CPU needs a C++ compiler"
)


class Watched(Engine):
    """Writes down what is run: (rows, positions) of every prefill, rows of every step."""

    def __init__(self, prior: Prior) -> None:
        super().__init__(prior)
        self.prefills: list[tuple[int, int]] = []
        self.steps: list[int] = []

    def _run(self, cache, x, start):
        self.prefills.append((len(x), x.shape[1]))
        return super()._run(cache, x, start)

    def step(self, cache, ids, position, segment):
        hidden = super().step(cache, ids, position, segment)
        self.prefills.pop()  # eager steps go the same way
        self.steps.append(len(ids))
        return hidden


def watched(prior: Prior, recipe: Recipe, classes: list[int], given=None) -> Watched:
    engine = Watched(prior)
    ids = torch.tensor(classes)
    sample_sequences(prior, ids, recipe, list(range(len(ids))), given, engine)
    return engine


def test_rows_without_guidance(tiny_models) -> None:
    _, prior = tiny_models()  # prologue of 3, EOS, 6 visual ids
    engine = watched(prior, Recipe(), [0, 1, 2])
    assert engine.prefills == [(3, 1), (3, 2)]  # BOS; the last prologue id with EOS
    assert engine.steps == [3] * 7


def test_equal_rows_are_prefilled_once(tiny_models) -> None:
    _, prior = tiny_models()
    assert watched(prior, Recipe(), [1, 1, 1, 1]).prefills[0] == (1, 1)
    guided = watched(prior, Recipe(Guidance.overall("constant", 2.0)), [1, 1, 0, 1])
    assert guided.prefills[0] == (3, 1)  # two classes and the null class
    given = torch.tensor([[16, 17, 18, 24]]).repeat(4, 1)
    assert watched(prior, Recipe(), [1, 1, 1, 1], given).prefills == [(1, 5)]
    given[3, 0] = 19
    assert watched(prior, Recipe(), [1, 1, 1, 1], given).prefills == [(2, 5)]


def test_null_rows_run_where_the_scale_is_not_1(tiny_models) -> None:
    _, prior = tiny_models()
    late = watched(prior, Recipe(Guidance.split(prologue=("constant", 1.0), visual=("constant", 2.0))), [0, 1])
    # At the first visual step the null rows run over BOS and the first two prologue ids, then all over the rest.
    assert late.prefills == [(2, 1), (2, 3), (4, 2)]
    assert late.steps == [2] * 2 + [4] * 5
    early = watched(prior, Recipe(Guidance.split(prologue=("constant", 2.0), visual=("constant", 1.0))), [0, 1])
    assert early.prefills == [(3, 1), (2, 2)]
    assert early.steps == [4] * 2 + [2] * 5
    nowhere = Recipe(Guidance.split(prologue=("constant", 1.0), visual=("constant", 1.0)))
    assert set(watched(prior, nowhere, [0, 1]).steps) == {2}


@pytest.mark.parametrize("scales", [(1.0, 2.0), (2.0, 1.0), (0.0, 3.0)])
def test_left_out_null_rows_change_nothing(tiny_models, scales: tuple[float, float]) -> None:
    _, prior = tiny_models()
    recipe = Recipe(Guidance.split(prologue=("constant", scales[0]), visual=("linear", scales[1])))
    classes, seeds = torch.tensor([0, 2, 1, 1]), [5, 6, 7, 8]
    expected, lead = reference(prior, classes, recipe, seeds)
    assert_equal_up_to_near_ties(sample_sequences(prior, classes, recipe, seeds), expected, lead)


def test_an_engine_serves_one_batch_after_another(tiny_models) -> None:
    _, prior = tiny_models()
    engine = Engine(prior)
    for classes in ([0, 1, 2], [2, 2, 0], [1]):
        ids, seeds = torch.tensor(classes), list(range(len(classes)))
        again = sample_sequences(prior, ids, Recipe(SPLIT), seeds, engine=engine)
        assert torch.equal(again, sample_sequences(prior, ids, Recipe(SPLIT), seeds))


@pytest.fixture(scope="module")
def compiled(tiny_models) -> tuple[Prior, Engine, list[tuple[str, float | None]]]:
    """A prior and an engine that compiled its steps for guided batches of 3."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    said: list[tuple[str, float | None]] = []
    _, prior = tiny_models()
    engine = Engine(prior, Compiler(CPU, lambda what, seconds: said.append((what, seconds))))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample_sequences(prior, torch.tensor([0, 1, 2]), Recipe(SPLIT), [0, 1, 2], engine=engine)
    return prior, engine, said


@needs_compiler
@pytest.mark.parametrize("name", ["overall", "split", "greedy"])
def test_compiled_equals_uncached(compiled, name: str) -> None:
    prior, engine, _ = compiled
    recipe = RECIPES[name]
    for seed in range(4):
        classes, seeds = torch.tensor([2, 0, 1]), [seed, seed + 10, seed + 20]
        expected, lead = reference(prior, classes, recipe, seeds)
        assert_equal_up_to_near_ties(sample_sequences(prior, classes, recipe, seeds, engine=engine), expected, lead)


@needs_compiler
def test_one_graph_without_breaks_serves_all_positions(compiled) -> None:
    prior, engine, said = compiled
    counters = torch._dynamo.utils.counters
    sample_sequences(prior, torch.tensor([1, 1, 0]), Recipe(SPLIT), [7, 8, 9], engine=engine)
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 2  # logits and step
    assert [what for what, seconds in said if seconds is None] == ["logits of 6 rows", "step of 6 rows"]
    assert all(seconds > 0 for _, seconds in said if seconds is not None)
    # Given ids make the step begin elsewhere, and one row count more makes one graph more of each.
    given = sample_sequences(prior, torch.tensor([1, 1, 0]), Recipe(SPLIT), [7, 8, 9], engine=engine)[:, :7]
    sample_sequences(prior, torch.tensor([1, 1, 0]), Recipe(SPLIT), [7, 8, 9], given, engine)
    assert counters["stats"]["unique_graphs"] == 2


@needs_compiler
def test_changed_weights_are_noticed(compiled) -> None:
    prior, engine, said = compiled
    classes, seeds = torch.tensor([0, 1, 2]), [3, 4, 5]
    before, kept = len(said), prior.out.weight.detach().clone()
    with torch.no_grad():
        prior.out.weight.neg_()
    try:
        expected, lead = reference(prior, classes, Recipe(SPLIT), seeds)
        found = sample_sequences(prior, classes, Recipe(SPLIT), seeds, engine=engine)
    finally:
        with torch.no_grad():
            prior.out.weight.copy_(kept)
    assert_equal_up_to_near_ties(found, expected, lead)
    assert len(said) == before + 4


@needs_compiler
def test_another_prior_of_the_same_sizes_keeps_its_own_weights(compiled) -> None:
    prior = deepcopy(compiled[0])
    shake(prior, seed=9)
    classes, seeds = torch.tensor([0, 1, 2]), [3, 4, 5]
    expected, lead = reference(prior, classes, Recipe(SPLIT), seeds)
    found = sample_sequences(prior, classes, Recipe(SPLIT), seeds, engine=Engine(prior, Compiler(CPU)))
    assert_equal_up_to_near_ties(found, expected, lead)


class CppCompileError(RuntimeError):
    """By the name of torch's own, which is made of a command and what it printed."""


class TritonMissing(RuntimeError):
    pass


def wrapped(error: Exception) -> RuntimeError:
    """As the compiler hands errors on."""
    outer = RuntimeError("backend='inductor' raised")
    outer.inner_exception = error  # type: ignore[attr-defined]
    return outer


MISSING = {
    "compiler": RuntimeError("No working C++ compiler found in torch._inductor.config.cpp.cxx: (None, 'g++')\nmore"),
    "headers": wrapped(CppCompileError("C++ compile error\nfatal error: Python.h: No such file or directory")),
    "linker": CppCompileError("ld: cannot find -lgomp"),
    "triton": wrapped(TritonMissing("Cannot find it")),
    "triton's compiler": wrapped(RuntimeError("Failed to find C compiler. Please specify via CC")),
    "in a worker": RuntimeError("An exception occurred in a subprocess:\nRuntimeError: Failed to find C compiler"),
    "python": RuntimeError("torch.compile is not supported on Python 3.15+"),
}
OTHERS = {
    "a branch": torch._dynamo.exc.Unsupported("Data-dependent branching"),
    "a fault of the code": CppCompileError("error: 'tmp0' was not declared in this scope"),
    "a mistake": TypeError("unsupported operand"),
    "a lost tensor": wrapped(RuntimeError("accessing tensor output of CUDAGraphs that has been overwritten")),
}


@pytest.mark.parametrize("reason", MISSING)
def test_without_tools_it_runs_as_it_is_and_says_so_once(
    tiny_models, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    _, prior = tiny_models()

    def fail(*_, **__):
        raise MISSING[reason]

    monkeypatch.setattr(compiling, "_first", fail)
    engine = Engine(prior, Compiler(CPU))
    classes, seeds = torch.tensor([0, 1]), [1, 2]
    with pytest.warns(UserWarning, match=r"continues without compiling.*install a C\+\+ compiler") as said:
        found, again = (sample_sequences(prior, classes, Recipe(SPLIT), seeds, engine=engine) for _ in range(2))
    assert len(said) == 1
    expected, lead = reference(prior, classes, Recipe(SPLIT), seeds)
    assert_equal_up_to_near_ties(found, expected, lead)
    assert torch.equal(again, found)


@pytest.mark.parametrize("reason", OTHERS)
def test_other_errors_are_not_taken_for_missing_tools(
    tiny_models, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    _, prior = tiny_models()

    def fail(*_, **__):
        raise OTHERS[reason]

    monkeypatch.setattr(compiling, "_first", fail)
    with pytest.raises(type(OTHERS[reason])):
        sample_sequences(prior, torch.tensor([0]), Recipe(), [1], engine=Engine(prior, Compiler(CPU)))


def test_a_machine_without_a_compiler(tiny_models) -> None:
    """What torch itself raises there."""
    _, prior = tiny_models()
    torch._dynamo.reset()
    graph, hidden = Logits(prior, prior.layout.segments[-1]), torch.ones(2, 1, 24)
    without = torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True})
    with torch.inference_mode(), without, pytest.warns(UserWarning, match="continues without compiling"):
        logits, finite = Compiler(CPU).compile(graph, "logits")(hidden, None)
    assert torch.equal(logits, graph(hidden, None)[0])
    assert finite


def test_missing_memory_is_no_missing_compiler(tiny_models, monkeypatch: pytest.MonkeyPatch) -> None:
    _, prior = tiny_models()

    def fail(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(compiling, "_first", fail)
    with pytest.raises(RuntimeError, match="allocate memory"):
        sample_sequences(prior, torch.tensor([0]), Recipe(), [1], engine=Engine(prior, Compiler(CPU)))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_logits_that_are_not_finite_name_position_and_precision(tiny_models, precision: str) -> None:
    tokenizer, prior = tiny_models()
    prior = convert(tokenizer, prior, precision, CPU)[1]
    with torch.no_grad():
        prior.token_embedding.weight[:16] = torch.nan  # visual ids: the second visual position is the first to see one
    name = {"fp32": "float32", "bf16": "bfloat16", "int8": "int8"}[precision]
    with pytest.raises(SamplingError, match=f"position 5 are not finite in {name}"):
        sample_sequences(prior, torch.tensor([0]), Recipe(), [1])


def test_given_ids_of_another_segment_are_refused(tiny_models) -> None:
    _, prior = tiny_models()
    for given, named in (
        ([[16, 17, 3]], r"id 3 at position 2 of image 0 lies outside the prologue segment's ids 16…23"),
        ([[16, 17, 18, 24, 16]], r"id 16 at position 4 of image 0 lies outside the visual segment's ids 0…15"),
        ([[16, 17, 18, 2]], r"position 3 of image 0 lies outside the eos segment's ids 24…24"),
        ([[16] * 11], "do not fit 1 images of 10 positions"),
    ):
        with pytest.raises(SamplingError, match=named):
            sample_sequences(prior, torch.tensor([0]), Recipe(), [1], torch.tensor(given))


def test_compiling_is_worth_it_for_much_work_alone(tiny_models) -> None:
    config = tiny_models()[1].config
    assert not worth_compiling(config, CPU, 10_000, rows=4, batches=1)
    assert worth_compiling(config, CPU, 4_000_000_000, rows=4, batches=1000)
    assert worth_compiling(config, CPU, 10_000, rows=4, batches=10**6)
    assert not worth_compiling(config, torch.device("mps"), 4_000_000_000, rows=4, batches=1000)
