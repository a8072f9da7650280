"""Pictures of a training show images from all of the set."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prologue.training import snapshots


@pytest.mark.parametrize(("count", "shown"), [(80, [0, 11, 22, 33, 45, 56, 67, 79]), (3, [0, 1, 2])])
def test_reconstructions_are_spread_over_the_classes(
    monkeypatch: pytest.MonkeyPatch, count: int, shown: list[int]
) -> None:
    """Files are in the order of their classes: the first ones are of one class."""
    seen: list[int] = []

    def batch(images: Any, indices: list[int]) -> SimpleNamespace:
        seen.extend(indices)
        return SimpleNamespace(images=torch.zeros(len(indices), 3, 8, 8, dtype=torch.uint8))

    monkeypatch.setattr(snapshots, "center_batch", batch)
    tokenizer = SimpleNamespace(encode=lambda x: SimpleNamespace(visual=x), decode=lambda x: x)
    picture = snapshots._reconstructions(SimpleNamespace(device="cpu"), tokenizer, range(count))  # type: ignore[arg-type]
    assert seen == shown
    assert picture.width > 0
