"""A run that is stopped, killed or damaged ends with the bits of one that was not; what would not is refused."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import prologue.data.token_store as store_module
import prologue.training.checkpoint as checkpoint_module
import prologue.training.tokens_stage as tokens_module
from prologue.errors import CheckpointError, RunError
from prologue.models.weights import file_hash, read_tensors, write_tensors
from prologue.training.checkpoint import Checkpoints
from prologue.training.loop import Stopped, StopRequest
from prologue.training.progress import Progress
from prologue.training.run import RunFolder
from prologue.training.train import TrainRequest, train
from prologue.utils import locks

pytestmark = pytest.mark.slow


def stop(kit: SimpleNamespace, out: Path, stage: str, step: int, number: int = signal.SIGTERM) -> None:
    with pytest.raises(Stopped) as stopped:
        kit.run_training(out, kit.tiny_config(), kit.StopAt(stage, step, number))
    assert stopped.value.signal == number
    assert stage in str(stopped.value)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_stopped_in_every_stage_and_continued(kit: SimpleNamespace, uninterrupted: Path, tmp_path: Path) -> None:
    """Stops fall before the discriminator and the cross-entropy begin, inside their ramps, and at no round step."""
    out = tmp_path / "run"
    for stage, step in (("tokenizer", 4), ("tokenizer", 9), ("tokenizer", 17), ("prior", 2), ("prior", 13)):
        stop(kit, out, stage, step, signal.SIGINT if step == 9 else signal.SIGTERM)
        checkpoints = [path.name for path in (out / "checkpoints" / stage).iterdir()]
        assert f"step-{step:08d}" in checkpoints
    kit.run_training(out, kit.tiny_config())
    assert kit.hashes(out) == kit.hashes(uninterrupted)
    assert kit.figures(out) == kit.figures(uninterrupted)
    steps = [(record["stage"], record["step"]) for record in kit.figures(out)]
    assert len(steps) == len(set(steps))
    left = [str(path.relative_to(out / "checkpoints")) for path in sorted((out / "checkpoints").glob("*/*"))]
    assert left == ["prior/step-00000020", "tokenizer/step-00000020"]  # what --extend goes on from


def test_a_run_of_an_earlier_version_continues(kit: SimpleNamespace, uninterrupted: Path, tmp_path: Path) -> None:
    """Settings and the window of unused codes had other names."""
    out = tmp_path / "run"
    stop(kit, out, "tokenizer", 9)
    text = (out / "run.json").read_text(encoding="utf-8")
    (out / "run.json").write_text(text.replace("dead_code_reset_", "revive_"), encoding="utf-8")
    state = out / "checkpoints" / "tokenizer" / "step-00000009" / "state.safetensors"
    tensors = read_tensors(state)
    tensors["revival_window"] = tensors.pop("dead_code_window")
    write_tensors(state, tensors)
    checksum = {"step": 9, "sha256": file_hash(state)}
    state.with_name("checksum.json").write_text(json.dumps(checksum), encoding="utf-8")
    heard = kit.Heard()
    kit.run_training(out, kit.tiny_config(), heard)
    assert "tokenizer: continuing at step 9 of 20" in heard.said
    assert kit.hashes(out) == kit.hashes(uninterrupted)


def test_a_stop_at_the_last_step_finishes_the_stage(kit: SimpleNamespace, uninterrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Stopped, match=r"stage tokens after step 0|stage prior after step 1"):
        kit.run_training(out, kit.tiny_config(), kit.StopAt("tokenizer", 20))
    assert RunFolder.load(out).finished("tokenizer")
    kit.run_training(out, kit.tiny_config())
    assert kit.hashes(out) == kit.hashes(uninterrupted)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(
    kit: SimpleNamespace, uninterrupted: Path, tmp_path: Path
) -> None:
    kit.run_training(tmp_path / "other", replace(kit.tiny_config(), seed=1))
    other, this = kit.hashes(tmp_path / "other"), kit.hashes(uninterrupted)
    assert other["tokenizer/model.safetensors"] != this["tokenizer/model.safetensors"]
    assert other["prior/model.safetensors"] != this["prior/model.safetensors"]


@pytest.mark.parametrize("damage", ["truncated", "changed", "unlisted", "unnamed"])
def test_a_damaged_checkpoint_is_passed_over(
    damage: str, kit: SimpleNamespace, uninterrupted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    stop(kit, out, "tokenizer", 13)
    newest = out / "checkpoints" / "tokenizer" / "step-00000013"
    state = newest / "state.safetensors"
    if damage == "truncated":
        os.truncate(state, state.stat().st_size // 2)
    elif damage == "changed":
        content = bytearray(state.read_bytes())
        content[-1] ^= 1
        state.write_bytes(content)
    elif damage == "unlisted":
        (newest / "checksum.json").unlink()
    else:
        state.unlink()
    (out / "checkpoints" / "tokenizer" / ".writing-00000014").mkdir()
    heard = kit.Heard()
    kit.run_training(out, kit.tiny_config(), heard)
    assert any("damaged checkpoint" in sentence and "step-00000013" in sentence for sentence in heard.said)
    assert "tokenizer: continuing at step 10 of 20" in heard.said
    assert kit.hashes(out) == kit.hashes(uninterrupted)


def test_a_damaged_later_checkpoint_is_not_counted_among_those_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step in (10, 20):
        checkpoints.save(step, {"x": checkpoint_module.Tensor([step])})
    (tmp_path / "step-00000020" / "state.safetensors").write_bytes(b"")
    (tmp_path / "notes").mkdir()
    said: list[str] = []
    assert checkpoints.restore(said.append) is None  # only one was kept
    assert len(said) == 1
    checkpoints.save(15, {"x": checkpoint_module.Tensor([15])})
    restored = checkpoints.restore(said.append)
    assert restored is not None
    assert restored[0] == 15


def test_fields_that_change_no_result_may_differ(kit: SimpleNamespace, uninterrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    stop(kit, out, "tokenizer", 8)
    changed = replace(kit.tiny_config(), log_every=1, sample_every=0, checkpoint_every=3, keep_checkpoints=1)
    kit.run_training(out, changed)
    assert kit.hashes(out) == kit.hashes(uninterrupted)


def test_other_settings_are_refused_and_nothing_is_touched(kit: SimpleNamespace, tmp_path: Path) -> None:
    out = tmp_path / "run"
    stop(kit, out, "tokenizer", 4)
    before = everything(out)
    with pytest.raises(RunError, match=r"tokenizer_training\.l1: 1\.0 in the run, 2\.0 now"):
        kit.run_training(out, kit.tiny_config(l1=2.0))
    with pytest.raises(RunError, match="data_fingerprint"):
        kit.run_training(out, replace(kit.tiny_config(), data=replace(kit.tiny_config().data, shapes_images=12)))
    with pytest.raises(RunError, match="plan: None in the run, 'short' now"):
        kit.run_training(out, kit.tiny_config(), facts={"plan": "short"})
    assert everything(out) == before


def test_a_run_that_began_nothing_takes_other_settings(kit: SimpleNamespace, tmp_path: Path) -> None:
    """A first command that failed (no weight file, say) must not bind the second."""
    RunFolder.open(tmp_path / "run", kit.tiny_config(l1=2.0), {})
    run = RunFolder.open(tmp_path / "run", kit.tiny_config(), {"plan": 1})
    assert run.config == RunFolder.load(run.path).config == kit.tiny_config()
    assert run.record["facts"] == {"plan": 1}


def test_another_format_or_another_folder_is_refused(kit: SimpleNamespace, tmp_path: Path) -> None:
    out = tmp_path / "run"
    RunFolder.open(out, kit.tiny_config(), {})
    record = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(record | {"format": 99}))
    with pytest.raises(RunError, match=r"run of format 99; this version .* reads format 1"):
        kit.run_training(out, kit.tiny_config())
    (out / "run.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not a run folder"):
        kit.run_training(out, kit.tiny_config())
    (out / "run.json").write_text(json.dumps(record | {"config": {"speed": 1}}))
    with pytest.raises(CheckpointError, match=r"run\.json does not fit this version.*speed"):
        kit.run_training(out, kit.tiny_config())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("…")
    with pytest.raises(RunError, match="mine exists and is not a run folder"):
        kit.run_training(tmp_path / "mine", kit.tiny_config())
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"]
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "run.json.tmp").write_text("{")
    RunFolder.open(tmp_path / "killed", kit.tiny_config(), {})


@pytest.mark.parametrize("text", [None, "I/O error: No space left on device (os error 28)"])
def test_a_full_disk_costs_no_checkpoint(
    text: str | None, kit: SimpleNamespace, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    write, calls = checkpoint_module.write_tensors, []

    def full(path: Path, tensors: Any, metadata: Any = None) -> None:
        calls.append(path)
        if len(calls) == 3:
            path.write_bytes(b"part")
            raise OSError(errno.ENOSPC, "No space left on device", str(path)) if text is None else RuntimeError(text)
        write(path, tensors, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module, "write_tensors", full)
        with pytest.raises(RunError, match=r"no checkpoint fits in .*it continues from the last checkpoint"):
            kit.run_training(out, kit.tiny_config())
    assert sorted(path.name for path in (out / "checkpoints" / "tokenizer").iterdir()) == [
        "step-00000005",
        "step-00000010",
    ]
    kit.run_training(out, kit.tiny_config())
    assert kit.hashes(out) == kit.hashes(uninterrupted)


def test_a_token_store_continues_with_the_same_bits(
    kit: SimpleNamespace, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards end inside a batch here: what is encoded again must be encoded in the same company."""
    monkeypatch.setattr(store_module, "_SHARD_BYTES", 1000)
    monkeypatch.setattr(tokens_module, "VIEWS_PER_BATCH", 30)
    sizes: list[int] = []
    encode = tokens_module.Tokenizer.encode
    monkeypatch.setattr(tokens_module.Tokenizer, "encode", lambda self, x: sizes.append(len(x)) or encode(self, x))
    for name in ("whole", "stopped"):
        shutil.copytree(uninterrupted, tmp_path / name)
        shutil.rmtree(tmp_path / name / "tokens")
        record = RunFolder.load(tmp_path / name)
        record.set_stage("tokens", finished=False)
    kit.run_training(tmp_path / "whole", kit.tiny_config(), stage="tokens")
    whole, sizes[:] = list(sizes), []
    with pytest.raises(Stopped, match="stage tokens after image 4"):
        kit.run_training(tmp_path / "stopped", kit.tiny_config(), kit.StopAt("tokens", 6), stage="tokens")
    kit.run_training(tmp_path / "stopped", kit.tiny_config(), stage="tokens")
    assert whole == [30, 30, 30, 10]
    assert sizes == [30, 30, 30, 30, 10]  # image 3 again, with 4 and 5
    assert kit.hashes(tmp_path / "stopped") == kit.hashes(tmp_path / "whole")
    assert len(list((tmp_path / "whole" / "tokens").glob("shard-*"))) == 3


class _TimeIsUp(StopRequest):
    """Asks without a signal, as a deadline does."""

    def alone(self) -> int | None:
        return 1000


def test_tokens_stop_for_more_than_signals(
    kit: SimpleNamespace, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens_module, "VIEWS_PER_BATCH", 30)
    out = tmp_path / "run"
    shutil.copytree(uninterrupted, out)
    shutil.rmtree(out / "tokens")
    RunFolder.load(out).set_stage("tokens", finished=False)
    request = TrainRequest(kit.tiny_config(), "shapes", out, stage="tokens", device="cpu")
    with pytest.raises(Stopped) as stopped:
        train(request, Progress(), _TimeIsUp())
    assert stopped.value.signal == 1000
    assert not RunFolder.load(out).finished("tokens")
    kit.run_training(out, kit.tiny_config(), stage="tokens")
    assert RunFolder.load(out).finished("tokens")


def test_finished_stages_are_skipped(kit: SimpleNamespace, uninterrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(uninterrupted, out)
    before = everything(out)
    heard = kit.Heard()
    kit.run_training(out, kit.tiny_config(), heard)
    assert heard.said[0].startswith("shapes: 16 images in 8 classes ")
    assert heard.said[1:] == [f"{stage}: finished already" for stage in ("tokenizer", "tokens", "prior")]
    assert everything(out) == before


def test_stages_one_by_one(kit: SimpleNamespace, uninterrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for stage in ("tokens", "prior"):
        with pytest.raises(RunError, match=f"stage '{stage}' needs the finished stage"):
            kit.run_training(out, kit.tiny_config(), stage=stage)
    for stage in ("tokenizer", "tokens", "prior"):
        kit.run_training(out, kit.tiny_config(), stage=stage)
    assert kit.hashes(out) == kit.hashes(uninterrupted)


def test_images_that_moved_are_the_same_images(kit: SimpleNamespace, tmp_path: Path) -> None:
    from PIL import Image

    for number in range(8):
        Image.new("RGB", (24, 24), (30 * number, 0, 0)).save(tmp_path / f"{number}.png")
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        for number in range(8):
            shutil.copy(tmp_path / f"{number}.png", tmp_path / name)
    with pytest.raises(Stopped):
        kit.run_training(tmp_path / "run", kit.tiny_config(), kit.StopAt("tokenizer", 3), data=str(tmp_path / "here"))
    run = kit.run_training(tmp_path / "run", kit.tiny_config(), data=str(tmp_path / "there"))
    assert run.finished("prior")


def test_a_signal_that_is_passed_on_is_the_same_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal's Ctrl-C reaches launcher and process, and the launcher then sends SIGTERM."""
    with StopRequest().listening() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert stop.asked() == signal.SIGINT
        monkeypatch.setattr("prologue.training.loop.SAME_REQUEST_SECONDS", -1.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_signal_after_the_time_was_up_still_leaves_time_for_a_checkpoint() -> None:
    with _TimeIsUp().listening() as stop:
        stop.number = 1000
        signal.raise_signal(signal.SIGTERM)
        assert stop.number == 1000


def test_a_run_has_one_process_at_a_time(
    kit: SimpleNamespace, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 0.1)
    out = tmp_path / "run"
    shutil.copytree(uninterrupted, out)
    RunFolder.load(out).set_stage("prior", finished=False)
    empty = tmp_path / "empty"
    for folder in (out, empty):
        with locks.folder_lock(folder), ThreadPoolExecutor(1) as pool:
            second = pool.submit(kit.run_training, folder, kit.tiny_config())
            with pytest.raises(RunError, match="another process is at work in"):
                second.result()
    assert not empty.exists()  # not even its settings were written
    kit.run_training(out, kit.tiny_config())
