"""A batch in parts: the same updates as the whole, up to the order of sums."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from prologue.config import PriorOptions
from prologue.errors import ConfigError
from prologue.models.weights import read_tensors
from prologue.training.microbatches import averaged, microbatches
from prologue.training.run import RunFolder

pytestmark = pytest.mark.slow

PLAIN = PriorOptions(32, 1, 2)


@pytest.mark.parametrize(("variant", "shared"), [("prologue", False), ("prologue", True), ("2d", False)])
def test_parts_add_up_to_the_whole(kit: SimpleNamespace, tmp_path: Path, variant: str, shared: bool) -> None:
    """Without what depends on the part (dropout of units, batch norm); visual dropout and label drop are on."""
    runs = []
    for parts in (1, 2, 4):
        config = kit.tiny_config(variant, gan=0.0, prior_model=PLAIN, shared_prior_pass=shared, accumulate=parts,
                                 label_drop=0.5, steps=12)  # fmt: skip
        training = replace(config.prior_training, accumulate=parts, steps=12)
        config = replace(config, prior=PLAIN, prior_training=training, log_every=1)
        kit.run_training(tmp_path / str(parts), config)
        runs.append(RunFolder.load(tmp_path / str(parts)))
    for run in runs[1:]:
        for one, other in zip(runs[0].metrics(), run.metrics(), strict=True):
            assert one.keys() == other.keys()
            figures = [key for key in one if key not in ("stage", "images_per_second")]
            assert [one[key] for key in figures] == pytest.approx([other[key] for key in figures], rel=1e-3, abs=1e-4)
        for name in ("tokenizer", "prior"):
            one, other = (read_tensors(each.path / name / "model.safetensors") for each in (runs[0], run))
            for key in one:
                assert torch.allclose(one[key], other[key], atol=1e-4), key


def test_the_discriminator_learns_from_parts(kit: SimpleNamespace, tmp_path: Path) -> None:
    """Its batch norm sees a part at a time, so that it learns something else; and a run is still repeatable."""
    for name in ("one", "two"):
        kit.run_training(tmp_path / name, kit.tiny_config(accumulate=2), stage="tokenizer")
    assert kit.hashes(tmp_path / "one") == kit.hashes(tmp_path / "two")
    records = RunFolder.load(tmp_path / "one").metrics()
    assert any(record.get("discriminator_gradient_norm", 0) > 0 for record in records)
    assert any("r1" in record for record in records)


def test_parts_are_equal() -> None:
    assert [(part.start, part.stop) for part in microbatches(6, 3)] == [(0, 2), (2, 4), (4, 6)]
    with pytest.raises(ConfigError, match="6 images of a process do not divide into 4 equal parts"):
        microbatches(6, 4)
    assert averaged([{"a": 1.0, "b": torch.tensor(2.0)}, {"a": 3.0}]) == {"a": 2.0, "b": 2.0}
