"""Results as a finished piece leaves them, with figures that a test chooses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from prologue.studies.reproduce.pieces import RESULT_FORMAT, Piece, Result

Make = Callable[..., tuple[Piece, Result]]


def make_result(variant: Any, seed: int, n: int = 2048, **figures: float | None) -> tuple[Piece, Result]:
    """A piece and its result; `figures` are dotted paths with `__` for dots."""
    measures: dict[str, Any] = {
        "reconstruction": {"n": n, "fd": 10.0, "kid": 0.1, "psnr": 25.0, "fd_name": "FD-X", "kid_name": "KID-X"},
        "unguided": {"n": n, "n_reference": n, "fd": 20.0, "kid": 1.0, "fd_name": "FD-X", "kid_name": "KID-X",
                     "recipe": {"temperature": 0.9}},
        "guided": None,
        "likelihood": {"n": n},
        "probe": {"n": n, "chance": 0.125, "visual_first": 0.2, "visual_first_low": 0.15},
        "layout": None,
    }  # fmt: skip
    for path, value in figures.items():
        where = measures
        *parents, last = path.split("__")
        for parent in parents:
            if where.get(parent) is None:
                where[parent] = {}
            where = where[parent]
        where[last] = value
    seconds = {"tokenizer": 10.0, "prior": 6.0, "plain": 0.0, "tokens": 1.0, "measuring": 3.0}
    result: Result = {"format": RESULT_FORMAT, "variant": variant, "seed": seed, "measures": measures}
    result |= {"seconds": seconds, "flops": {"tokenizer": 2e12, "prior": 1e12, "plain": 0.0}}
    result |= {"images": {"tokenizer": 100, "prior": 50, "taken_over": 0}, "precision": "fp32", "weights": {}}
    result |= {"parameters": {"tokenizer": 1000, "prior": 500}, "provenance": {"command": "prologue reproduce"}}
    return Piece(seed, variant), result


@pytest.fixture(scope="session")
def make() -> Make:
    """`make_result`."""
    return make_result
