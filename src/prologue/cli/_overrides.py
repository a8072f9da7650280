"""The run configuration of a command: the preset, then the fields of a JSON file, then flags `--SECTION.FIELD VALUE`.

tyro parses the flags. It gets them as a `TypedDict` that mirrors `RunConfig`, so that only given flags have a value and
`RunConfig` is built and validated once, with file and flags applied.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import inspect
import json
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, TypedDict, TypeVar, Union

from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec

from prologue.config import REGISTRY, RunConfig
from prologue.errors import ConfigError, did_you_mean
from prologue.presets import PRESETS
from prologue.presets import preset as named_preset
from prologue.utils.files import expand
from prologue.utils.serialization import RENAMED, from_dict, load_json, with_new_names

T = TypeVar("T")


class _Null(enum.Enum):
    """`none` as the value of an optional field."""

    none = None


class _Empty(enum.Enum):
    """`none` as the value of a list."""

    none = ()


def with_fields(kind: type[T], preset: str) -> type[T]:
    """A command's options with a flag for each field of the run configuration, which fill its dict `fields`.

    The help shows the values of `preset` as the defaults.
    """
    PRESETS.import_named(preset)
    flags: Any = _flags(RunConfig, named_preset(preset))
    item: Any = ("fields", Annotated[flags, arg(name="")], dataclasses.field(default_factory=dict))
    return dataclasses.make_dataclass(kind.__name__, [item], bases=(kind,), frozen=True, kw_only=True)


def resolve_run_config(preset: str, config_file: Path | None, fields: Mapping[str, Any]) -> RunConfig:
    """The preset, overridden by the JSON file, overridden by the parsed flags.

    Raises:
        ConfigError: an unknown preset, field or value. The message names it and the nearest known name.
    """
    PRESETS.import_named(preset)
    base = named_preset(preset)
    settings: dict[str, Any] = {}
    if config_file is not None:
        settings = load_json(config_file)
        if not isinstance(settings, Mapping):
            raise ConfigError(f"{config_file}: a configuration must be a table of fields, not {settings!r}")
        settings = _with_new_names(RunConfig, settings)
        for problem in _problems(RunConfig, settings, ""):
            raise ConfigError(f"{config_file}: {problem}")
    return from_dict(RunConfig, _with_paths(_merge(settings, given_fields(fields))), base=base)


def given_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The parsed flags as nested JSON values, without groups of which no flag was given."""
    given: dict[str, Any] = {}
    for name, value in fields.items():
        if _is_group(value):
            value = given_fields(value)
            if not value:
                continue
        given[name.removesuffix(" none")] = value.value if isinstance(value, enum.Enum) else value
    return given


def _flag(path: str) -> str:
    return "--" + path.replace("_", "-")


def _flags(kind: type, defaults: Any, where: str = "") -> Any:
    """A `TypedDict` whose keys are the fields of a dataclass and may be absent."""
    hints, docs = typing.get_type_hints(kind), _docs(kind)
    keys: dict[str, Any] = {}
    for item in dataclasses.fields(kind):
        name, (inner, optional) = item.name, _without_none(hints[item.name])
        value = getattr(defaults, name, None)
        if dataclasses.is_dataclass(inner):
            keys[name] = _flags(typing.cast(type, inner), value, f"{where}{name}.")
            if optional:
                shown = arg(name=name.replace("_", "-"), help="Leave this group out.", help_behavior_hint="")
                keys[f"{name} none"] = Annotated[_Null, shown]
            continue
        if REGISTRY in item.metadata:
            component = Annotated[dict[str, Any], _component_argument(item.metadata[REGISTRY])]
            inner = tuple[component, ...] if typing.get_origin(inner) is tuple else component
        if optional:
            inner = _Null | inner
        elif typing.get_origin(inner) is tuple and Ellipsis in typing.get_args(inner):
            inner = _Empty | inner
        earlier = item.metadata.get(RENAMED)
        aliases = None if earlier is None else [_flag(where + earlier)]
        shown = arg(help=docs.get(name, ""), help_behavior_hint=f"(default: {_text(value)})", aliases=aliases)
        keys[name] = Annotated[inner, shown]
    return TypedDict(kind.__name__, keys, total=False)  # type: ignore[operator]


def _component_argument(registry: str) -> PrimitiveConstructorSpec[dict[str, Any]]:
    """How tyro reads a component of this registry (`module:name`): its name, or JSON with its options."""

    def read(texts: list[str]) -> dict[str, Any]:
        component: dict[str, Any] = {"name": texts[0]}
        if texts[0].startswith("{"):
            try:
                component = json.loads(texts[0])
            except json.JSONDecodeError as error:
                raise ValueError(f"{texts[0]!r} is neither a name nor JSON with a name and options: {error}") from error
        if ":" in str(component.get("name")):  # the user typed this name, so its module may be imported
            module, _, name = registry.partition(":")
            getattr(import_module(module), name).import_named(component["name"])
        return component

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar='NAME|{"name": NAME, …}',
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda component: [_text(component)],
    )


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return str(value["name"]) if value.keys() == {"name"} else json.dumps(value)
    if isinstance(value, tuple) and value:
        return " ".join(map(_text, value))
    return "none" if value in (None, ()) else str(value).lower() if isinstance(value, bool) else str(value)


def _with_paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Expand `~` in the fields named `…_path`."""
    expanded: dict[str, Any] = {}
    for key, value in settings.items():
        is_path = str(key).endswith("_path") and isinstance(value, str)
        expanded[key] = expand(value) if is_path else _with_paths(value) if isinstance(value, Mapping) else value
    return expanded


def _is_group(value: object) -> bool:
    """Whether a value is a table of fields; a component has a name, and its options belong to that name."""
    return isinstance(value, Mapping) and "name" not in value


def _merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(low)
    for key, value in high.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, Mapping) and _is_group(value) else value
    return merged


def _with_new_names(kind: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Replace the earlier names of renamed fields by the present ones."""
    hints = typing.get_type_hints(kind)
    renamed: dict[str, Any] = with_new_names(kind, settings)
    for key, value in renamed.items():
        inner, _ = _without_none(hints.get(key))
        if dataclasses.is_dataclass(inner) and isinstance(value, Mapping):
            renamed[key] = _with_new_names(typing.cast(type, inner), value)
    return renamed


def _problems(kind: type, settings: Mapping[str, Any], where: str) -> Iterator[str]:
    """What is wrong with the names of a configuration file, with the nearest known name."""
    hints = typing.get_type_hints(kind)
    for key, value in settings.items():
        if key not in hints:
            hint = did_you_mean(key, hints).rstrip() or f"known are {', '.join(hints)}"
            yield f"unknown field {where + key!r}: {hint}"
            continue
        inner, optional = _without_none(hints[key])
        if dataclasses.is_dataclass(inner) and not (optional and value is None):
            if isinstance(value, Mapping):
                yield from _problems(typing.cast(type, inner), value, f"{where}{key}.")
            else:
                yield f"{where}{key} must be a table of fields, not {value!r}"


def _without_none(hint: Any) -> tuple[Any, bool]:
    """`X | None` as (X, True), any other type as (itself, False)."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        kinds = typing.get_args(hint)
        (inner,) = (kind for kind in kinds if kind is not type(None))
        return inner, type(None) in kinds
    return hint, False


@cache
def _docs(kind: type) -> dict[str, str]:
    """The string below each field of a dataclass."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    docs: dict[str, str] = {}
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            docs[ast.unparse(field.target)] = " ".join(str(below.value.value).split())
    return docs
