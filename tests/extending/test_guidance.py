"""The recipe of docs/extending for a guidance schedule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from prologue import Guidance, Pipeline
from prologue.cli.main import main
from prologue.errors import CheckpointError, SamplingError
from prologue.sampling.flags import parse_guidance
from prologue.sampling.guidance import SCHEDULES
from prologue.sampling.recipe import Recipe

LATE = "my_guidance:late"


@pytest.fixture
def folder(tiny_models, tmp_path: Path) -> str:
    Pipeline(*tiny_models()).save_pretrained(tmp_path / "run")
    return str(tmp_path / "run")


def drawn(folder: str, out: Path, *before: str, guidance: str | None = None) -> np.ndarray:
    flags = [] if guidance is None else ["--guidance", guidance]
    command = [*before, "generate", folder, "--count", "4", "--device", "cpu", "--dtype", "fp32", *flags]
    assert main([*command, "--out", str(out)]) == 0
    with np.load(out / "samples.npz") as archive:
        return np.concatenate([archive["prologue"], archive["visual"]], axis=1)


def test_a_schedule_of_ones_own(
    folder: str, tmp_path: Path, outside_module: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    outside_module("my_guidance")
    with pytest.raises(SamplingError, match="--import my_guidance"):
        Guidance.overall(LATE, 3.0, 0.5)
    found = drawn(folder, tmp_path / "flag", guidance=f"overall:{LATE}:3:0.5")
    assert not np.array_equal(found, drawn(folder, tmp_path / "plain"))
    guidance = Guidance.overall(LATE, 3.0, 0.5)
    pipe = Pipeline.from_pretrained(folder, device="cpu", dtype="fp32")
    layout = pipe.prior.layout
    assert guidance.scales(layout) == [1.0] * (layout.length // 2) + [3.0] * (layout.length // 2)
    assert guidance.guided_segments(layout) == ("visual",)
    tokens = pipe.sample(count=4, guidance=guidance)
    assert np.array_equal(found, np.concatenate([tokens.prologue.numpy(), tokens.visual.numpy()], axis=1))
    both = parse_guidance(f"split:constant:0.7,{LATE}:3:0.25")
    assert both == Guidance.split(("constant", 0.7), (LATE, 3.0, 0.25))

    # A stored recipe keeps the name, and a folder that is opened imports nothing.
    pipe.recipe = Recipe(guidance)
    pipe.save_pretrained(folder)
    outside_module("my_guidance")
    with pytest.raises(CheckpointError, match=r"pipeline.json.*--import my_guidance"):
        Pipeline.from_pretrained(folder)
    assert main(["generate", folder, "--count", "1", "--out", str(tmp_path / "none")]) == 2
    assert "--import my_guidance" in capsys.readouterr().err
    assert np.array_equal(drawn(folder, tmp_path / "stored", "--import", "my_guidance"), found)


@pytest.mark.parametrize("value", [float("nan"), None, "3"])
def test_a_schedule_gives_finite_numbers(tiny_models, monkeypatch: pytest.MonkeyPatch, value: object) -> None:
    monkeypatch.setitem(SCHEDULES._components, "mine:wrong", lambda *_: value)
    guidance = Guidance.overall("mine:wrong", 2.0)
    with pytest.raises(
        SamplingError, match=r"scale of guidance schedule 'mine:wrong' at 0.000 must be a finite number"
    ):
        guidance.scales(tiny_models()[1].layout)
