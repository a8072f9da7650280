"""The table of variants is the one place that tells them apart, and its traits combine."""

from __future__ import annotations

import ast
import typing
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import prologue
from prologue.config import VARIANTS, Variant, VariantTraits
from prologue.errors import ConfigError
from prologue.models.sequence import SequenceLayout
from prologue.models.tokenizer import Tokenizer
from prologue.utils.rng import torch_stream

PACKAGE = Path(prologue.__file__).parent
STUDY = PACKAGE / "studies" / "reproduce"
"""Its `variant` is a row of the paper's tables, such as one-stage."""


def told_apart(tree: ast.AST) -> Iterator[int]:
    """Lines that compare something called `variant` with a name, or look at its text."""
    for node in ast.walk(tree):
        asked: ast.AST | None = None
        if isinstance(node, ast.Compare) and set(VARIANTS) & {
            constant.value for constant in ast.walk(node) if isinstance(constant, ast.Constant)
        }:
            asked = node
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "startswith":
            asked = node.func.value
        names = ast.walk(asked) if asked is not None else ()
        if any("variant" in (getattr(name, "id", ""), getattr(name, "attr", "")) for name in names):
            yield node.lineno  # type: ignore[attr-defined]


def test_variants_are_told_apart_in_one_place() -> None:
    planted = 'x.variant == "2d"; variant in ("prologue", "1d"); x.variant.startswith("p"); x.variant == y'
    assert len(list(told_apart(ast.parse(planted)))) == 3
    found = [
        f"{path.relative_to(PACKAGE)}:{line}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if STUDY not in path.parents
        for line in told_apart(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == []


def test_the_table_has_every_name() -> None:
    assert tuple(VARIANTS) == typing.get_args(Variant)
    assert {traits.frozen for traits in VARIANTS.values()} <= {None, *VARIANTS}


def test_traits_combine(tiny_models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe of docs/extending: visual codes from queries, with a prologue."""
    monkeypatch.setitem(VARIANTS, "prologue-1d", VariantTraits(has_prologue=True, visual_queries=True))  # type: ignore[misc]
    config = replace(tiny_models()[0].config, variant="prologue-1d")  # type: ignore[arg-type]
    tokenizer = Tokenizer(config, seed=1)
    images = torch.rand(2, 3, 8, 12, generator=torch_stream(0, "images")) * 2 - 1
    encoding, reconstruction = tokenizer(images)
    tokens = encoding.tokens
    assert (tokens.prologue.shape, tokens.visual.shape) == ((2, 3), (2, 6))
    assert reconstruction.shape == images.shape
    assert SequenceLayout.of(config).length == 3 + 1 + 6
    assert not config.visual_tokens_on_grid
    (encoding.visual.codes.sum() + encoding.prologue.one_hot.square().sum()).backward()
    assert tokenizer.encoder.queries is not None
    assert (tokenizer.encoder.queries.weight.grad[0] != 0).any(1).all()


def test_a_post_hoc_prologue_stands_on_its_own_variant_alone(tiny_models: Any) -> None:
    post, flat, other = (tiny_models(name)[0].config for name in ("prologue-post", "2d", "1d"))
    assert post.on_top_of(replace(flat, codebook_size=99)) == replace(post, codebook_size=99)
    with pytest.raises(ConfigError, match="reads a finished 2d tokenizer, not a '1d' one"):
        post.on_top_of(other)
