"""The store of results: what is found again, what is made again, and the formats of earlier versions."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from prologue.errors import ConfigError
from prologue.evaluation import store as module
from prologue.evaluation.store import Result, Store, key_of, read_journal, read_ledger

INPUTS = {"weights": {"prior": "ab"}, "options": {"count": 4}, "versions": {"layout": 1}}


def _forbidden() -> dict[str, Any]:
    raise AssertionError("was made a second time")


def test_a_result_is_made_once_for_the_same_inputs(tmp_path: Path) -> None:
    store = Store(tmp_path / "results")
    made = store.get("layout", INPUTS, lambda: {"kind": "layout", "value": 0.5, "bad": float("nan")})
    assert made.record == {"kind": "layout", "value": 0.5, "bad": None}
    assert made.provenance.keys() == {"time", "seconds"}
    assert made.path == store.path("layout", INPUTS) == tmp_path / "results" / f"layout-{key_of(INPUTS)}.json"
    shuffled = dict(reversed(INPUTS.items()))
    assert store.get("layout", shuffled, _forbidden) == made
    assert [file.name for file in store.folder.iterdir()] == [made.path.name]


@pytest.mark.parametrize(
    "change", [{"weights": {"prior": "cd"}}, {"options": {"count": 5}}, {"versions": {"layout": 2}}]
)
def test_other_inputs_are_another_result(change: dict[str, Any], tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.get("layout", INPUTS, lambda: {"value": 1})
    assert store.get("layout", INPUTS | change, lambda: {"value": 2}).record == {"value": 2}
    assert store.get("layout", INPUTS, _forbidden).record == {"value": 1}
    assert store.find("probe", INPUTS) is None


def test_pictures_belong_to_their_result(tmp_path: Path) -> None:
    store, picture = Store(tmp_path), Image.new("RGB", (2, 2))
    store.keep("layout", INPUTS, {"value": 1}, {"time": "2"}, {"rows": picture})
    store.keep("layout", {"other": 1}, {"value": 2}, {"time": "1"}, {"grid": picture})
    results, faults = store.all()
    assert [(each.record["value"], list(each.pictures)) for each in results] == [(2, ["grid"]), (1, ["rows"])]
    assert faults == []


@pytest.mark.parametrize("content", ['{"provenance": {}', '{"records": [{}]}', '{"provenance": {}, "records": []}'])
def test_a_damaged_file_is_named(content: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = store.path("layout", INPUTS)
    path.write_text(content)
    (tmp_path / "notes.json").write_text("not a result")
    with pytest.raises(ConfigError, match=path.name):
        store.get("layout", INPUTS, _forbidden)
    results, faults = store.all()
    assert (results, len(faults)) == ([], 1)
    assert path.name in faults[0]


def test_a_failed_measurement_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(AssertionError):
        store.get("layout", INPUTS, _forbidden)
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_folder_gives_the_result_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module, "file_lock", refuse)
    monkeypatch.setattr(module, "write_measurement", refuse)
    errors: list[OSError] = []
    store = Store(tmp_path)
    assert store.get("layout", INPUTS, lambda: {"value": 1}, on_error=errors.append).record == {"value": 1}
    assert len(errors) == 1
    with pytest.raises(PermissionError):
        store.get("layout", INPUTS, lambda: {"value": 1})


def test_the_same_result_is_made_once_at_a_time(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> dict[str, Any]:
        time.sleep(0.2)
        made.append(1)
        return {"value": 1}

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: Store(tmp_path).get("layout", INPUTS, make), range(2)))
    assert results[0] == results[1]
    assert made == [1]


def test_remove_deletes_all(tmp_path: Path) -> None:
    store = Store(tmp_path / "points")
    store.remove()
    store.get("point", [1], lambda: {"value": 1})
    store.remove()
    assert not store.folder.exists()


def test_the_journal_of_an_earlier_sweep_is_read(tmp_path: Path) -> None:
    inputs = [{"temperature": 0.5}, 4, 7]
    lines = [json.dumps({"request": json.dumps(inputs, sort_keys=True), "figures": {"kid": 0.5}}), '{"request": "cut o']
    (tmp_path / "old.partial.jsonl").write_text("\n".join(lines))
    store = Store(tmp_path / "points", read_journal(tmp_path / "old.partial.jsonl", "point"))
    assert store.get("point", inputs, _forbidden).record == {"kid": 0.5}
    assert store.get("point", [*inputs[:2], 8], lambda: {"kid": 1.0}).record == {"kid": 1.0}
    assert Store(tmp_path, read_journal(tmp_path / "none.jsonl", "point")).find("point", inputs) is None


@pytest.mark.parametrize("versions", [None, {"layout": 1, "probe": 3}])
def test_the_ledger_of_an_earlier_study_is_read(versions: dict[str, int] | None, tmp_path: Path) -> None:
    inputs: dict[str, Any] = {"weights": {"prior": "ab"}, "images": 4}
    stored = inputs if versions is None else inputs | {"versions": versions}
    records = [{"name": "layout", "kind": "layout", "n": 4, "inputs": stored, "seconds": 1.5}, {"name": "tokens"}]
    (tmp_path / "measures.json").write_text(json.dumps({"provenance": {}, "records": records}))
    store = Store(tmp_path / "measures", read_ledger(tmp_path / "measures.json", ("layout",)))
    wanted = inputs | {"versions": {"layout": 1}}
    found = store.get("layout", wanted, _forbidden)
    assert found == Result(tmp_path / "measures.json", {"seconds": 1.5}, {"kind": "layout", "n": 4})
    assert store.find("layout", inputs | {"versions": {"layout": 2}}) is None
    (tmp_path / "measures.json").write_text('{"records": [')
    assert read_ledger(tmp_path / "measures.json", ("layout",)) == {}
