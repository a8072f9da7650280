"""Devices by name."""

from __future__ import annotations

import pytest
import torch

from prologue.errors import ConfigError
from prologue.utils.device import pick_device

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


def _pretend(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_prefers_cuda_then_mps(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, expected: str) -> None:
    _pretend(monkeypatch, cuda, mps)
    assert pick_device().type == expected


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps", torch.device("cuda:1")])
def test_absent_device_says_what_to_use(monkeypatch: pytest.MonkeyPatch, device: str | torch.device) -> None:
    _pretend(monkeypatch, cuda=False, mps=False)
    with pytest.raises(ConfigError, match=r"is not available: .*--device cpu"):
        pick_device(device)
    assert pick_device("cpu") == CPU


def test_unknown_device_lists_the_choices() -> None:
    with pytest.raises(ConfigError, match="unknown device 'tpu': choose one of auto, cpu, cuda, mps, or cuda:N"):
        pick_device("tpu")
