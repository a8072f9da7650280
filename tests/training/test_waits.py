"""A step only queues work on the device. Whatever reads a value from it waits for it, and belongs to log steps."""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from prologue.config import OptimizerConfig, PriorOptions
from prologue.data.token_store import TokenStore
from prologue.models.tokenizer import Tokenizer
from prologue.training import upkeep
from prologue.training.context import Context
from prologue.training.prior_stage import PriorStage
from prologue.training.tokenizer_stage import TokenizerStage
from prologue.utils.transfer import fetch

pytestmark = pytest.mark.slow

WAITING = (
    "_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "bincount", "equal", "unique", "_unique2",
    "unique_dim", "repeat_interleave.Tensor", "histc",
)  # fmt: skip
"""Operators whose result's value or shape a CPU needs from a GPU."""


class Waits(TorchDispatchMode):
    """Notes the place in the package of every operator that would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).removeprefix("aten.")
        masks = func in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default) and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if masks or any(name.startswith(waiting) for waiting in WAITING):
            places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_stack()
                      if "/prologue/" in frame.filename]  # fmt: skip
            self.places.append(f"{name} in {(places or ['a test'])[-1]}")
        return func(*args, **(kwargs or {}))


def waits_of(call: Callable[[], object]) -> list[str]:
    with Waits() as waits:
        call()
    return waits.places


def test_the_counter_sees_what_waits() -> None:
    x = torch.arange(4)
    for call in (
        lambda: int(x[1]), lambda: bool((x > 1).any()), lambda: x.nonzero(), lambda: x[x > 1], lambda: x.bincount(),
        lambda: torch.nn.functional.one_hot(x, 4), lambda: x.masked_select(x > 1),
    ):  # fmt: skip
        assert waits_of(call), call
    assert waits_of(lambda: x.masked_fill(x > 1, 0)[torch.tensor([1, 2])]) == []


CASES: list[tuple[str, dict[str, Any]]] = [
    ("prologue", {}),
    ("prologue", {"accumulate": 2}),
    ("prologue", {"shared_prior_pass": True, "prior_model": PriorOptions(32, 1, 2)}),
    ("prologue", {"one_stage": True, "label_drop": 0.1, "autoencoder": OptimizerConfig(lr=1e-3, warmup=3, clip=1.0)}),
    ("prologue-post", {}),
    ("2d", {"accumulate": 2}),
    ("1d", {}),
]


def stage_of(context: Context) -> TokenizerStage:
    if context.config.tokenizer.variant != "prologue-post":
        return TokenizerStage(context)
    visual = dataclasses.replace(
        context.config.tokenizer, variant="2d", prologue_encoder=None, prologue_tokens=0, prologue_codebook_size=0
    )
    return TokenizerStage(context, Tokenizer(visual, 1))


@pytest.mark.parametrize(("variant", "training"), CASES)
def test_a_step_of_the_tokenizer_stage_waits_for_nothing(
    variant: str, training: dict[str, Any], context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With adversary, R1, LeCam, augmentation, dropout, k-means and dead-code resets, across their starts."""
    fetched: list[torch.Tensor] = []
    monkeypatch.setattr(upkeep, "fetch", lambda counts: fetched.append(counts) or fetch(counts))
    stage = stage_of(context(variant, **training))
    found = {step: waits_of(lambda step=step: stage.step(step)) for step in range(12)}  # type: ignore[misc]
    assert {step: places for step, places in found.items() if places} == {}
    assert len(fetched) == (0 if variant == "prologue-post" else 3)  # the counts for a reset, every 4 steps


@pytest.fixture(scope="module")
def store(kit: SimpleNamespace, uninterrupted: Path) -> TokenStore:
    return TokenStore(uninterrupted / "tokens")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_of_the_prior_stage_waits_for_nothing(
    accumulate: int, store: TokenStore, kit: SimpleNamespace, tmp_path: Path, uninterrupted: Path
) -> None:
    """This includes the evaluation on held-out images every 6 steps, except the first, which opens and encodes them."""
    config = kit.tiny_config()
    training = dataclasses.replace(config.prior_training, accumulate=accumulate)
    context = kit.make_context(tmp_path / "run", dataclasses.replace(config, prior_training=training))
    (tmp_path / "run" / "tokenizer").symlink_to(uninterrupted / "tokenizer")
    stage = PriorStage(context, store)
    assert stage.best is not None
    stage.best._encoded()
    found = {step: waits_of(lambda step=step: stage.step(step)) for step in range(13)}  # type: ignore[misc]
    assert {step: places for step, places in found.items() if places} == {}
