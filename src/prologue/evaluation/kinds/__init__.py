"""The kinds of `prologue evaluate`, one module each: options, measurement, rows, sentences and charts."""

from __future__ import annotations

from typing import Any

from prologue.errors import ConfigError
from prologue.evaluation.kinds.base import Kind
from prologue.evaluation.versions import VERSIONS
from prologue.utils.registry import Registry

KINDS: Registry[type[Kind[Any]]] = Registry(
    "kind of evaluation",
    {name: f"prologue.evaluation.kinds.{name}:{name.capitalize()}" for name in VERSIONS if name != "features"},
)
"""Built-in kinds in the order of the help and of the report, then those that were registered or named."""


def named_kind(name: str) -> Kind[Any]:
    """The kind that the user typed: a built-in name, or `module:Class`, whose module is imported.

    Raises:
        ConfigError: there is no such kind, or the class is not a `Kind`.
    """
    return _checked(KINDS.import_named(name))(name)


def known_kind(name: str) -> Kind[Any] | None:
    """The kind that a file names; None if this process does not know it. Nothing outside the package is imported."""
    return _checked(KINDS.get(name))(name) if name in KINDS else None


def _checked(found: type[Kind[Any]]) -> type[Kind[Any]]:
    if not (isinstance(found, type) and issubclass(found, Kind)):
        raise ConfigError(f"{found!r} is not a kind of evaluation: derive it from prologue.evaluation.kinds.base.Kind")
    missing = [name for name in ("summary", "options") if not hasattr(found, name)] + sorted(found.__abstractmethods__)
    if missing:
        raise ConfigError(f"the kind of evaluation {found.__qualname__!r} has no {' and no '.join(missing)}")
    return found
