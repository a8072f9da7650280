"""Named components of the package and of the caller's own code.

A configuration names a component by its registered name. A component from outside the package has the name
`module:name`. `Registry.get` never imports code from outside the package: a file that was downloaded names a component,
and only the caller decides which code is imported.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Generic, TypeVar

from prologue.errors import ConfigError, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """Components of one kind by name.

    Args:
        kind: name of the kind of component in messages, such as `"quantizer"`.
        built_in: name → component, or name → `"module:name"` inside the package, imported at its first use.
    """

    def __init__(self, kind: str, built_in: Mapping[str, T | str]) -> None:
        self.kind = kind
        self._components: dict[str, T | str] = dict(built_in)

    def __iter__(self) -> Iterator[str]:
        return iter(self._components)

    def __contains__(self, name: object) -> bool:
        return name in self._components

    def register(self, component: T) -> T:
        """Register a class or function under `module:name`; use it as a decorator.

        Raises:
            ConfigError: another component has this name.
        """
        name = f"{component.__module__}:{component.__qualname__}"  # type: ignore[attr-defined]
        known = self._components.get(name)
        if known is not None and inspect.getsourcefile(known) != inspect.getsourcefile(component):  # type: ignore[arg-type]
            raise ConfigError(f"the {self.kind} {name!r} is registered twice, from different files: rename one")
        self._components[name] = component
        return component

    def get(self, name: str) -> T:
        """Return the component of this name.

        Raises:
            ConfigError: the name is unknown; the message names the nearest one, or says how to register it.
        """
        if name not in self._components:
            module, colon, _ = name.partition(":")
            if colon:
                raise ConfigError(
                    f"the {self.kind} {name!r} is not part of this package. Import its module first: "
                    f"`prologue --import {module} …` on the command line, `import {module}` in Python, "
                    f"where the module registers it"
                )
            raise ConfigError(
                f"unknown {self.kind} {name!r}: {did_you_mean(name, self)}known are {', '.join(self)}, "
                "and `module:name` for your own"
            )
        found = self._components[name]
        if isinstance(found, str):
            found = self._components[name] = _imported(found)
        return found

    def import_named(self, name: str) -> T:
        """Like `get`, but import the module of `module:name`, from the Python path or the working folder.

        Use this only for names that the user typed, never for names from a saved file.

        Raises:
            ConfigError: the name is unknown, or the module or the component does not exist.
        """
        if ":" in name:
            try:
                with _working_folder_on_path():
                    self._components[name] = _imported(name)
            except (ImportError, AttributeError, TypeError, ValueError) as error:
                if name not in self._components:
                    raise ConfigError(f"the {self.kind} {name!r} cannot be imported: {error}") from error
        return self.get(name)

    def build(self, name: str, options: Mapping[str, Any], **context: Any) -> Any:
        """Call the component with the user's options and with the arguments that the package sets.

        Raises:
            ConfigError: the name or an option is unknown, or an option is missing.
        """
        component = self.get(name)
        assert callable(component)
        check_options(f"the {self.kind} {name!r}", component, options, context)
        return component(**options, **context)


def check_options(
    what: str, component: Callable[..., Any], options: Mapping[str, Any], context: Mapping[str, Any]
) -> None:
    """Check that a component takes these options beside the arguments that the package sets.

    Raises:
        ConfigError: an option is unknown, missing, or set by the package.
    """
    taken = set(options) & set(context)
    if taken:
        raise ConfigError(f"{what}: the package sets {', '.join(sorted(taken))} itself: leave it out")
    signature = inspect.signature(component)
    try:
        signature.bind(**options, **context)
    except TypeError as error:
        known = [name for name in signature.parameters if name not in context and name != "self"]
        unknown = next((name for name in options if name not in signature.parameters), "")
        hint = did_you_mean(unknown, known) if unknown else ""
        listed = f"its options are {', '.join(known)}" if known else "it has no options"
        raise ConfigError(f"{what}: {error}; {hint}{listed}") from error


def code_hash(what: str, *parts: Any) -> str:
    """sha256 of the source files that define the parts: modules, classes or functions from outside the package.

    Raises:
        ConfigError: no part has a source file, or a file cannot be read.
    """
    files = set()
    for part in parts:
        try:
            files.add(inspect.getfile(inspect.unwrap(part) if callable(part) else part))
        except (TypeError, OSError):  # built in
            continue
    try:
        contents = sorted({Path(file).read_bytes() for file in files})
    except OSError as error:
        raise ConfigError(f"{what}: its code cannot be read ({error})") from error
    if not contents:
        raise ConfigError(f"{what} has no source file whose hash identifies its figures: define it in a module")
    return hashlib.sha256(b"\0".join(hashlib.sha256(content).digest() for content in contents)).hexdigest()


def add_working_folder() -> str | None:
    """Make modules in the working folder importable, as `python -m` does. Returns the new entry of `sys.path`."""
    folder = os.getcwd()
    if folder in sys.path or "" in sys.path:
        return None
    sys.path.append(folder)
    return folder


@contextmanager
def _working_folder_on_path() -> Iterator[None]:
    """Make modules in the working folder importable inside the block."""
    added = add_working_folder()
    try:
        yield
    finally:
        if added is not None:
            sys.path.remove(added)


def _imported(name: str) -> Any:
    module, _, path = name.partition(":")
    found: Any = import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found
