"""Tiny random models, whose outputs are not near zero as those of freshly initialised models are."""

from __future__ import annotations

import os

# Tests run in parallel, one per core, and pass this to the processes that they start.
os.environ["OMP_NUM_THREADS"] = "1"

from collections.abc import Callable, Iterator

import pytest
import torch

from prologue.config import PriorConfig, TokenizerConfig, TransformerConfig
from prologue.models import published
from prologue.models.prior import Prior
from prologue.models.sequence import SequenceLayout
from prologue.models.tokenizer import Tokenizer
from prologue.utils.rng import torch_stream

Models = tuple[Tokenizer, Prior]


def shake(module: torch.nn.Module, seed: int, scale: float = 0.2) -> None:
    """Add noise to every weight, so that outputs differ by more than rounding."""
    generator = torch_stream(seed, "tests")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)


def make_models(
    variant: str = "prologue",
    image_size: tuple[int, int] = (8, 12),
    num_classes: int = 3,
    prior_prologue: bool = True,
    tied: bool = False,
    dropout: float = 0.0,
    width: int = 24,
    heads: int = 2,
) -> Models:
    """A tokenizer of 2 × 3 patches (at the default size) and a prior that fits it, in eval mode."""
    stack = TransformerConfig(width, 2, heads)
    has_prologue = variant.startswith("prologue")
    config = TokenizerConfig(
        variant=variant,
        image_size=image_size,
        patch_size=4,
        encoder=stack,
        decoder=stack,
        prologue_encoder=TransformerConfig(16, 1, 2, "11/4") if variant == "prologue-post" else None,
        code_dim=4,
        codebook_size=16,
        prologue_tokens=3 if has_prologue else 0,
        prologue_codebook_size=8 if has_prologue else 0,
    )
    tokenizer = Tokenizer(config, seed=1)
    layout = SequenceLayout.of(config, prologue=prior_prologue).config
    prior = Prior(PriorConfig(layout, num_classes, TransformerConfig(width, 2, heads, "11/4"), tied, dropout), seed=1)
    shake(tokenizer, 1)
    shake(prior, 2)
    return tokenizer.eval(), prior.eval()


@pytest.fixture(autouse=True, scope="session")
def own_weights_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hide the weights that `prologue weights` made on this machine."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(published, "cache_folder", lambda: cache)
        yield


@pytest.fixture(scope="session")
def tiny_models() -> Callable[..., Models]:
    """Return `make_models`, which test modules cannot import."""
    return make_models
