"""Counted work and measured limits."""

from __future__ import annotations

import pytest
import torch

from prologue.studies.bench.limits import compute_types, gemm_rate, memory_bandwidth
from prologue.studies.bench.work import StepWork, matrices

CPU = torch.device("cpu")


def test_work_is_that_of_the_tensors(tiny_models) -> None:
    _, prior = tiny_models()
    work, size = StepWork.of(prior.config), prior.config.transformer
    assert work.steps == prior.layout.length - 1  # EOS joins another step
    blocks = sum(weight.numel() for weight in prior.transformer.blocks.parameters() if weight.ndim == 2)
    prologue, visual = 3 / 9, 6 / 9
    assert work.weights == pytest.approx(blocks + (prologue * 8 + visual * 16) * size.width)
    assert work.cached == 2 * 24 * 2 * (prior.layout.length + 1) / 2
    assert work.bytes_read(3, 2, 4) == 2 * work.weights + 12 * work.cached
    assert work.flops(3) == 6 * (work.weights + work.cached)


def test_without_a_prologue_every_position_is_a_step(tiny_models) -> None:
    _, prior = tiny_models(prior_prologue=False)
    assert StepWork.of(prior.config).steps == prior.layout.length == 6


def test_matrices_are_those_of_a_visual_step(tiny_models) -> None:
    _, prior = tiny_models()
    blocks = [tuple(weight.shape) for weight in prior.transformer.blocks.parameters() if weight.ndim == 2]
    assert matrices(prior.config) == [*blocks, (16, 24)]


def test_limits_are_positive_rates(tiny_models) -> None:
    _, prior = tiny_models()
    assert 1e8 < memory_bandwidth(CPU, size=1 << 22, repeats=2) < 1e13
    assert 1e5 < gemm_rate(prior.config, 2, torch.float32, CPU, size=1 << 18, repeats=2) < 1e14


def test_fp32_is_held_against_fp32_alone() -> None:
    assert compute_types("fp32", CPU) == (torch.float32,)
    assert torch.float32 in compute_types("int8", CPU)
