"""Conversion between dataclasses and JSON; reading is strict."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from prologue.errors import ConfigError
from prologue.utils.files import write_whole

T = TypeVar("T")

OMIT_DEFAULT = "omit_default"
"""Key in a field's metadata: the field is written only if it differs from its default. New files then equal those of
versions without the field."""
RENAMED = "renamed"
"""Key in a field's metadata: the name of the field in files of earlier versions, which is still read."""


def to_dict(config: Any) -> dict[str, Any]:
    """Convert a dataclass to JSON values; tuples become lists. `OMIT_DEFAULT` leaves out fields at their default."""
    plain: dict[str, Any] = json.loads(json.dumps(config, default=_written_fields))
    return plain


def _written_fields(config: Any) -> dict[str, Any]:
    """Return the fields of a dataclass that are written to JSON."""
    values = {}
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        if each.metadata.get(OMIT_DEFAULT) and value == _default(each):
            continue
        values[each.name] = value
    return values


def _default(each: dataclasses.Field[Any]) -> Any:
    return each.default if each.default_factory is dataclasses.MISSING else each.default_factory()


def from_dict(kind: type[T], data: Mapping[str, Any], where: str = "", base: T | None = None) -> T:
    """Build the dataclass `kind` from JSON values. Missing keys take their values from `base`, or the defaults without
    a `base`.

    Raises:
        ConfigError: a key is unknown or a value has the wrong type; the message names it, prefixed by `where`.
    """
    hints = typing.get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
    data = with_new_names(kind, data)
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where or kind.__name__} must be a table of fields, not {data!r}")
    for key in data:
        if key not in names:
            raise ConfigError(f"unknown field {_join(where, key)!r}: {kind.__name__} has {', '.join(names)}")
    values = {}
    for key, value in data.items():
        current = getattr(base, key) if base is not None else None
        values[key] = _convert(hints[key], value, _join(where, key), current)
    try:
        if base is not None:
            return dataclasses.replace(base, **values)  # type: ignore[type-var]
        return kind(**values)
    except TypeError as error:
        raise ConfigError(f"{where or kind.__name__}: {error}") from error


def with_new_names(kind: type, data: Any) -> Any:
    """A table of fields whose earlier names are replaced by the present ones; other values are returned as they are."""
    new = {each.metadata[RENAMED]: each.name for each in dataclasses.fields(kind) if RENAMED in each.metadata}
    return {new.get(key, key): value for key, value in data.items()} if isinstance(data, Mapping) else data


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else str(key)


def _convert(hint: Any, value: Any, where: str, current: Any) -> Any:
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        (hint,) = (option for option in typing.get_args(hint) if option is not type(None))
        return _convert(hint, value, where, current)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where, current)
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise ConfigError(f"{where} must be one of {list(typing.get_args(hint))}, not {value!r}")
        return value
    if origin is tuple:
        return _convert_tuple(hint, value, where)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} must be a table, not {value!r}")
        return dict(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{where} must be {hint.__name__}, not {value!r}")
    return value


def _convert_tuple(hint: Any, value: Any, where: str) -> tuple[Any, ...]:
    kinds = typing.get_args(hint)
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{where} must be a list, not {value!r}")
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise ConfigError(f"{where} must have {len(kinds)} entries, not {len(value)}")
    return tuple(_convert(kind, item, where, None) for kind, item in zip(kinds, value, strict=True))


def save_json(path: Path, data: Any) -> None:
    """Write JSON atomically."""
    write_whole(path, (json.dumps(data, indent=1) + "\n").encode())


def load_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        ConfigError: the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path} is not readable JSON: {error}") from error
