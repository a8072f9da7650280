"""JSON files; how dataclasses are read is tested in `test_config.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from prologue.errors import ConfigError
from prologue.utils.serialization import load_json, save_json


def test_save_json_is_atomic(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    save_json(path, {"x": 1})
    save_json(path, {"x": 2})
    assert load_json(path) == {"x": 2}
    with pytest.raises(TypeError):
        save_json(path, {"x": object()})
    assert load_json(path) == {"x": 2}


def test_unreadable_json_is_an_error_with_the_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.json does not exist"):
        load_json(tmp_path / "missing.json")
    (tmp_path / "cut.json").write_text('{"seed": ', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"cut\.json is not readable JSON"):
        load_json(tmp_path / "cut.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary\.json is not readable JSON"):
        load_json(tmp_path / "binary.json")
