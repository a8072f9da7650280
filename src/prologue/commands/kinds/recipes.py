"""Sampling options of the kinds that draw images, and a recipe in the words of its flags."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from prologue.commands._sampling import SamplingFlags
from prologue.evaluation.runs import Record
from prologue.pipeline import SamplingOptions


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """What is left out comes from the stored recipe."""

    guidance: Annotated[str | None, arg(metavar="GUIDANCE")] = None
    """How strongly to lean on the class; the forms are listed below."""
    temperature: float | None = None
    """Divides the logits."""
    prologue_temperature: float | None = None
    """The same for prologue tokens alone."""
    top_k: int | Literal["off"] | None = None
    """Draw among this many most likely ids; `off` drops a stored limit."""
    top_p: float | Literal["off"] | None = None
    """Draw among the most likely ids that hold this mass; `off` drops a stored limit."""

    def sampling(self) -> SamplingOptions:
        """The sampling options that were given, checked."""
        names = ("guidance", "temperature", "prologue_temperature", "top_k", "top_p")
        flags = SamplingFlags(out=Path(), **{name: getattr(self, name) for name in names})
        flags.check()
        return flags.sampling()


def recipe_words(recipe: Record) -> str:
    """The recipe in the words of its flags, those that are set."""
    guidance = recipe["guidance"]
    if guidance["whole"] is not None:
        words = [f"guidance overall:{_schedule(guidance['whole'])}"]
    elif guidance["prologue"] is not None and guidance["visual"] is not None:
        words = [f"guidance split:{_schedule(guidance['prologue'])},{_schedule(guidance['visual'])}"]
    else:
        words = ["no guidance"]
    names = ("temperature", "prologue_temperature", "top_k", "top_p")
    words += [f"{name.replace('_', '-')} {recipe[name]:g}" for name in names if recipe[name] is not None]
    return ", ".join(words)


def _schedule(schedule: Record) -> str:
    return f"{schedule['kind']}:{schedule['scale']:g}:{schedule['power']:g}"
