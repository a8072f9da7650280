"""The recipe of docs/extending for a sampler pattern."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import torch

from prologue import Pipeline


def test_patterns_of_ones_own(tiny_models, outside_module: Callable[[str], None]) -> None:
    outside_module("my_pattern")
    pattern = import_module("my_pattern")
    pipe = Pipeline(*tiny_models())
    assert pipe.tokenizer.config.grid == (2, 3)
    tokens = pipe.encode(pipe.generate(0, seed=50).images)
    known = pattern.repaint(tokens, (2, 3), slice(0, 2), slice(1, 2))
    out = pipe.generate(0, known=known, count=6, seed=0).tokens
    kept = torch.tensor([0, 2, 3, 5])
    assert torch.equal(out.prologue, tokens.prologue.expand(6, -1))
    assert torch.equal(out.visual[:, kept], tokens.visual[:, kept].expand(6, -1))
    assert len({tuple(row) for row in out.visual[:, [1, 4]].tolist()}) > 1

    a, b = (pipe.sample([0, 1, 2], seed=seed) for seed in (1, 11))
    mixed = pipe.sample([0, 1, 2], known=pattern.mix(a, b), seed=5)
    assert bool(((mixed.prologue == a.prologue) | (mixed.prologue == b.prologue)).all())
    alone = pipe.sample([0, 1, 2], known=pattern.mix(a, b, share=1.0), seed=5)
    assert torch.equal(alone.prologue, b.prologue)
    assert torch.equal(alone.visual, pipe.resample(b, [0, 1, 2], count=1, seed=5).tokens.visual)
