"""Train, run and study autoregressive image generators whose sequences open with learned prologue tokens."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from prologue._version import __version__
from prologue.utils.cpu_threads import spinning_limited

if TYPE_CHECKING:
    from prologue.models.prior import Prior
    from prologue.models.sequence import TokenIds
    from prologue.models.tokenizer import Tokenizer
    from prologue.pipeline import Pipeline
    from prologue.sampling.guidance import Guidance

__all__ = ["Guidance", "Pipeline", "Prior", "TokenIds", "Tokenizer", "__version__"]

_HOMES = {
    "Guidance": "prologue.sampling.guidance",
    "Pipeline": "prologue.pipeline",
    "Prior": "prologue.models.prior",
    "TokenIds": "prologue.models.sequence",
    "Tokenizer": "prologue.models.tokenizer",
}


def __getattr__(name: str) -> object:
    """Import a public name at its first use, so that `import prologue` costs nothing (PEP 562)."""
    if name in _HOMES:
        with spinning_limited():  # torch is imported here, unless the caller did
            return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'prologue' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
