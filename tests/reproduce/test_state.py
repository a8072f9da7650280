"""The packed state: small files, whole or not at all, restored as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prologue.config import PriorConfig, RunConfig
from prologue.errors import RunError
from prologue.prior import Prior
from prologue.reproduce import state
from prologue.reproduce.scales import SCALES, plain_config, run_config
from prologue.sequence import SequenceLayout
from prologue.tokenizer import Tokenizer


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


def test_the_models_that_a_packed_scale_needs_fit() -> None:
    """At most those of two runs: a post-hoc one and its 2d, or `prologue` and the one its gain is measured against."""
    scale = SCALES["gpu"]
    assert [name for name, each in SCALES.items() if each.packed] == ["gpu"]

    def size(config: RunConfig) -> int:
        tokenizer = Tokenizer(config.tokenizer)
        layout = SequenceLayout.of(config.tokenizer, config.prior.prologue).config
        prior = Prior(PriorConfig(layout, 10, config.prior.transformer))
        return sum(4 * tensor.numel() for model in (tokenizer, prior) for tensor in model.parameters())

    sizes = {name: size(run_config(scale, name, 0)) for name in ("2d", "prologue", "prologue-post")}
    plain = size(plain_config(scale, 0))
    room = state.MOST_BYTES - 2 * 2**20  # for results and metrics
    assert sizes["2d"] + sizes["prologue-post"] < room
    assert sizes["prologue"] + plain < room


def test_checkpoints_that_do_not_fit_are_left_out_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _study(tmp_path)
    monkeypatch.setattr(state, "MOST_BYTES", state._SLACK + 60_000)
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"x" * 1000)
    large.write_bytes(b"x" * 60_000)
    weights = tmp_path / "runs/2d-s0/tokenizer"
    assert state.pack(tmp_path, [tmp_path / "study.json", weights], [large, small]) == [large]
    packed = sum(path.stat().st_size for path in (tmp_path / "state").iterdir())
    assert packed < state.MOST_BYTES
    with pytest.raises(RunError, match="MiB, more than"):
        state.pack(tmp_path, [large, weights], [])


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
