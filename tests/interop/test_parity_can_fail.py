"""A deliberate error in rotation, norm, cross-entropy or folding makes the parity tests fail."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from prologue.interop import authors
from prologue.models import layers, transformer

HERE = Path(__file__).parent


@pytest.fixture
def parity(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("parity_tests", HERE / "test_parity.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "parity_tests", module)
    spec.loader.exec_module(module)
    return module


def half_split_rotation(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Pairs (x_i, x_{i + d/2}) instead of interleaved ones."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def norm_without_one(self: layers.RMSNorm, x: torch.Tensor) -> torch.Tensor:
    return F.normalize(x, dim=-1) * self.scale * self.weight


def break_rotation(patch: pytest.MonkeyPatch, parity: ModuleType) -> None:
    patch.setattr(transformer, "rotate", half_split_rotation)


def break_norm(patch: pytest.MonkeyPatch, parity: ModuleType) -> None:
    patch.setattr(layers.RMSNorm, "forward", norm_without_one)


def break_cross_entropy(patch: pytest.MonkeyPatch, parity: ModuleType) -> None:
    """Divided by the visual tokens instead of the sequence length."""
    right = parity.cross_entropy_terms

    def wrong(logits, sequence, layout):  # type: ignore[no-untyped-def]
        return right(logits, sequence, SimpleNamespace(by_segment=layout.by_segment, length=layout.visual_tokens))

    patch.setattr(parity, "cross_entropy_terms", wrong)


def break_condition(patch: pytest.MonkeyPatch, parity: ModuleType) -> None:
    """The first class as the constant condition instead of the null class."""
    right = authors._Reader.take

    def wrong(self: authors._Reader, key: str, like: tuple | None = None) -> torch.Tensor:
        value = right(self, key, like)
        return value.flip(1) if key.endswith("cond_proj.0.weight") else value

    patch.setattr(authors._Reader, "take", wrong)


def break_gate(patch: pytest.MonkeyPatch, parity: ModuleType) -> None:
    """Gates left out of the fold."""
    right = authors._gate
    patch.setattr(authors, "_gate", lambda *arguments: torch.ones_like(right(*arguments)))


@pytest.mark.parametrize("fault", [break_rotation, break_norm, break_cross_entropy, break_condition, break_gate])
def test_parity_fails(fault: Callable, parity: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = parity.PARITY / "prologue"

    def compare() -> None:
        golden = load_file(folder / "golden.safetensors")
        case = parity.Case(folder, golden, parity.load_config(folder / "config.json"), set())
        parity.test_prior_step(case, "prior_step")

    compare()
    fault(monkeypatch, parity)
    with pytest.raises(AssertionError):
        compare()
