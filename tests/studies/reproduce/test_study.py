"""A study continues where it was: with stubbed trainings after a kill anywhere, and once for real."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from prologue.cli.main import main
from prologue.errors import ConfigError, EvaluationError, RunError
from prologue.evaluation.versions import VERSIONS
from prologue.models.weights import file_hash, model_hashes
from prologue.studies.reproduce import jobs, measures, study, worker
from prologue.studies.reproduce.pieces import (
    Piece,
    all_pieces,
    checked_variants,
    images_seen,
    load_results,
    seconds_left,
    stage_flops,
)
from prologue.studies.reproduce.request import OVERTIME, Deadline, OutOfTime, StudyRequest
from prologue.studies.reproduce.scales import SCALES, VARIANTS, Scale, plain_config, run_config, scale_named
from prologue.studies.reproduce.setting import open_bench
from prologue.studies.reproduce.study import StudyOutcome, reproduce
from prologue.studies.reproduce.worker import Worker, stage_seconds
from prologue.training.loop import Stopped
from prologue.training.progress import Progress
from prologue.training.run import RunFolder
from prologue.utils import locks
from prologue.utils.serialization import load_json, save_json

pytestmark = pytest.mark.slow

Make = Callable[..., Any]
TINY = dataclasses.replace(
    SCALES["minutes"], tokenizer_steps=6, prior_steps=6, shapes_images=48, shapes_validation=32, sweep_samples=8,
    finalists=1, samples=16, measured_images=32, probe_images=48, layout_images=16, temperatures=(1.0,),
    guidance_scales=(2.0,), tokenizer_batch=4, prior_batch=4, width=32, depth=1,
)  # fmt: skip


class _Killed(Exception):
    pass


def _request(out: Path, **changes: Any) -> StudyRequest:
    values: dict[str, Any] = {"out": out, "data": "shapes", "scale_name": "minutes", "scale": TINY, "seeds": (0, 1)}
    values |= {"variants": VARIANTS, "device": "cpu", "provenance": {"command": "prologue reproduce"}}
    return StudyRequest(**(values | changes))


class _Stub:
    """Stands for training and measuring: writes what they leave, counts calls, and may be killed at one of them."""

    def __init__(self, make: Make) -> None:
        self.make = make
        self.calls: list[str] = []
        self.die_at: int | None = None
        self.begun = 0
        self.slow = 0.0

    def _begin(self) -> None:
        self.begun += 1
        if self.die_at is not None and self.begun > self.die_at:
            raise _Killed

    def train(self, request: Any, progress: Any, stop: Any, data: Any) -> RunFolder:
        run = RunFolder.open(request.out, request.config, {})
        stages = ["tokenizer"] if request.config.tokenizer_training.one_stage else ["tokenizer", "tokens", "prior"]
        for stage in stages:
            if run.finished(stage):
                continue
            stop.check()
            self._begin()
            if request.tokenizer_from is not None:
                assert (request.tokenizer_from / "tokenizer" / "model.safetensors").is_file()
            for part in ("tokenizer", "prior"):
                (run.path / part).mkdir(exist_ok=True)
                (run.path / part / "model.safetensors").write_bytes(f"{request.out.name} {part}".encode())
            run.set_stage(stage, finished=True)
            self.calls.append(f"{request.out.name} {stage}")
            time.sleep(self.slow)
        return run

    def measure(self, models: Any, bench: Any, store: Any, *, baseline: Any, watch: Any, before: Any) -> dict[str, Any]:
        records = self.make("2d", models.seed)[1]["measures"]
        for name in ("reconstruction", "unguided", "likelihood"):

            def made(name: str = name) -> Any:
                before(name)
                self._begin()
                self.calls.append(f"{models.piece} {name}")
                return records[name]

            records[name] = store.get(name, {}, made).record | {"seconds": 1.0}
        likelihood = records["likelihood"] | {"with_baseline": baseline is not None}
        return records | {"guided": None, "likelihood": likelihood, "probe": None}


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, make: Make) -> _Stub:
    stub = _Stub(make)

    class Model(torch.nn.Linear):
        @classmethod
        def from_pretrained(cls, folder: Path, *args: Any) -> Any:
            assert folder.exists()
            model = cls(1, 1)
            model.tokenizer, model.prior, model.device = torch.nn.Linear(2, 2), torch.nn.Linear(2, 1), "cpu"
            return model

    monkeypatch.setattr(worker, "train", stub.train)
    monkeypatch.setattr(worker, "measure", stub.measure)
    monkeypatch.setattr(worker, "Pipeline", Model)
    monkeypatch.setattr(worker, "Prior", Model)
    return stub


def _measures(out: Path) -> dict[str, Any]:
    return {piece.name: result["measures"] for piece, result in load_results(out).items()}


def test_every_piece_is_made_once_in_order(tmp_path: Path, stub: _Stub) -> None:
    outcome = reproduce(_request(tmp_path / "a"), Progress())
    assert (outcome.finished, outcome.done, outcome.wanted) == (True, 10, 10)
    assert len(stub.calls) == len(set(stub.calls))
    assert stub.calls[:6] == [
        "2d-s0 tokenizer", "2d-s0 tokens", "2d-s0 prior", "2d-s0 reconstruction", "2d-s0 unguided", "2d-s0 likelihood",
    ]  # fmt: skip
    # The gain of prologue takes a prior without one; one-stage has a single stage.
    assert "prologue-s1-plain prior" in stub.calls
    assert [call for call in stub.calls if call.startswith("one-stage-s0")][:2] == [
        "one-stage-s0 tokenizer", "one-stage-s0 reconstruction",
    ]  # fmt: skip
    gains = {name: record["likelihood"]["with_baseline"] for name, record in _measures(tmp_path / "a").items()}
    assert {name for name, has in gains.items() if has} == {
        "prologue-s0", "prologue-s1", "prologue-post-s0", "prologue-post-s1",
    }  # fmt: skip
    stub.calls.clear()
    assert reproduce(_request(tmp_path / "a"), Progress()).finished
    assert stub.calls == []


@pytest.mark.parametrize("die_at", [0, 1, 3, 5, 6, 14, 20, 27, 40, 52])
def test_a_kill_anywhere_loses_nothing_that_was_finished(tmp_path: Path, stub: _Stub, die_at: int) -> None:
    reproduce(_request(tmp_path / "whole"), Progress())
    everything = list(stub.calls)
    stub.calls.clear()
    stub.begun, stub.die_at = 0, die_at
    with pytest.raises(_Killed):
        reproduce(_request(tmp_path / "killed"), Progress())
    assert stub.calls == everything[:die_at]
    results = load_results(tmp_path / "killed")
    assert (tmp_path / "killed" / "tables.md").is_file() == bool(results)
    stub.die_at = None
    assert reproduce(_request(tmp_path / "killed"), Progress()).finished
    assert stub.calls == everything
    assert _measures(tmp_path / "killed") == _measures(tmp_path / "whole")


def test_each_result_is_written_at_once(tmp_path: Path, stub: _Stub) -> None:
    stub.die_at = 6  # 2d of seed 0 is finished, 1d is about to begin
    with pytest.raises(_Killed):
        reproduce(_request(tmp_path), Progress())
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["2d-s0.json"]
    assert "Budgets" in (tmp_path / "tables.md").read_text()


def test_the_time_is_kept_and_the_study_goes_on(tmp_path: Path, stub: _Stub) -> None:
    stub.slow = 0.02
    calls = 0
    outcome = StudyOutcome(False, 0, 0, ())
    while not outcome.finished:
        outcome = reproduce(_request(tmp_path, minutes=0.3 / 60, seeds=(0,)), Progress())
        calls += 1
        assert calls < 40
    assert calls > 1
    assert outcome.done == 5
    assert len(stub.calls) == len(set(stub.calls))


def test_a_measurement_ends_on_a_signal_and_in_time(tmp_path: Path) -> None:
    def watched(minutes: float | None = None, ran: float = 0.0, number: int | None = None) -> list[int]:
        request = _request(tmp_path, minutes=minutes, began=time.monotonic() - 120)
        deadline = Deadline.of(request)
        deadline.number = number
        worker = Worker(request, cast(Any, None), deadline, Progress())
        worker._measuring_since = time.monotonic() - ran
        return list(worker._watch(range(3), "samples"))

    assert watched() == [0, 1, 2]
    with pytest.raises(Stopped, match=r"stopped while measuring \(samples\)"):
        watched(number=15)
    assert watched(3.0) == [0, 1, 2]
    with pytest.raises(OutOfTime):
        watched(1.0, ran=29)
    # Half a call went into it, so the next call would not have more to give.
    assert watched(1.0, ran=31) == [0, 1, 2]
    with pytest.raises(Stopped, match="while measuring"):
        watched(1.0, ran=31, number=15)


class _Process:
    """Stands for the process of a piece: it ends at once."""

    code = 0
    started: ClassVar[list[str]] = []

    def __init__(self, target: Any, args: tuple[StudyRequest, Piece], name: str) -> None:
        self.request, self.piece = args

    def start(self) -> None:
        self.started.append(self.piece.name)
        if self.code == 0:
            save_json(self.piece.result_file(self.request.out), {})

    def is_alive(self) -> bool:
        return False

    def terminate(self) -> None: ...

    def join(self) -> None: ...

    @property
    def exitcode(self) -> int:
        return self.code


def _side_by_side(request: StudyRequest, deadline: Deadline, monkeypatch: pytest.MonkeyPatch, code: int) -> list[str]:
    monkeypatch.setattr(_Process, "code", code)
    monkeypatch.setattr(_Process, "started", [])
    monkeypatch.setattr(jobs.multiprocessing, "get_context", lambda kind: SimpleNamespace(Process=_Process))
    pieces = all_pieces(request.variants, request.seeds)
    with nullcontext() if code == 0 else pytest.raises(OutOfTime):
        jobs.side_by_side(request, pieces, deadline, lambda: None)
    return _Process.started


def test_a_piece_that_found_too_little_time_waits_for_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = _request(tmp_path, variants=("2d", "1d"), seeds=(0,), jobs=2)
    assert _side_by_side(request, Deadline(None), monkeypatch, 3) == ["2d-s0", "1d-s0"]


def test_a_last_piece_that_ends_late_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = _request(tmp_path, variants=("2d",), seeds=(0,), jobs=2)
    assert _side_by_side(request, Deadline(time.monotonic() + 0.1), monkeypatch, 0) == ["2d-s0"]


def test_a_study_has_one_process_at_a_time(tmp_path: Path, stub: _Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 0.1)
    # Not even its settings are written beside another process.
    for seed in (0, 1):
        before = list(tmp_path.iterdir())
        with locks.folder_lock(tmp_path), ThreadPoolExecutor(1) as pool:
            second = pool.submit(reproduce, _request(tmp_path, seeds=(seed,), variants=("2d",)), Progress())
            with pytest.raises(RunError, match="another process is at work in"):
                second.result()
        assert list(tmp_path.iterdir()) == before
        assert reproduce(_request(tmp_path, seeds=(seed,), variants=("2d",)), Progress()).finished


def test_a_deadline_stops_as_a_signal_does() -> None:
    assert Deadline(None).asked() is None
    assert Deadline(time.monotonic() + 60).asked() is None
    deadline = Deadline(time.monotonic() + 10)
    deadline.check(5.0)
    with pytest.raises(OutOfTime):
        deadline.check(15.0)
    assert Deadline(time.monotonic() - 1).asked() == OVERTIME
    asked = Deadline(time.monotonic() + 60)
    asked.number = 15
    assert asked.asked() == 15


def test_a_signal_counts_after_the_time_is_up(tmp_path: Path) -> None:
    deadline = Deadline(time.monotonic() - 1)
    with deadline.listening():
        assert deadline.asked() == OVERTIME
        signal.raise_signal(signal.SIGTERM)
        assert deadline.asked() == signal.SIGTERM


def test_what_takes_half_a_call_is_begun_in_what_is_left_of_one(tmp_path: Path) -> None:
    """Else a call that takes a while to start would put it off for ever."""
    worker = Worker(_request(tmp_path, minutes=4.0), cast(Any, None), Deadline(None), Progress())
    assert worker._within([30.0, 110.0]) == 110.0
    assert worker._within([30.0, 130.0]) == 0.0


def test_a_real_training_stops_in_time_and_goes_on(tmp_path: Path) -> None:
    scale = dataclasses.replace(TINY, tokenizer_steps=100_000)
    request = _request(tmp_path, scale=scale, seeds=(0,), variants=("2d",), minutes=1.5 / 60)
    first = reproduce(request, Progress())
    assert (first.finished, first.done) == (False, 0)
    checkpoints = tmp_path / "runs" / "2d-s0" / "checkpoints" / "tokenizer"
    (begun,) = [int(path.name.removeprefix("step-")) for path in checkpoints.iterdir()]
    reproduce(dataclasses.replace(request, began=time.monotonic()), Progress())
    (later,) = [int(path.name.removeprefix("step-")) for path in checkpoints.iterdir()]
    assert 0 < begun < later < 100_000


def test_pieces_side_by_side_are_those_made_one_after_the_other(tmp_path: Path) -> None:
    variants = ("2d", "1d", "prologue-post")
    request = _request(tmp_path / "one", variants=variants, seeds=(0,))
    reproduce(request, Progress())
    outcome = reproduce(dataclasses.replace(request, out=tmp_path / "three", jobs=3), Progress())
    assert (outcome.finished, outcome.done) == (True, 3)
    for name in ("2d-s0", "1d-s0", "prologue-post-s0"):
        weights = [tmp_path / out / "runs" / name / "prior" / "model.safetensors" for out in ("one", "three")]
        close = [load_file(file) for file in weights]
        for key, value in close[0].items():
            torch.testing.assert_close(close[1][key], value, rtol=1e-3, atol=1e-4)


def test_pieces_side_by_side_stop_in_time_and_go_on(tmp_path: Path) -> None:
    scale = dataclasses.replace(TINY, tokenizer_steps=100_000)
    request = _request(tmp_path, scale=scale, seeds=(0, 1), variants=("2d",), minutes=0.3, jobs=2)
    first = reproduce(request, Progress())
    assert (first.finished, first.done) == (False, 0)
    for name in ("2d-s0", "2d-s1"):
        (begun,) = (tmp_path / "runs" / name / "checkpoints" / "tokenizer").iterdir()
        assert int(begun.name.removeprefix("step-")) > 0


def test_a_signal_stops_all_pieces_that_stand_side_by_side(tmp_path: Path) -> None:
    flags = ["--out", str(tmp_path / "study"), "--variants", "2d", "--jobs", "2", "--device", "cpu"]
    command = [sys.executable, "-m", "prologue", "reproduce", *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        seen = ""
        for line in process.stderr:
            seen += line
            if "2d-s0: tokens" in seen and "2d-s1: tokens" in seen:
                break
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(60) == 128 + signal.SIGTERM
    assert "Run the same command again to continue" in rest
    runs = [RunFolder.load(tmp_path / "study" / "runs" / name) for name in ("2d-s0", "2d-s1")]
    assert all(run.finished("tokenizer") for run in runs)


def test_a_piece_that_fails_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    request = _request(tmp_path, variants=("2d",), seeds=(0,))
    reproduce(request, Progress())
    broken = tmp_path / "runs" / "2d-s1"
    broken.mkdir()
    (broken / "run.json").write_text("{")
    request = dataclasses.replace(request, seeds=(0, 1), jobs=2)
    with pytest.raises(RunError, match=r"2d-s1 failed"):
        reproduce(request, Progress())
    assert "2d-s1: " in capfd.readouterr().err


def test_seeds_and_variants_may_be_added(tmp_path: Path, stub: _Stub) -> None:
    reproduce(_request(tmp_path, seeds=(0,), variants=("2d",)), Progress())
    outcome = reproduce(_request(tmp_path, seeds=(0, 4), variants=("2d", "prologue")), Progress())
    assert (outcome.done, outcome.wanted) == (4, 4)
    assert stub.calls.count("2d-s0 tokenizer") == 1
    assert [piece.name for piece in load_results(tmp_path)] == ["2d-s0", "prologue-s0", "2d-s4", "prologue-s4"]


def test_few_training_images_limit_the_samples(tmp_path: Path) -> None:
    for samples, drawn in ((16, 16), (1000, 96)):
        request = _request(tmp_path / str(samples), scale=dataclasses.replace(TINY, samples=samples))
        assert open_bench(request, Progress()).samples == drawn


def test_other_settings_are_refused(tmp_path: Path, stub: _Stub) -> None:
    reproduce(_request(tmp_path, seeds=(0,), variants=("2d",)), Progress())
    stub.calls.clear()
    other = dataclasses.replace(TINY, width=64)
    with pytest.raises(RunError, match=r"scale\.width: 32 in the study, 64 now"):
        reproduce(_request(tmp_path, scale=other), Progress())
    assert stub.calls == []


def test_a_study_keeps_its_number_format_and_refuses_another_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for fastest in ("fp32", "bf16"):  # of this machine, and of the next
        monkeypatch.setattr("prologue.studies.reproduce.setting.pick_precision", lambda asked, device, it=fastest: it)
        assert open_bench(_request(tmp_path), Progress()).precision == "fp32"

    def other(scale: Scale, name: Any, seed: int) -> Any:
        config = run_config(scale, name, seed)
        return dataclasses.replace(config, prior=dataclasses.replace(config.prior, dropout=0.3))

    monkeypatch.setattr("prologue.studies.reproduce.setting.run_config", other)
    with pytest.raises(RunError, match=r"recipes\.2d\.prior\.dropout: 0\.0 in the study, 0\.3 now"):
        open_bench(_request(tmp_path), Progress())


def test_a_study_of_other_versions_of_the_figures_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_bench(_request(tmp_path), Progress())
    settings = json.loads((tmp_path / "study.json").read_text())
    del settings["versions"], settings["features_source"]  # as it was written before they were kept
    (tmp_path / "study.json").write_text(json.dumps(settings))
    open_bench(_request(tmp_path), Progress())
    monkeypatch.setitem(VERSIONS, "sweep", 2)
    with pytest.raises(RunError, match=r"versions\.sweep: 1 in the study, 2 now"):
        open_bench(_request(tmp_path), Progress())


def _pictures(folder: Path, **counts: int) -> Path:
    random = np.random.default_rng(0)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture
def plain_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Features that need no extra: mean colours."""
    (tmp_path / "mean_colours.py").write_text("def means():\n    return lambda images: images.float().mean((2, 3))\n")
    monkeypatch.syspath_prepend(tmp_path)
    return "mean_colours:means"


def test_a_class_of_one_image_costs_the_probe_alone(tmp_path: Path, plain_features: str) -> None:
    folder = _pictures(tmp_path / "images", many=60, one=1)
    request = _request(
        tmp_path / "study", data=str(folder), features=plain_features, seeds=(0,), variants=("prologue",)
    )
    assert reproduce(request, Progress()).finished
    (result,) = load_results(request.out).values()
    assert result["measures"]["probe"].keys() == {"kind", "reason", "seconds"}
    assert "one" in result["measures"]["probe"]["reason"]
    assert result["measures"]["unguided"]["n"] == 16


def test_images_without_classes_are_studied_too(tmp_path: Path, plain_features: str) -> None:
    folder = _pictures(tmp_path / "images", all=60)
    request = _request(
        tmp_path / "study", data=str(folder / "all"), features=plain_features, seeds=(0,), variants=("prologue", "2d")
    )
    assert reproduce(request, Progress()).finished
    assert all(result["measures"]["guided"] is None for result in load_results(request.out).values())


def test_too_few_images_are_refused_before_anything_is_trained(tmp_path: Path, plain_features: str) -> None:
    folder = _pictures(tmp_path / "images", a=4, b=4)
    request = _request(tmp_path / "study", data=str(folder), features=plain_features)
    with pytest.raises(EvaluationError, match=r"leaves 2 images held out, and recipes are chosen on at least 3"):
        reproduce(request, Progress())
    assert not (tmp_path / "study" / "runs").exists()


def test_folders_of_something_else_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="is not a study"):
        reproduce(_request(tmp_path), Progress())
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1}', '{"format": 0, "seed": 0, "variant": "2d"}'])
def test_a_damaged_result_is_named(tmp_path: Path, stub: _Stub, content: str) -> None:
    reproduce(_request(tmp_path, seeds=(0,), variants=("2d",)), Progress())
    (tmp_path / "results" / "2d-s0.json").write_text(content)
    with pytest.raises(RunError, match=r"2d-s0\.json is not a result of this version: delete it"):
        load_results(tmp_path)


def test_a_post_hoc_prologue_brings_its_2d() -> None:
    names = [piece.name for piece in all_pieces(("prologue-post",), (3,))]
    assert names == ["2d-s3", "prologue-post-s3"]
    assert Piece(3, "prologue-post").starts_from == Piece(3, "2d")
    assert checked_variants(["prologue", "2d"]) == ("2d", "prologue")
    with pytest.raises(ConfigError, match="unknown variant '3d'"):
        checked_variants(["3d"])


@pytest.mark.parametrize("name", list(SCALES))
def test_budgets_are_equal(name: str) -> None:
    scale = scale_named(name)
    configs = {variant: run_config(scale, variant, 5) for variant in VARIANTS}
    first = configs["2d"]
    for variant, config in configs.items():
        own, theirs = config.tokenizer_training, first.tokenizer_training
        assert (own.steps, own.batch, own.autoencoder) == (theirs.steps, theirs.batch, theirs.autoencoder)
        assert (config.prior, config.prior_training, config.data) == (first.prior, first.prior_training, first.data)
        assert (config.tokenizer.encoder, config.tokenizer.decoder) == (
            first.tokenizer.encoder,
            first.tokenizer.decoder,
        )
        assert config.tokenizer.visual_tokens == first.tokenizer.visual_tokens
        assert config.seed == 5
        seen = images_seen(scale, Piece(5, variant))
        assert seen["tokenizer"] == own.steps * own.batch
        assert (seen["prior"] == 0) == (variant == "one-stage")
        assert (seen["taken_over"] > 0) == (variant == "prologue-post")
    assert configs["one-stage"].tokenizer_training.label_drop == 0.1
    assert not plain_config(scale, 5).prior.prologue
    assert plain_config(scale, 5).tokenizer == configs["prologue"].tokenizer


def test_few_images_have_dropout() -> None:
    assert run_config(scale_named("hours"), "2d", 0).prior.dropout == 0
    few = scale_named("hours", "digits")
    assert {run_config(few, variant, 0).prior.dropout for variant in VARIANTS} == {0.1}
    assert dataclasses.replace(few, prior_dropout=0.0) == scale_named("hours")


def test_flops_tell_variants_apart() -> None:
    scale = scale_named("hours")
    flops = {variant: stage_flops(scale, Piece(0, variant)) for variant in VARIANTS}
    # 1d passes twice as many tokens through both stacks; a post-hoc prologue has no decoder.
    assert flops["1d"]["tokenizer"] > 1.8 * flops["2d"]["tokenizer"]
    assert flops["prologue-post"]["tokenizer"] < flops["prologue"]["tokenizer"]
    assert flops["one-stage"]["tokenizer"] == flops["prologue"]["tokenizer"]
    assert flops["one-stage"]["prior"] == 0
    assert [name for name in VARIANTS if flops[name]["plain"]] == ["prologue"]


def test_the_time_left_follows_the_finished_pieces(make: Make) -> None:
    scale: Scale = scale_named("hours")
    todo = all_pieces(VARIANTS, (1,))
    assert seconds_left(scale, {}, todo) is None
    done = dict([make("2d", 0)])  # 16 s for 3e12 FLOPs, 4 s for the rest
    ahead = sum(sum(stage_flops(scale, piece).values()) for piece in todo)
    assert seconds_left(scale, done, todo) == pytest.approx(ahead * 16 / 3e12 + 5 * 4)
    assert study.duration(50) == "50 s"
    assert study.duration(1800) == "30 min"
    assert study.duration(7260) == "2 h 1 min"


class _KilledAt(Progress):
    """Ends everything in the middle of a step, as a lost machine does."""

    def __init__(self, stage: str, step: int) -> None:
        self.stage, self.step, self.name = stage, step, ""

    def begin(self, name: str, start: int, total: int, batch: int) -> None:
        self.name = name

    def advance(self, done: int) -> None:
        if self.name == self.stage and done >= self.step:
            raise _Killed

    def show(self, done: int, record: dict[str, Any]) -> None:
        self.advance(done)


def test_a_real_study_that_was_killed_ends_as_one_that_was_not(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    variants = ("2d", "prologue-post")
    request = _request(whole, variants=variants, seeds=(0,))
    outcome = reproduce(request, Progress())
    assert (outcome.finished, outcome.done) == (True, 2)
    for stage, step in (("prior", 3), ("samples", 1), ("tokenizer", 4)):
        with pytest.raises(_Killed):
            reproduce(dataclasses.replace(request, out=killed), _KilledAt(stage, step))
    assert reproduce(dataclasses.replace(request, out=killed), Progress()).finished
    for part in ("tokenizer", "prior"):
        files = [out / "runs" / "prologue-post-s0" / part / "model.safetensors" for out in (whole, killed)]
        assert file_hash(files[0]) == file_hash(files[1])
    ours, theirs = _measures(whole), _measures(killed)
    for name, records in ours.items():
        for kind, record in records.items():
            strip = {key: value for key, value in (record or {}).items() if key != "seconds"}
            assert strip == {key: value for key, value in (theirs[name][kind] or {}).items() if key != "seconds"}
    post = ours["prologue-post-s0"]
    assert post["likelihood"]["gain"] is not None
    assert post["layout"]["coarse_ratio"] > 0
    assert post["probe"]["prologue"] >= 0
    assert post["guided"]["guided"]
    assert post["unguided"]["memorisation"]["coarse_share"] is not None
    assert post["reconstruction"]["psnr"] == ours["2d-s0"]["reconstruction"]["psnr"]
    assert {path.stem for path in (whole / "pictures").iterdir()} == {
        "2d-s0-unguided", "2d-s0-guided", "prologue-post-s0-unguided", "prologue-post-s0-guided",
        "prologue-post-s0-resampled",
    }  # fmt: skip


def test_models_of_a_study_that_was_copied_without_its_runs_are_made_again(tmp_path: Path) -> None:
    """More variants may be added to a study of which only the settings and results were kept."""
    here, there = tmp_path / "here", tmp_path / "there"
    request = _request(here, variants=("2d",), seeds=(0,))
    assert reproduce(request, Progress()).finished
    there.mkdir()
    shutil.copy(here / "study.json", there)
    shutil.copytree(here / "results", there / "results")
    more = dataclasses.replace(request, out=there, variants=("2d", "prologue-post"))
    assert reproduce(more, Progress()).finished
    models = [out / "runs" / "2d-s0" / "tokenizer" / "model.safetensors" for out in (here, there)]
    assert file_hash(models[0]) == file_hash(models[1])
    assert _measures(here)["2d-s0"] == _measures(there)["2d-s0"]
    # If training again gives other weights, as on another machine, the result is measured again, also after a kill.
    result, weights = there / "results" / "2d-s0.json", load_json(there / "results" / "2d-s0.json")["weights"]
    save_json(result, load_json(result) | {"weights": dict.fromkeys(weights, "other")})
    shutil.rmtree(there / "runs")
    (there / "results" / "prologue-post-s0.json").unlink()
    with pytest.raises(_Killed):
        reproduce(more, _KilledAt("samples", 1))
    assert set(load_json(result)["weights"].values()) == {"other"}
    assert reproduce(more, Progress()).finished
    assert load_json(result)["weights"] == weights


def test_a_study_of_an_earlier_version_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its settings have a field `packed`, and its measurements are in one file `measures.json`."""
    request = _request(tmp_path, variants=("2d",), seeds=(0,))
    assert reproduce(request, Progress()).finished
    whole, run = _measures(tmp_path)["2d-s0"], tmp_path / "runs" / "2d-s0"
    settings = load_json(tmp_path / "study.json")
    save_json(tmp_path / "study.json", settings | {"scale": settings["scale"] | {"packed": False}})
    facts = {"weights": model_hashes(run), "seed": 0, "versions": VERSIONS}
    samples = {"images": TINY.measured_images}
    inputs = {"reconstruction": samples, "likelihood": samples | {"gain": False}}
    records = [whole[name] | {"name": name, "inputs": facts | inputs[name], "seconds": 2.0} for name in inputs]
    save_json(run / "measures.json", {"provenance": {}, "records": records})
    shutil.rmtree(run / "measures")
    (tmp_path / "results" / "2d-s0.json").unlink()
    for name in ("evaluate_reconstruction", "evaluate_likelihood"):
        monkeypatch.setattr(measures, name, lambda *args, **options: pytest.fail("was measured again"))
    assert reproduce(request, Progress()).finished
    again = _measures(tmp_path)["2d-s0"]
    assert again["likelihood"] == whole["likelihood"] | {"seconds": 2.0}
    strip = {key: value for key, value in again["unguided"].items() if key != "seconds"}
    assert strip == {key: value for key, value in whole["unguided"].items() if key != "seconds"}


def _returning(outcome: StudyOutcome | BaseException, asked: list[StudyRequest]) -> Callable[..., StudyOutcome]:
    def fake(request: StudyRequest, progress: object) -> StudyOutcome:
        asked.append(request)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    return fake


def test_the_command_asks_for_what_it_was_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    asked: list[StudyRequest] = []
    monkeypatch.setattr(study, "reproduce", _returning(StudyOutcome(True, 2, 2, ("said",)), asked))
    flags = ["--out", str(tmp_path), "--seed", "3", "--seeds", "2", "--variants", "prologue", "2d", "--scale", "hours"]
    assert main(["reproduce", *flags, "--device", "cpu"]) == 0
    (request,) = asked
    assert (request.seeds, request.variants, request.scale) == ((3, 4), ("2d", "prologue"), SCALES["hours"])
    assert capfd.readouterr().out.startswith("said\n")
    monkeypatch.setattr(study, "reproduce", _returning(StudyOutcome(False, 1, 2, ()), asked))
    assert main(["reproduce", *flags, "--minutes", "9"]) == 3
    assert asked[-1].minutes == 9
    assert "1 of 2 runs are finished. Run the same command again" in capfd.readouterr().err
    monkeypatch.setattr(study, "reproduce", _returning(Stopped("in stage prior after step 7", 2), asked))
    assert main(["reproduce", *flags]) == 130


@pytest.mark.parametrize(
    "flags", [["--seeds", "0"], ["--minutes", "0"], ["--variants", "3d"], ["--scale", "weeks"], ["--seed", "-1"]]
)
def test_impossible_requests_are_refused(tmp_path: Path, flags: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "--out", str(tmp_path / "a"), *flags]) == 2
    assert "error:" in capfd.readouterr().err
    assert not (tmp_path / "a").exists()


def test_stage_seconds_come_from_the_logged_rates() -> None:
    records = [{"step": 10, "images_per_second": 40.0}, {"step": 15, "images_per_second": 20.0}]
    assert stage_seconds(records, 8) == pytest.approx(10 * 8 / 40 + 5 * 8 / 20)
