"""The packed state: small files, whole or not at all, restored as it was."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest

from prologue.errors import RunError
from prologue.studies.reproduce import state
from prologue.studies.reproduce.state import Share


def _study(out: Path) -> None:
    run = out / "runs" / "2d-s0"
    (run / "tokenizer").mkdir(parents=True)
    (run / "tokens").mkdir()
    (run / "tokens" / "ids").write_bytes(b"tokens")
    (run / "tokenizer" / "model.safetensors").write_bytes(bytes(range(256)) * 100)
    (run / "run.json").write_text(
        json.dumps({"stages": {"tokenizer": {"finished": True}, "tokens": {"finished": True}}})
    )
    (out / "study.json").write_text("{}")


def test_what_was_packed_comes_back(tmp_path: Path) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    _study(there)
    run = there / "runs" / "2d-s0"
    assert state.pack(there, [there / "study.json", run / "run.json", run / "tokenizer"], []) == []
    here.mkdir()
    (there / "state").rename(here / "state")
    assert state.is_packed(here)
    state.unpack(here)
    assert (here / "runs/2d-s0/tokenizer/model.safetensors").read_bytes() == bytes(range(256)) * 100
    # Tokens did not travel, so the run must make them again.
    assert list(json.loads((here / "runs/2d-s0/run.json").read_text())["stages"]) == ["tokenizer"]


def test_parts_are_small_and_old_ones_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _study(tmp_path)
    monkeypatch.setattr(state, "PART_BYTES", 10_000)
    weights = tmp_path / "runs/2d-s0/tokenizer"
    state.pack(tmp_path, [tmp_path / "study.json", weights], [])
    first = {path.name for path in (tmp_path / "state").iterdir()}
    assert len(first) == 4  # 25,600 bytes in three parts, and the index
    assert all(path.stat().st_size <= 10_000 for path in (tmp_path / "state").iterdir())
    (tmp_path / "study.json").write_text('{"changed": 1}')
    state.pack(tmp_path, [tmp_path / "study.json", weights], [])
    second = {path.name for path in (tmp_path / "state").iterdir()}
    assert len(second) == 4
    assert first & second == {"state.json"}


def test_the_limits_are_those_asked_for() -> None:
    parts = -(-state.MOST_BYTES // state.PART_BYTES)
    assert (state.PART_BYTES, state.MOST_BYTES) == (16 * 2**20, 40 * 2**20)
    assert parts + 1 <= 8


def test_what_does_not_fit_is_left_out_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _study(tmp_path)
    monkeypatch.setattr(state, "MOST_BYTES", state._SLACK + 60_000)
    small, large, less = tmp_path / "small", tmp_path / "large", tmp_path / "less"
    small.write_bytes(b"x" * 1000)
    large.write_bytes(b"x" * 60_000)
    less.write_bytes(b"x" * 500)
    weights = tmp_path / "runs/2d-s0/tokenizer"

    def packed() -> set[str]:
        parts = sorted((tmp_path / "state").glob("*.part"))
        assert sum(part.stat().st_size for part in parts) < state.MOST_BYTES
        with zipfile.ZipFile(io.BytesIO(b"".join(part.read_bytes() for part in parts))) as archive:
            return {Path(name).name for name in archive.namelist()}

    settings = [tmp_path / "study.json"]
    assert state.pack(tmp_path, settings, [Share([weights], [large]), Share([small])]) == [large]
    assert packed() == {"study.json", "model.safetensors", "small"}
    # A share is of use as a whole only, and what lies beside it only with it.
    assert state.pack(tmp_path, settings, [Share([small, large], [weights]), Share([less])]) == [small, large]
    assert packed() == {"study.json", "less"}
    with pytest.raises(RunError, match="MiB, more than"):
        state.pack(tmp_path, [large, weights], [])


def test_parts_that_a_kill_left_behind_go_before_more_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _study(tmp_path)
    state.pack(tmp_path, [tmp_path / "study.json"], [])
    (kept,) = (tmp_path / "state").glob("*.part")
    orphan = tmp_path / "state" / "0123456789ab-0.part"
    orphan.write_bytes(b"x")

    def killed(path: Path, data: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(state, "save_json", killed)
    (tmp_path / "study.json").write_text('{"changed": 1}')
    with pytest.raises(KeyboardInterrupt):
        state.pack(tmp_path, [tmp_path / "study.json"], [])
    assert kept.is_file()
    assert not orphan.exists()


def test_a_restoration_that_was_killed_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    _study(there)
    state.pack(there, [there / "study.json", there / "runs/2d-s0/run.json"], [])
    here.mkdir()
    (there / "state").rename(here / "state")

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(state, "_forget_tokens", killed)
        with pytest.raises(KeyboardInterrupt):
            state.unpack(here)
    # As long as tokens count as finished that are not there, the study is not restored.
    assert not (here / "study.json").exists()
    state.unpack(here)
    assert (here / "study.json").is_file()
    assert list(json.loads((here / "runs/2d-s0/run.json").read_text())["stages"]) == ["tokenizer"]


@pytest.mark.parametrize("harm", ["missing", "changed"])
def test_a_damaged_state_is_refused(tmp_path: Path, harm: str) -> None:
    _study(tmp_path)
    state.pack(tmp_path, [tmp_path / "study.json"], [])
    part = next((tmp_path / "state").glob("*.part"))
    if harm == "missing":
        part.unlink()
    else:
        part.write_bytes(part.read_bytes()[:-1] + b"!")
    with pytest.raises(RunError, match="lacks a part" if harm == "missing" else "differs from its checksum"):
        state.unpack(tmp_path)
