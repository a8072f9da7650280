"""Registered components: which names are found, and which code is never imported."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from prologue.errors import ConfigError
from prologue.utils.registry import Registry


def _thing(*, size: int, width: int = 2) -> tuple[int, int]:
    return size, width


@pytest.fixture
def things() -> Registry[object]:
    return Registry("thing", {"plain": _thing, "lazy": "prologue.utils.registry:check_options"})


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "outside_thing.py").write_text("def made(size):\n    return -size\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "outside_thing", raising=False)
    return "outside_thing:made"


def test_built_in_components_are_imported_at_first_use(things: Registry[object]) -> None:
    assert list(things) == ["plain", "lazy"]
    assert things.get("lazy").__name__ == "check_options"  # type: ignore[attr-defined]


def test_a_name_from_a_file_imports_nothing(things: Registry[object], outside: str) -> None:
    with pytest.raises(ConfigError, match="--import outside_thing"):
        things.get(outside)
    with pytest.raises(ConfigError, match="--import os"):
        things.get("os:system")  # although the module is loaded
    assert "outside_thing" not in sys.modules


def test_a_typed_name_is_imported_and_then_known(things: Registry[object], outside: str) -> None:
    assert things.import_named(outside)(3) == -3  # type: ignore[operator]
    assert things.get(outside) is things.import_named(outside)


@pytest.mark.parametrize("name", ["no_such_module:made", "outside_thing:other"])
def test_a_typed_name_that_does_not_exist(things: Registry[object], outside: str, name: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be imported.*(no_such_module|other)"):
        things.import_named(name)


def test_registered_under_module_and_name(things: Registry[object]) -> None:
    things.register(_thing)
    assert things.get(f"{__name__}:_thing") is _thing
    things.register(_thing)  # a module that is imported again


def test_unknown_name_and_nearest(things: Registry[object]) -> None:
    with pytest.raises(ConfigError, match=r"unknown thing 'plian': did you mean 'plain'\?"):
        things.get("plian")


def test_options(things: Registry[object]) -> None:
    assert things.build("plain", {"width": 5}, size=1) == (1, 5)
    with pytest.raises(ConfigError, match="did you mean 'width'"):
        things.build("plain", {"widht": 5}, size=1)
    with pytest.raises(ConfigError, match="sets size itself"):
        things.build("plain", {"size": 5}, size=1)
    with pytest.raises(ConfigError, match="missing a required argument: 'size'"):
        things.build("plain", {})
