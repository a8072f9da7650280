"""Number formats by name: what becomes of both models, and how near they stay."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from prologue.errors import ConfigError
from prologue.models import precision
from prologue.models.precision import check_dtype, convert, pick_dtype
from prologue.studies.bench.models import agreement

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


@pytest.mark.parametrize(
    ("name", "prior_type", "tokenizer_type", "error"),
    [
        ("fp32", torch.float32, torch.float32, 0.0),
        ("bf16", torch.bfloat16, torch.bfloat16, 0.1),
        ("int8", torch.bfloat16, torch.float32, 0.2),
        (torch.float64, torch.float64, torch.float64, 1e-4),
    ],
)
def test_formats(tiny_models, name, prior_type: torch.dtype, tokenizer_type: torch.dtype, error: float) -> None:
    models = tiny_models()
    reference = deepcopy(models[1])
    tokenizer, prior = convert(*models, name, CPU)
    assert prior.token_embedding.weight.dtype == prior_type
    assert next(tokenizer.parameters()).dtype == (tokenizer_type if name != "int8" else pick_dtype("auto", CPU))
    assert prior.precision == ("int8" if name == "int8" else str(prior_type).removeprefix("torch."))
    found = agreement(reference, prior, seed=0, sequences=2)
    assert found.mean_error <= error
    assert (found.mean_error > 0) == (name != "fp32")


def test_auto_takes_bf16_where_it_is_fast(tiny_models, monkeypatch: pytest.MonkeyPatch) -> None:
    for fast, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(precision, "fast_bf16", lambda device, fast=fast: fast)
        assert convert(*tiny_models(), "auto", CPU)[1].token_embedding.weight.dtype == expected


def test_dtypes_by_name_and_by_type(monkeypatch: pytest.MonkeyPatch) -> None:
    for fast, expected in ((False, torch.float32), (True, torch.bfloat16)):
        monkeypatch.setattr(precision, "fast_bf16", lambda device, fast=fast: fast and device.type == "cpu")
        assert pick_dtype("auto", CPU) is expected
    assert pick_dtype("auto", torch.device("mps")) is torch.float32
    assert pick_dtype("bf16", CPU) is torch.bfloat16
    assert pick_dtype(torch.float64, CPU) is torch.float64


@pytest.mark.parametrize(
    ("dtype", "device", "message"),
    [
        ("int4", CPU, "unknown dtype 'int4': choose one of auto, fp32, bf16, int8"),
        ("float8", CPU, "unknown dtype 'float8'"),
        (torch.int64, CPU, "not a floating-point type"),
        (torch.float64, torch.device("mps"), "no float64"),
    ],
)
def test_impossible_dtypes(dtype: str | torch.dtype, device: torch.device, message: str) -> None:
    for check in (pick_dtype, check_dtype):
        with pytest.raises(ConfigError, match=message):
            check(dtype, device)


def test_int8_is_a_format_of_its_own() -> None:
    check_dtype("int8", CPU)
    with pytest.raises(ConfigError, match="unknown dtype 'int8'"):
        pick_dtype("int8", CPU)


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), torch.float32), ((8, 0), torch.bfloat16)])
def test_auto_dtype_on_cuda_follows_its_capability(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert pick_dtype("auto", CUDA) is expected
