"""The scripts beside the package: their configurations fit this version, and their tables say what was measured."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from prologue.config import RunConfig
from prologue.presets import preset

ROOT = Path(__file__).parents[1]


def _script(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ablation() -> ModuleType:
    return _script("benchmarks/ablation.py")


def test_every_change_is_one(ablation: ModuleType) -> None:
    configs = {name: ablation.changed(name, 1) for name in ablation.CHANGES}
    assert all(isinstance(config, RunConfig) and config.seed == 1 for config in configs.values())
    assert len({repr(config) for config in configs.values()}) == len(configs)
    assert configs["2d"].tokenizer.prologue_tokens == 0
    images = {config.tokenizer_training.steps * config.tokenizer_training.batch for config in configs.values()}
    images |= {config.prior_training.steps * config.prior_training.batch for config in configs.values()}
    assert images == {20_000, 19_200}


def _record(change: str, seed: int, **figures: float) -> dict[str, Any]:
    return {"change": change, "seed": seed, "figures": figures}


def test_the_table_compares_within_a_seed(ablation: ModuleType) -> None:
    records = [_record("base", 0, psnr=20.0, cost=5.0), _record("base", 1, psnr=22.0, cost=5.0)]
    records += [_record("ce-1", 0, psnr=21.0, cost=4.0), _record("ce-1", 1, psnr=22.5, cost=6.0)]
    records += [_record("2d", 0, psnr=19.0)]
    _, _, base, other, plain = ablation.table(records)
    assert base.startswith("| `base` | 21.00 | – | 5.0 |")
    assert other.startswith("| `ce-1` | 21.75<br>**+0.50 … +1.00** | – | 5.0<br>-1.0 … +1.0 |")
    assert plain.startswith("| `2d` | 19.00 | – | – |")
    assert plain.endswith("| 1 |")


def test_the_page_takes_what_commands_wrote() -> None:
    filled = _script("benchmarks/study_page.py").filled
    page = "# Study\n\n<!-- a -->\n\nold\n\n<!-- end of a -->\n\nafter\n"
    assert filled(page, "a", "## New\n\ntext\n") == (
        "# Study\n\n<!-- a -->\n\n### New\n\ntext\n\n<!-- end of a -->\n\nafter\n"
    )
    with pytest.raises(SystemExit, match="one <!-- b -->"):
        filled(page, "b", "")


def test_the_preset_of_the_model_in_the_package_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["builtin_shapes.py"])
    maker = _script("tools/builtin_shapes.py")
    assert preset(maker.PRESET).tokenizer.variant == "prologue"
