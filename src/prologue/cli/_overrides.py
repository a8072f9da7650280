"""The run configuration from a preset, a JSON file and flags `--SECTION.FIELD V`, each overruling the one before."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Union

from prologue.config import REGISTRY, RunConfig
from prologue.errors import ConfigError, did_you_mean
from prologue.presets import PRESETS
from prologue.presets import preset as named_preset
from prologue.utils.files import expand
from prologue.utils.serialization import RENAMED, from_dict, load_json, with_new_names

_NONE = "none"


@dataclass(frozen=True)
class _Field:
    """One settable value of the run configuration."""

    path: str
    """Dotted, as in JSON: `tokenizer_training.autoencoder.lr`."""
    hint: Any
    """Its type, without `| None`."""
    optional: bool
    doc: str
    registry: str | None = None
    """The registry of a component, as `module:name`."""
    old_path: str | None = None
    """The path in earlier versions."""

    @property
    def flag(self) -> str:
        return "--" + self.path.replace("_", "-")

    @property
    def metavar(self) -> str:
        origin = typing.get_origin(self.hint)
        if dataclasses.is_dataclass(self.hint):
            text = _NONE
        elif origin is Literal:
            text = "|".join(map(str, typing.get_args(self.hint)))
        elif origin is dict:
            text = 'NAME|{"name": NAME, …}'
        elif self.registry is not None:
            text = '{"name": NAME, …} …'
        elif origin is tuple:
            kinds = typing.get_args(self.hint)
            text = f"{kinds[0].__name__} …" if kinds[-1] is Ellipsis else " ".join(kind.__name__ for kind in kinds)
        else:
            text = "true|false" if self.hint is bool else self.hint.__name__
        return f"{text}|{_NONE}" if self.optional and text != _NONE else text


def resolve_run_config(preset: str, config_file: Path | None, overrides: Sequence[str]) -> RunConfig:
    """The preset, then the fields that the JSON file sets, then the flags; validated once, with all of them applied.

    `overrides` are flags as `split_overrides` returns them. An unknown preset, field or value is a `ConfigError`
    that names it, and the nearest match.
    """
    PRESETS.import_named(preset)
    base = named_preset(preset)
    settings: dict[str, Any] = {}
    if config_file is not None:
        settings = _with_new_names(RunConfig, load_json(config_file))
        try:
            _check_names(RunConfig, settings, "")
        except ConfigError as error:
            raise ConfigError(f"{config_file}: {error}") from None
    return from_dict(RunConfig, _with_paths(_merge(settings, parse_overrides(overrides))), base=base)


def _with_new_names(kind: type, settings: Any) -> Any:
    """The settings with the present names of fields that were renamed."""
    settings = with_new_names(kind, settings)
    groups = {name: _without_none(hint)[0] for name, hint in typing.get_type_hints(kind).items()}
    for key, value in settings.items() if isinstance(settings, Mapping) else ():
        if dataclasses.is_dataclass(groups.get(key)):
            settings[key] = _with_new_names(typing.cast(type, groups[key]), value)
    return settings


def _with_paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with home folders written out in their paths, which are the fields named `…_path`."""
    written: dict[str, Any] = {}
    for key, value in settings.items():
        is_path = str(key).endswith("_path") and isinstance(value, str)
        written[key] = expand(value) if is_path else _with_paths(value) if isinstance(value, Mapping) else value
    return written


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Part a command's argv into its own options and the flags that set fields of the run configuration.

    A flag with a dot, or with the name of a top-level field (`--seed`, `--precision`), belongs to the latter, together
    with as many of the values behind it as its type takes.
    """
    known = _fields()
    own: list[str] = []
    overrides: list[str] = []
    tokens = list(argv)
    while tokens:
        token = tokens.pop(0)
        path = _path(token) if token.startswith("--") else ""
        if "." not in path and path not in known:
            own.append(token)
            continue
        overrides.append(token)
        if "=" not in token:
            overrides += _take_values(_lookup(path), tokens)
    return own, overrides


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Flags as nested JSON values: `["--data.flip", "false"]` gives `{"data": {"flip": False}}`."""
    settings: dict[str, Any] = {}
    tokens = list(overrides)
    while tokens:
        token = tokens.pop(0)
        if not token.startswith("--"):
            raise ConfigError(f"unexpected value {token!r}: a flag such as --seed must come before it")
        field = _lookup(_path(token))
        values = [token.partition("=")[2]] if "=" in token else _take_values(field, tokens)
        nested: Any = _value(field, values)
        for key in reversed(field.path.split(".")):
            nested = {key: nested}
        settings = _merge(settings, nested)
    return settings


def fields_help(config: RunConfig) -> str:
    """Every settable field with its type, its value in `config` and its meaning: the second part of `train --help`."""
    lines = ["fields of the run configuration (flags; the values shown are those without a flag):"]
    section = None
    for field in _fields().values():
        parent, _, _ = field.path.rpartition(".")
        if parent != section:
            section = parent
            lines += ["", f"{parent}:" if parent else "general:"]
        value: Any = config
        for key in field.path.split("."):
            value = getattr(value, key, None)
        shown = _NONE if value in (None, ()) else " ".join(map(_text, value if isinstance(value, tuple) else [value]))
        lines.append(f"  {field.flag} {field.metavar}  ({shown})")
        if field.doc:
            lines += textwrap.wrap(field.doc, 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def _text(value: object) -> str:
    if dataclasses.is_dataclass(value):
        return "set"
    if isinstance(value, dict):
        return value["name"] if value.keys() == {"name"} else json.dumps(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _path(flag: str) -> str:
    """The dotted path of a flag; the flag of a renamed field has the path of its present name."""
    path = flag.removeprefix("--").partition("=")[0].replace("-", "_")
    return _renamed().get(path, path)


@cache
def _renamed() -> dict[str, str]:
    return {field.old_path: field.path for field in _fields().values() if field.old_path is not None}


def _lookup(path: str) -> _Field:
    known = _fields()
    if path in known:
        return known[path]
    flag = "--" + path.replace("_", "-")
    inner = [name for name in known if name.startswith(path + ".")]
    if inner:
        raise ConfigError(f"{flag} is a group of fields: set one of {', '.join(known[name].flag for name in inner)}")
    near = _nearest(path)
    hint = f"did you mean {known[near].flag}?" if near else f"groups are {', '.join(_groups())}"
    raise ConfigError(f"unknown field {flag}: {hint}")


def _nearest(path: str) -> str | None:
    """The known path most like `path`: a like name in the same group, else below it, else anything alike."""
    parent, _, name = path.rpartition(".")
    siblings = [known for known in _fields() if known.rpartition(".")[0] == parent]
    below = [known for known in _fields() if known.startswith(parent + ".")]
    for candidates in (siblings, below):
        names = {known.rpartition(".")[2]: known for known in reversed(candidates)}
        for near in get_close_matches(name, names, n=1, cutoff=0.6):
            return names[near]
    return next(iter(get_close_matches(path, _fields(), n=1, cutoff=0.5)), None)


def _groups() -> list[str]:
    return list(dict.fromkeys(path.partition(".")[0] for path in _fields() if "." in path))


def _take_values(field: _Field, tokens: list[str]) -> list[str]:
    """Remove from `tokens` the values that belong to `field`'s flag."""
    count = 1
    if typing.get_origin(field.hint) is tuple:
        kinds = typing.get_args(field.hint)
        count = len(tokens) if kinds[-1] is Ellipsis else len(kinds)
    if field.hint is bool and (not tokens or tokens[0].startswith("--")):
        return ["true"]
    taken: list[str] = []
    while tokens and len(taken) < count and not tokens[0].startswith("--"):
        taken.append(tokens.pop(0))
        whole = "," in taken[0] and field.registry is None  # `0.9,0.99`
        if whole or taken[0].lower() == _NONE:
            break
    return taken


def _value(field: _Field, values: list[str]) -> Any:
    """Text → the JSON value of `field`."""
    if values == [_NONE] and field.optional:
        return None
    if dataclasses.is_dataclass(field.hint):
        raise ConfigError(f"{field.flag} can only be set to {_NONE}, or field by field ({field.flag}.NAME)")
    origin, kinds = typing.get_origin(field.hint), typing.get_args(field.hint)
    if origin is tuple:
        return _tuple_value(field, values, kinds)
    if len(values) != 1:
        raise ConfigError(f"{field.flag} needs a value ({field.metavar})")
    if field.registry is not None:
        return _component(field, field.registry, values[0])
    return _scalar(field, values[0], str if origin is Literal else field.hint)


def _component(field: _Field, registry: str, text: str) -> dict[str, Any]:
    """A component from its name, or from its JSON. A name `module:name` is imported, since the user typed it."""
    component: Any = {"name": text}
    if text.startswith("{"):
        try:
            component = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{field.flag} must be {field.metavar}, and this is no JSON: {error}") from error
    if ":" in str(component.get("name")):
        module, _, name = registry.partition(":")
        getattr(import_module(module), name).import_named(component["name"])
    return component  # type: ignore[no-any-return]


def _tuple_value(field: _Field, values: list[str], kinds: tuple[Any, ...]) -> list[Any]:
    if field.registry is not None:
        return [_component(field, field.registry, value) for value in values if value != _NONE]
    if len(values) == 1:
        values = [part for part in values[0].split(",") if part]
    if kinds[-1] is Ellipsis:
        values = [] if values == [_NONE] else values
        return [_scalar(field, value, kinds[0]) for value in values]
    if len(values) != len(kinds):
        raise ConfigError(f"{field.flag} needs {len(kinds)} values ({field.metavar}), got {len(values)}")
    return [_scalar(field, value, kind) for value, kind in zip(values, kinds, strict=True)]


def _scalar(field: _Field, text: str, kind: type) -> Any:
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"{field.flag} must be true or false, not {text!r}")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError:
        raise ConfigError(f"{field.flag} must be {field.metavar}, not {text!r}") from None


def _merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(low)
    for key, value in high.items():
        old = merged.get(key)
        # A component's options belong to its name, so another component replaces it as a whole.
        nested = isinstance(old, Mapping) and isinstance(value, Mapping) and "name" not in value
        merged[key] = _merge(old, value) if nested else value  # type: ignore[arg-type]
    return merged


def _check_names(kind: type, data: Any, where: str) -> None:
    """Refuse unknown names in a configuration file, with the nearest known one."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where or 'a configuration'} must be a table of fields, not {data!r}")
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    for key, value in data.items():
        path = f"{where}.{key}" if where else str(key)
        if key not in names:
            hint = did_you_mean(str(key), names).rstrip() or f"known are {', '.join(names)}"
            raise ConfigError(f"unknown field {path!r}: {hint}")
        inner, optional = _without_none(hints[key])
        if dataclasses.is_dataclass(inner) and not (optional and value is None):
            _check_names(typing.cast(type, inner), value, path)


def _without_none(hint: Any) -> tuple[Any, bool]:
    """`X | None` as (X, True), any other type as (itself, False)."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        kinds = typing.get_args(hint)
        (inner,) = (kind for kind in kinds if kind is not type(None))
        return inner, type(None) in kinds
    return hint, False


@cache
def _fields() -> dict[str, _Field]:
    """Every settable value by its dotted path."""
    return {field.path: field for field in _walk(RunConfig, "")}


def _walk(kind: type, where: str) -> Iterator[_Field]:
    """Fields of `kind`, its own values before its groups."""
    hints, docs = typing.get_type_hints(kind), _docs(kind)
    groups: list[tuple[type, str]] = []
    for item in dataclasses.fields(kind):
        hint, optional = _without_none(hints[item.name])
        path = f"{where}.{item.name}" if where else item.name
        if dataclasses.is_dataclass(hint):
            groups.append((typing.cast(type, hint), path))
        if optional or not dataclasses.is_dataclass(hint):
            doc, old = docs.get(item.name, ""), item.metadata.get(RENAMED)
            old_path = path.removesuffix(item.name) + old if old is not None else None
            yield _Field(path, hint, optional, doc, item.metadata.get(REGISTRY), old_path)
    for inner, path in groups:
        yield from _walk(inner, path)


def _docs(kind: type) -> dict[str, str]:
    """The string under each field of a dataclass, which Python itself does not keep."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    docs: dict[str, str] = {}
    name = ""
    for node in definition.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
        elif name and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            docs[name] = " ".join(str(node.value.value).split())
            name = ""
        else:
            name = ""
    return docs
