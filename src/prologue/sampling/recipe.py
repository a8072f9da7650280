"""A sampling recipe: guidance, temperatures and filters; a pipeline stores one as its default."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

from prologue.errors import SamplingError
from prologue.sampling.guidance import Guidance
from prologue.utils.serialization import from_dict, to_dict


@dataclass(frozen=True)
class Recipe:
    """How tokens are drawn. `prologue_temperature=None` means `temperature`; `top_k` and `top_p` None keep all ids."""

    guidance: Guidance = field(default_factory=Guidance.none)
    temperature: float = 1.0
    prologue_temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        given: Any = self.guidance
        if not isinstance(given, Guidance):
            raise SamplingError(f"guidance is a Guidance, such as Guidance.overall('constant', 2), not {given!r}")
        for name in ("temperature", "prologue_temperature"):
            value: Any = getattr(self, name)
            if value is None and name == "prologue_temperature":
                continue
            if not isinstance(value, Real) or not 0 < float(value) < float("inf"):
                greedy = "for greedy sampling use top_k=1"
                raise SamplingError(f"{name} must be positive and finite, not {value}: {greedy}")
            object.__setattr__(self, name, float(value))
        top_k: Any = self.top_k
        if top_k is not None:
            if not isinstance(top_k, Integral) or top_k < 1:
                raise SamplingError(f"top_k must be a whole number of at least 1, not {top_k}")
            object.__setattr__(self, "top_k", int(top_k))
        top_p: Any = self.top_p
        if top_p is not None:
            if not isinstance(top_p, Real) or not 0 < float(top_p) <= 1:
                raise SamplingError(f"top_p must lie in (0, 1], not {top_p}")
            object.__setattr__(self, "top_p", float(top_p))

    @property
    def filtered(self) -> bool:
        """Whether top-k or top-p can leave ids out."""
        return self.top_k is not None or (self.top_p is not None and self.top_p < 1)

    def segment_temperature(self, segment: str) -> float:
        """The temperature of a segment by its name."""
        if segment == "prologue" and self.prologue_temperature is not None:
            return self.prologue_temperature
        return self.temperature

    def replace(self, **options: Any) -> Recipe:
        """A copy with some options changed."""
        return dataclasses.replace(self, **options)

    def to_dict(self) -> dict[str, Any]:
        return to_dict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        return from_dict(cls, data, "recipe")
