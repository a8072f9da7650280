"""Named random streams that all derive from the seed of a run; no global generator is used."""

from __future__ import annotations

import hashlib
import operator
from typing import TYPE_CHECKING

from prologue.errors import SamplingError

if TYPE_CHECKING:
    import numpy as np
    import torch

SEEDS = range(-(2**63), 2**63)
"""Valid seeds: signed 64-bit integers, the type in which archives store them."""

MOST_IMAGES = 10**8
"""Images per request; each needs a seed and a class in memory."""


def check_seeds(first: int, count: int = 1) -> None:
    """Raise `SamplingError` unless the `count` seeds that start at `first` all lie in `SEEDS`."""
    last = operator.index(first) + max(1, count) - 1
    if first not in SEEDS or last not in SEEDS:
        asked = f"{first}" if last == first else f"{first}…{last} ({count} seeds from {first})"
        raise SamplingError(f"seeds are whole numbers from -2**63 to 2**63 - 1, not {asked}: choose a smaller one")


def derive_seed(seed: int, *names: str | int) -> int:
    """Return the seed of the stream `names`: a 63-bit int, the same on every machine and Python version."""
    text = "\x1f".join([str(int(seed)), *(str(name) for name in names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def torch_stream(seed: int, *names: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """Return a new `torch.Generator` at the start of the stream `names`."""
    import torch

    return torch.Generator(device=device).manual_seed(derive_seed(seed, *names))


def numpy_stream(seed: int, *names: str | int) -> np.random.Generator:
    """Return a new numpy generator (PCG64) at the start of the stream `names`."""
    import numpy as np

    return np.random.Generator(np.random.PCG64(derive_seed(seed, *names)))
