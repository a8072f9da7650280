"""Counted work, measured limits and the aims."""

from __future__ import annotations

import pytest
import torch

from prologue.studies.bench.limits import compute_types, gemm_rate, memory_bandwidth
from prologue.studies.bench.targets import BEST, target
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


def test_targets_are_those_of_prior_b_on_the_base_tokenizer() -> None:
    found = target("b", "base", "cpu", "fp32", (16, True))
    assert found is not None
    assert found.ratio == 1.5
    assert found.reached(1.5, 0.1) is True
    assert found.reached(1.49, 0.69) is False
    assert found.reached(1.0, 0.7) is True
    assert found.reached(None, 0.1) is None
    assert target("b", "base", "cpu", "int8", (1, True)) == target("b", "base", "cpu", BEST, (1, True))
    assert target("s", "base", "cpu", "fp32", (16, True)) is None
    assert target("b", "base", "cpu", "fp32", (2, True)) is None
    assert target("b", "base", "cuda", "fp32", (1, True)) is None


def test_prior_xl_has_to_reach_a_share_of_the_bandwidth_on_a_gpu() -> None:
    found = target("xl", "base", "cuda", "bf16", (1, False))
    assert found is not None
    assert found.ratio is None
    assert found.reached(99.0, 0.59) is False
    assert found.reached(0.5, 0.6) is True
    assert target("xl", "base", "cpu", "bf16", (1, False)) is None
