"""A folder of images: the same bytes after kills, by several processes, and in any order of writing."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prologue import Guidance, Pipeline
from prologue.bulk.drawing import Drawing, Job
from prologue.bulk.output import Output
from prologue.cli import generate
from prologue.cli.main import main
from prologue.errors import RunError, SamplingError
from prologue.sampling.manifest import Manifest
from prologue.utils import locks
from prologue.utils.cpu_threads import cpu_threads
from prologue.utils.locks import LOCK
from prologue.utils.processes import Processes

pytestmark = pytest.mark.slow

SPLIT = Guidance.split(("constant", 0.7), ("cosine", 3.75, 0.2))
JOB = Job([0, 1, 2] * 8, 5, {"guidance": SPLIT}, "both", 10, 4, {"what": "a test", "recipe": {"temperature": 1.0}})
NO_MEMORY = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")


@pytest.fixture
def pipe(tiny_models) -> Pipeline:
    return Pipeline(*tiny_models(), Manifest(("ring", "star", "cross")))


@pytest.fixture
def draw(pipe: Pipeline, tmp_path: Path) -> Callable[..., dict[str, bytes]]:
    """Draws a job into a folder and returns its files."""

    def run(name: str, job: Job = JOB, **options: Any) -> dict[str, bytes]:
        Drawing(pipe, job, Output(tmp_path / name), **options).run()
        return files(tmp_path / name)

    return run


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("write", ["png", "npz", "both"])
def test_what_is_written(draw, pipe: Pipeline, tmp_path: Path, write: str) -> None:
    seen: list[tuple[int, int]] = []
    found = draw(
        "out", replace(JOB, write=write), progress=lambda done, total, rate: seen.append((done, total)) or rate > 0
    )
    pictures = [name for name in found if name.endswith(".png") and name != "grid.png"]
    archives = [name for name in found if name.endswith(".npz")]
    assert len(pictures) == (0 if write == "npz" else 24)
    assert sorted(archives) == ([] if write == "png" else ["samples-00000.npz", "samples-00001.npz"])
    assert len(found) == len(pictures) + len(archives) + 2
    assert json.loads(found["generation.json"]) == {
        "request": JOB.request,
        "batch": 4,
        "compiled": False,
        "threads": 1,
        "finished": True,
    }
    assert seen == [(done, 24) for done in (4, 8, 12, 16, 20, 24)]
    expected = pipe.generate([0, 1, 2], count=24, seed=5, batch=4, guidance=SPLIT)
    if write != "png":
        parts = [np.load(tmp_path / "out" / name, allow_pickle=False) for name in sorted(archives)]
        assert [len(part["arr_0"]) for part in parts] == [12, 12]
        # Members do not tell when they were written: the same images are the same bytes.
        assert {info.date_time for part in parts for info in part.zip.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        images = np.concatenate([part["arr_0"] for part in parts])
        assert np.array_equal(images, np.stack([np.array(image) for image in expected.images]))
        assert np.array_equal(np.concatenate([part["seeds"] for part in parts]), np.arange(5, 29))
        assert np.array_equal(np.concatenate([part["visual"] for part in parts]), expected.tokens.visual.numpy())


def test_guidance_is_refused_for_the_null_class_and_nothing_is_written(draw, tmp_path: Path) -> None:
    with pytest.raises(SamplingError, match="null class"):
        draw("out", replace(JOB, class_ids=[0, 3] * 12))
    assert not (tmp_path / "out").exists()


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", [1, 3, 4, 6])
@pytest.mark.parametrize("write", ["png", "npz", "both"])
def test_a_stopped_run_goes_on_where_it_was(
    draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, write: str
) -> None:
    job = replace(JOB, write=write)
    whole = draw("whole", job)
    add, calls = Output.add, []

    def stop(self, number, chunk, pictures):
        calls.append(number)
        if len(calls) == after:
            # Pictures of the chunk are there, the chunk is half written.
            for name, _ in pictures[:2]:
                (self.folder / name).write_bytes(b"half")
            (self.folder / ".chunks").mkdir(exist_ok=True)
            (self.folder / ".chunks" / f"{number:06d}.tmp").write_bytes(b"half")
            raise Killed
        add(self, number, chunk, pictures)

    monkeypatch.setattr(Output, "add", stop)
    with pytest.raises(Killed):
        draw("stopped", job)
    assert not json.loads((tmp_path / "stopped" / "generation.json").read_text()).get("finished")
    again = draw("stopped", job)
    assert again == whole
    assert calls.count(calls[after - 1]) == 2  # the half one anew
    assert sorted(set(calls)) == list(range(6))
    assert len(calls) == 7  # and no other one


def test_a_finished_folder_is_left_alone(draw, pipe: Pipeline, tmp_path: Path) -> None:
    before = draw("out", JOB)
    assert Drawing(pipe, JOB, Output(tmp_path / "out")).run() is False
    assert files(tmp_path / "out") == before


@pytest.mark.parametrize("write", ["png", "npz", "both"])
def test_a_finished_folder_is_filled_up_where_something_is_gone(
    draw, pipe: Pipeline, tmp_path: Path, write: str
) -> None:
    """What the folder states is not believed: the files are looked at."""
    job = replace(JOB, write=write)
    whole, out = draw("out", job), tmp_path / "out"
    chunk, drawn = pipe.chunk, []

    def watch(class_ids, seeds, rows, **options):
        drawn.append((seeds[0] - JOB.seed) // 4)
        return chunk(class_ids, seeds, rows, **options)

    pipe.chunk = watch  # type: ignore[method-assign]
    pictures = sorted(name for name in whole if name.startswith("000"))
    archives = sorted(name for name in whole if name.endswith(".npz"))
    for names, damage, chunks in (
        (["grid.png"], "gone", []),
        (["grid.png"], "cut", []),
        (pictures[5:6], "gone", [1]),
        (pictures[5:6], "cut", [1]),
        (pictures[5:6] + pictures[-1:], "empty", [1, 5]),
        (archives[1:], "gone", [3, 4, 5]),
        (archives[1:], "cut", [3, 4, 5]),
        (pictures + archives, "gone", [0, 1, 2, 3, 4, 5]),
    ):
        for name in names:
            (out / name).unlink()
            if damage != "gone":
                (out / name).write_bytes(whole[name][: len(whole[name]) // 2] if damage == "cut" else b"")
        drawn.clear()
        assert Drawing(pipe, job, Output(out)).run() is bool(names)
        assert (drawn, files(out)) == (chunks if names else [], whole)


def test_a_picture_that_went_while_the_folder_was_unfinished_is_drawn_again(draw, tmp_path: Path, monkeypatch) -> None:
    whole = draw("whole")
    monkeypatch.setattr(Output, "assemble", lambda *_: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        draw("out")
    monkeypatch.undo()
    next((tmp_path / "out").glob("00001_*.png")).unlink()
    assert draw("out") == whole


def test_what_a_kill_at_the_edges_leaves_is_no_obstacle(draw, pipe: Pipeline, tmp_path: Path) -> None:
    whole = draw("whole")
    out = tmp_path / "out"
    out.mkdir()
    (out / "generation.json.tmp").write_text("{")  # before the request was stated
    assert draw("out") == whole
    (out / ".chunks").mkdir()  # after all was stated to be done
    (out / ".chunks" / "000000.npz").write_bytes(b"chunk")
    assert draw("out") == whole
    (out / "00000_ring_seed7.png.tmp").write_bytes(b"half")  # of other images, which are replaced
    (out / "samples-00007.npz.tmp").write_bytes(b"half")
    (out / "grid.png.0123abcd.tmp").write_bytes(b"half")
    Drawing(pipe, JOB, Output(out)).run(overwrite=True)
    assert files(out) == whole


def test_who_goes_on_computes_as_who_began(
    draw, pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Products round otherwise with other threads, as a launcher sets them, and when they are compiled."""
    chunk, seen = pipe.chunk, []
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # a number of the user wins over that of so little work

    def stop(class_ids, seeds, rows, **options):
        seen.append((options["threads"], options["compiled"]))
        if len(seen) == 3:
            raise Killed
        return chunk(class_ids, seeds, rows, **options)

    monkeypatch.setattr(pipe, "chunk", stop)
    with cpu_threads(2), pytest.raises(Killed):
        draw("out")
    state_file = tmp_path / "out" / "generation.json"
    state = json.loads(state_file.read_text())
    assert (state["threads"], state["compiled"]) == (2, False)
    monkeypatch.setattr("prologue.pipeline.worth_compiling", lambda *_: True)
    with cpu_threads(1):
        draw("out")
        assert torch.get_num_threads() == 1
    assert pipe.compile == "auto"
    assert seen == [(2, False)] * 7


def test_few_images_are_not_filled_up_to_a_large_batch(
    draw, pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunk, rows_seen = pipe.chunk, []

    def watch(class_ids, seeds, rows, **options):
        rows_seen.append(rows)
        return chunk(class_ids, seeds, rows, **options)

    monkeypatch.setattr(pipe, "chunk", watch)
    draw("out", replace(JOB, class_ids=[0, 1, 2], batch=64))
    assert rows_seen == [3]
    assert json.loads((tmp_path / "out" / "generation.json").read_text())["batch"] == 3


def test_other_settings_are_refused_with_the_difference(draw, pipe: Pipeline, tmp_path: Path) -> None:
    before = draw("out", JOB)
    other = replace(JOB, request={"what": "a test", "recipe": {"temperature": 0.9}, "count": 3})
    with pytest.raises(RunError, match=r"\(recipe.temperature: 1.0 → 0.9; count: None → 3\).*--overwrite"):
        draw("out", other)
    assert files(tmp_path / "out") == before
    assert Drawing(pipe, other, Output(tmp_path / "out")).run(overwrite=True)
    assert json.loads((tmp_path / "out" / "generation.json").read_text())["request"] == other.request
    (tmp_path / "out" / "generation.json").write_text("{}")
    with pytest.raises(RunError, match=r"generation.json cannot be read \('request'\)"):
        draw("out", other)


def test_a_batch_that_does_not_fit_is_halved_before_anything_is_written(
    draw, pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = draw("whole", replace(JOB, batch=2))
    chunk, said = pipe.chunk, []

    def small(class_ids, seeds, rows, **options):
        if rows > 2:
            assert os.listdir(tmp_path / "out") == [LOCK]
            raise NO_MEMORY
        return chunk(class_ids, seeds, rows, **options)

    monkeypatch.setattr(pipe, "chunk", small)
    found = draw("out", replace(JOB, batch=8), say=said.append)
    assert [sentence.partition(" (")[0] for sentence in said] == [
        "a batch of 8 does not fit into memory, continuing with 4",
        "a batch of 4 does not fit into memory, continuing with 2",
    ]
    assert json.loads(found.pop("generation.json"))["batch"] == 2
    whole.pop("generation.json")
    assert found == whole

    def none(*_, **__):
        raise NO_MEMORY

    monkeypatch.setattr(pipe, "chunk", none)
    with pytest.raises(SamplingError, match=r"not even --batch 1 fits.*allocate memory.*--dtype"):
        draw("never", JOB)
    assert not (tmp_path / "never").exists()


def test_memory_that_runs_out_later_names_the_batch_and_loses_nothing(
    draw, pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = draw("whole", JOB)
    chunk, calls = pipe.chunk, []

    def later(class_ids, seeds, rows, **options):
        calls.append(seeds[0])
        if len(calls) == 4:
            raise NO_MEMORY
        return chunk(class_ids, seeds, rows, **options)

    monkeypatch.setattr(pipe, "chunk", later)
    with pytest.raises(SamplingError, match=r"chunk 3 does not fit.*--batch below 4"):
        draw("out", JOB)
    assert draw("out", JOB) == whole
    assert calls == [5, 9, 13, 17, 17, 21, 25]


def test_the_rate_counts_the_time_of_the_first_chunk(draw, pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    chunk = pipe.chunk

    def slow(*args, **options):
        time.sleep(0.2)
        return chunk(*args, **options)

    monkeypatch.setattr(pipe, "chunk", slow)
    rates: list[float] = []
    draw("out", replace(JOB, class_ids=[0], batch=1), progress=lambda done, total, rate: rates.append(rate))
    assert len(rates) == 1
    assert rates[0] <= 1 / 0.2


def test_what_is_not_about_memory_is_not_taken_for_it(draw, pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_, **__):
        raise RuntimeError("something else")

    monkeypatch.setattr(pipe, "chunk", fail)
    with pytest.raises(RuntimeError, match="something else"):
        draw("out", JOB)


def test_a_damaged_chunk_is_named(draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Output, "assemble", lambda *_: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        draw("out", JOB)
    monkeypatch.undo()
    (tmp_path / "out" / ".chunks" / "000001.npz").write_bytes(b"damaged")
    with pytest.raises(RunError, match=r"000001.npz cannot be read.*remove it and run again"):
        draw("out", JOB)


def test_several_processes_share_the_chunks(draw, pipe: Pipeline, tmp_path: Path) -> None:
    """Without a process group: one after the other, as they would meet in the folder."""
    whole = draw("whole", JOB)
    output = Output(tmp_path / "out")
    output.start({"request": JOB.request, "batch": 4, "compiled": False, "threads": 1})

    class Alone(Processes):
        def wait(self) -> None:
            pass

        def any(self, flag: bool) -> bool:
            return flag

    last = Drawing(pipe, JOB, output, Alone(2, 3))
    last.run()
    Drawing(pipe, JOB, output, Alone(1, 3)).run()
    assert sorted(path.name for path in (tmp_path / "out" / ".chunks").iterdir()) == [
        f"00000{number}.npz" for number in (1, 2, 4, 5)
    ]
    Drawing(pipe, JOB, output, Alone(0, 3)).run()
    assert files(tmp_path / "out") == whole


@pytest.fixture(scope="module")
def run_folder(tiny_models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    Pipeline(*tiny_models(), Manifest(("ring", "star", "cross"))).save_pretrained(folder)
    return folder


def _in_process(
    argv: list[str], environment: dict[str, str], heard: Path | None = None, patience: float = locks.PATIENCE
) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    locks.PATIENCE = patience
    if heard is not None:
        sys.stderr = heard.open("w")
    sys.exit(main(argv))


def test_three_kills_and_a_group_of_processes(run_folder: Path, tmp_path: Path) -> None:
    """Real ones: they are forked from a server that has imported all, so that a start is quick."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["prologue.cli.generate", "accelerate"])

    def start(name: str, **environment: str) -> multiprocessing.process.BaseProcess:
        argv = ["generate", str(run_folder), "--out", str(tmp_path / name), "--count", "200", "--batch", "4"]
        argv += ["--write", "both", "--shard-size", "60", "--device", "cpu"]
        process = context.Process(target=_in_process, args=(argv, environment))
        process.start()
        return process

    whole = start("whole")
    killed = tmp_path / "killed"
    for image in (9, 90, 170):
        process = start("killed")
        deadline = time.monotonic() + 60
        while not list(killed.glob(f"{image:05d}_*.png")) and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.001)
        process.kill()
        process.join()
        assert process.exitcode == -9
        assert list(killed.glob(f"{image:05d}_*.png"))
        assert not list(killed.glob("00199_*.png"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": "2"}
    group = [start("killed", RANK=rank, LOCAL_RANK=rank, **meeting) for rank in ("0", "1")]
    for process in (whole, *group):
        process.join(120)
    assert [process.exitcode for process in (whole, *group)] == [0, 0, 0]
    assert files(killed) == files(tmp_path / "whole")
    assert len(files(killed)) == 200 + 4 + 2


def test_two_at_once_in_one_folder(run_folder: Path, tmp_path: Path) -> None:
    """One of them fills the folder; the other says that it is taken."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["prologue.cli.generate", "accelerate"])
    out, heard = tmp_path / "both", [tmp_path / "first", tmp_path / "second"]
    both = []
    for seed, file in zip((0, 1000), heard, strict=True):
        argv = ["generate", str(run_folder), "--out", str(out), "--count", "100", "--batch", "4"]
        argv += ["--seed", str(seed), "--device", "cpu", "--write", "both"]
        both.append(context.Process(target=_in_process, args=(argv, {}, file, 0.2)))
        both[-1].start()
    for process in both:
        process.join(120)
    codes, said = [process.exitcode for process in both], [file.read_text() for file in heard]
    assert sorted(codes) == [0, 2], said
    won, lost = codes.index(0), codes.index(2)
    assert re.search(r"(another process is at work in|holds images of other settings)", said[lost]), said
    assert str(out) in said[lost]
    seed = (0, 1000)[won]
    archive = np.load(out / "samples.npz")
    assert archive["seeds"].tolist() == list(range(seed, seed + 100))
    expected = Pipeline.from_pretrained(str(run_folder), device="cpu").generate(count=4, seed=seed, batch=4)
    assert np.array_equal(archive["arr_0"][:4], np.stack([np.array(image) for image in expected.images]))
    names = [path.name for path in out.iterdir()]
    assert len(names) == 100 + 3
    assert not [name for name in names if name.endswith((".tmp", LOCK))]


def test_the_command_says_what_it_found(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "_SECONDS_PER_LINE", 0.0)
    argv = ["generate", str(run_folder), "--count", "9", "--batch", "3", "--write", "npz", "--shard-size", "6"]
    argv += ["--out", str(tmp_path / "out"), "--json", str(tmp_path / "figures.json"), "--dtype", "int8"]
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"9 images (NPZ) and grid.png are in {tmp_path / 'out'}; ")
    assert [line.partition(",")[0] for line in err.splitlines()] == [f"{done}/9 images" for done in (3, 6, 9)]
    records = json.loads((tmp_path / "figures.json").read_text())["records"]
    assert records[7] == {"shard": "samples-00001.npz", "index": 1, "class": "star", "class_id": 1, "seed": 7}
    assert main(argv) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'} already holds these 9 images (NPZ)\n"
    assert main([*argv, "--dtype", "fp32", "--temperature", "0.5"]) == 2
    assert "(recipe.temperature: 1.0 → 0.5; precision: int8 → float32)" in capsys.readouterr().err
    assert main([*argv, "--shard-size", "0"]) == 2
    assert "--shard-size must be at least 1" in capsys.readouterr().err
