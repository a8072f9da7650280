"""`measures.json`: every figure of the demo's report, kept so that a stopped demo does not make it again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prologue.errors import ConfigError
from prologue.evaluation.runs import Record
from prologue.evaluation.versions import VERSIONS, completed
from prologue.utils.serialization import load_json, save_json


class Ledger:
    """Records by name. One is made again when what it was made from has changed."""

    def __init__(self, path: Path, provenance: Mapping[str, Any]) -> None:
        self.path, self.provenance = path, dict(provenance)
        self.records: dict[str, Record] = {}
        try:
            stored = load_json(path)["records"] if path.is_file() else []
            self.records = {record["name"]: record for record in stored}
        except (ConfigError, KeyError, TypeError):
            self.records = {}  # a damaged file holds nothing that cannot be made again

    def get(self, name: str, inputs: Mapping[str, Any], make: Callable[[], Record]) -> Record:
        """The stored record of `name` if it was made from `inputs` by this code, else what `make` gives, with its
        seconds."""
        wanted = json.loads(json.dumps({**inputs, "versions": VERSIONS}))
        stored = self.records.get(name)
        if stored is not None and "inputs" in stored:
            made_from = stored["inputs"] | {"versions": completed(stored["inputs"].get("versions"))}
            if made_from == wanted:
                return stored
        begin = time.perf_counter()
        made = make()
        self.put(name, {**made, "inputs": wanted, "seconds": round(time.perf_counter() - begin, 2)})
        return self.records[name]

    def put(self, name: str, record: Record) -> None:
        """Store a record under `name`, in the file too."""
        self.records[name] = json.loads(json.dumps({"name": name, **record}))
        save_json(self.path, {"provenance": self.provenance, "records": list(self.records.values())})
