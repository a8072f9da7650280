"""Devices and number formats by name."""

from __future__ import annotations

import pytest
import torch

from prologue import device as devices
from prologue.device import pick_device, pick_dtype
from prologue.errors import ConfigError

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


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), torch.float32), ((8, 0), torch.bfloat16)])
def test_auto_dtype_on_cuda_follows_its_capability(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert pick_dtype("auto", CUDA) is expected


def test_dtypes_by_name_and_by_type(monkeypatch: pytest.MonkeyPatch) -> None:
    for fast, expected in ((False, torch.float32), (True, torch.bfloat16)):
        monkeypatch.setattr(devices, "fast_bf16", lambda device, fast=fast: fast and device.type == "cpu")
        assert pick_dtype("auto", CPU) is expected
    assert pick_dtype("auto", torch.device("mps")) is torch.float32
    assert pick_dtype("bf16", CPU) is torch.bfloat16
    assert pick_dtype(torch.float64, CPU) is torch.float64


@pytest.mark.parametrize(
    ("dtype", "device", "message"),
    [
        ("int4", CPU, "unknown dtype 'int4': choose one of auto, fp32, bf16"),
        (torch.int64, CPU, "not a floating-point type"),
        (torch.float64, torch.device("mps"), "no float64"),
    ],
)
def test_impossible_dtypes(dtype: str | torch.dtype, device: torch.device, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pick_dtype(dtype, device)
