"""Sampling recipes on the command line: parses the flags of a recipe, and writes a recipe as flags."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tyro.conf import arg

from prologue.errors import ConfigError
from prologue.sampling.guidance import SCHEDULES, Guidance, SegmentSchedule
from prologue.sampling.recipe import Recipe

GUIDANCE_HELP = """guidance:
  none                        no guidance
  overall:KIND:SCALE[:POWER]  one schedule for the whole sequence, for example overall:cosine:10:1.5
  split:PROLOGUE,VISUAL       one schedule for each segment, for example split:constant:0.7,cosine:3.75:0.2
  KIND is constant, linear, cosine, or MODULE:NAME for a schedule of your own.
  POWER is the exponent of a cosine schedule, 1 by default.

The default of each sampling option is that of the recipe stored in RUN; without a stored recipe there is no guidance
and the temperature is 1."""


@dataclass(frozen=True, kw_only=True)
class RecipeFlags:
    """Sampling options. Options that are not given have the values of the stored recipe."""

    guidance: Annotated[str | None, arg(metavar="GUIDANCE")] = None
    """Classifier-free guidance, in one of the forms listed below."""
    temperature: float | None = None
    """Sampling temperature, by which logits are divided."""
    prologue_temperature: float | None = None
    """Sampling temperature of prologue tokens."""
    top_k: int | Literal["off"] | None = None
    """Number of most likely ids to sample from; 1 is greedy, `off` removes a stored limit."""
    top_p: float | Literal["off"] | None = None
    """Probability mass of the most likely ids to sample from; `off` removes a stored limit."""

    def check(self) -> None:
        """Refuse invalid values before a model is loaded."""
        Recipe().replace(**self.sampling())

    def sampling(self) -> Any:
        """The options that were given, as fields of `Recipe`."""
        given: dict[str, Any] = {
            "guidance": None if self.guidance is None else parse_guidance(self.guidance),
            "temperature": self.temperature,
            "prologue_temperature": self.prologue_temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
        }
        chosen = {name: value for name, value in given.items() if value is not None}
        return {name: None if value == "off" else value for name, value in chosen.items()}


def parse_guidance(text: str) -> Guidance:
    """Parse `none`, `overall:KIND:SCALE[:POWER]` or `split:PROLOGUE,VISUAL` with KIND:SCALE[:POWER] for each segment.

    Raises:
        ConfigError: the text has another form, or a schedule cannot be imported.
        SamplingError: a kind is unknown or a value is invalid.
    """
    form, _, rest = text.partition(":")
    matches = [_SCHEDULE.fullmatch(part) for part in rest.split(",")]
    segments: list[SegmentSchedule] = []
    with suppress(ValueError):
        segments = [(each["kind"], float(each["scale"]), float(each["power"] or 1)) for each in matches if each]
    for kind, *_ in segments:
        if ":" in kind:
            SCHEDULES.import_named(kind)
    if form == "none" and not rest:
        return Guidance.none()
    if form == "overall" and len(segments) == len(matches) == 1:
        return Guidance.overall(*segments[0])
    if form == "split" and len(segments) == len(matches) == 2:
        return Guidance.split(prologue=segments[0], visual=segments[1])
    raise ConfigError(
        f"--guidance {text!r} cannot be read: write none, overall:KIND:SCALE[:POWER] such as overall:cosine:10:1.5, "
        "or split:PROLOGUE,VISUAL such as split:constant:0.7,cosine:3.75:0.2"
    )


_SCHEDULE = re.compile(r"(?P<kind>[^:]+(:[A-Za-z_][\w.]*)?):(?P<scale>[^:]+)(:(?P<power>[^:]+))?")
"""KIND:SCALE[:POWER], where KIND is a name or MODULE:NAME."""


def recipe_words(recipe: Mapping[str, Any]) -> str:
    """The options of a recipe (`Recipe.to_dict`) that are set, in the form of the flags."""
    guidance = recipe["guidance"]
    if guidance["whole"] is not None:
        words = [f"guidance overall:{_schedule_words(guidance['whole'])}"]
    elif guidance["prologue"] is not None and guidance["visual"] is not None:
        segments = (_schedule_words(guidance[segment]) for segment in ("prologue", "visual"))
        words = [f"guidance split:{','.join(segments)}"]
    else:
        words = ["no guidance"]
    names = ("temperature", "prologue_temperature", "top_k", "top_p")
    words += [f"{name.replace('_', '-')} {recipe[name]:g}" for name in names if recipe[name] is not None]
    return ", ".join(words)


def _schedule_words(schedule: Mapping[str, Any]) -> str:
    return f"{schedule['kind']}:{schedule['scale']:g}:{schedule['power']:g}"
