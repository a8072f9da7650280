"""Options of the embedded images, written behind their name: `shapes:grain=0.3`, `plates:figures=kinds,noise=0.2`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Self

from prologue.errors import DataError, did_you_mean

EMBEDDED = ("shapes", "digits", "plates")
"""Names that `--data` takes for images in the package. A folder of such a name is reached as ./NAME."""
ENDLESS = ("shapes", "plates")
"""Those whose number of images a run chooses."""


def embedded_name(where: str) -> str | None:
    """The name before the options, where `where` names embedded images; None for a folder or a zip."""
    name = where.partition(":")[0]
    return name if name in EMBEDDED else None


@dataclass(frozen=True)
class SourceOptions:
    """Base of the options of one source. Fields are numbers or words, each with what it may be in `allowed`."""

    source: ClassVar[str]
    allowed: ClassVar[Mapping[str, tuple[Any, ...]]] = MappingProxyType({})
    """For a number its least and largest value, for a word all of them."""

    @classmethod
    def parse(cls, where: str) -> Self:
        """The options in `NAME:key=value,…`; those left out keep their defaults.

        Raises `DataError` for text of another form, an unknown or repeated option, and an impossible value.
        """
        known = {each.name: each.default for each in dataclasses.fields(cls)}
        given: dict[str, Any] = {}
        _, colon, text = where.partition(":")
        for part in text.split(",") if colon else ():
            key, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals or not key or not value:
                raise DataError(f"--data {where}: {part!r} is not an option of the form key=value")
            if key not in known:
                raise DataError(f"--data {where}: {cls._unknown(key, tuple(known))}")
            if key in given:
                raise DataError(f"--data {where}: the option {key!r} is given twice")
            given[key] = cls._value(where, key, value, known[key])
        return cls(**given)

    @classmethod
    def _unknown(cls, key: str, known: tuple[str, ...]) -> str:
        if not known:
            return f"{cls.source} takes no options"
        return f"unknown option {key!r}: {did_you_mean(key, known)}{cls.source} takes {', '.join(known)}"

    @classmethod
    def _value(cls, where: str, key: str, text: str, default: Any) -> Any:
        allowed = cls.allowed[key]
        if isinstance(default, str):
            if text not in allowed:
                raise DataError(f"--data {where}: {key} must be one of {', '.join(allowed)}, not {text!r}")
            return text
        low, high = allowed
        kind = type(default)
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            what = "a whole number" if kind is int else "a number"
            raise DataError(f"--data {where}: {key} must be {what} from {low:g} to {high:g}, not {text!r}")
        return value


@dataclass(frozen=True)
class NoOptions(SourceOptions):
    """Of a source that has none."""

    source: ClassVar[str] = "digits"


@dataclass(frozen=True)
class ShapesOptions(SourceOptions):
    """Options of `shapes`."""

    source: ClassVar[str] = "shapes"
    allowed: ClassVar[Mapping[str, tuple[Any, ...]]] = MappingProxyType({"grain": (0, 1), "cell": (1, 64)})
    grain: float = 0.0
    """Strength of the noise: each cell's hue turns by up to ±180° · grain, and its brightness changes by up to
    ±0.5 · grain (of 1). 0 gives the scenes as they are."""
    cell: int = 4
    """Side of the noise's cells, in pixels."""


@dataclass(frozen=True)
class PlatesOptions(SourceOptions):
    """Options of `plates`."""

    source: ClassVar[str] = "plates"
    allowed: ClassVar[Mapping[str, tuple[Any, ...]]] = MappingProxyType(
        {"figures": ("digits", "kinds"), "noise": (0, 1), "cell": (1, 64)}
    )
    figures: str = "digits"
    """Scans of handwritten digits (needs the extra [digits]), or the eight kinds of `shapes`."""
    noise: float = 0.1
    """Part of the cells whose hue is drawn at random."""
    cell: int = 4
    """Side of the cells, in pixels."""
