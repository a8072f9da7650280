"""The settings of a study, which its folder keeps, and the images and features that all its runs share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prologue.config import FILE_RULE, RunConfig
from prologue.data.source import ENDLESS, embedded_name, open_data
from prologue.errors import EvaluationError, MissingExtraError, RunError
from prologue.evaluation.feature_networks import Features
from prologue.evaluation.metrics.kid import LEAST
from prologue.evaluation.versions import VERSIONS, completed
from prologue.models.precision import pick_precision
from prologue.studies.reproduce.measures import KINDS, Bench
from prologue.studies.reproduce.pictures import FOLDER as PICTURES
from prologue.studies.reproduce.request import StudyRequest
from prologue.studies.reproduce.scales import VARIANTS, run_config
from prologue.training.progress import Progress
from prologue.training.run import differences
from prologue.utils.device import pick_device
from prologue.utils.files import temporary_of
from prologue.utils.locks import LOCK
from prologue.utils.serialization import from_dict, load_json, save_json, to_dict

STUDY = "study.json"
STUDY_FORMAT = 1
_FREE = ("data", "precision", "scale.seeds", "scale.packed")
"""Settings that may change: the path of the same images, the number of seeds, and a field of earlier versions. The
study keeps its precision."""


def open_bench(request: StudyRequest, progress: Progress) -> Bench:
    """Open the images and features. A `RunError` names settings that differ from those of the folder."""
    out, scale = request.out, request.scale
    known = _read_settings(out)
    rule = known.get("file_rule", FILE_RULE)
    config = dataclasses.replace(run_config(scale, "2d", 0).data, file_rule=rule)
    data = open_data(request.data, config, (scale.image_size, scale.image_size))
    for note in (data.summary(request.data), *data.notes):
        progress.say(note)
    if len(data.validation) < LEAST:
        raise EvaluationError(
            f"{request.data} leaves {len(data.validation)} images held out, and recipes are chosen on at least {LEAST}"
        )
    source = embedded_name(request.data)
    name = source if request.features == "auto" and source in ENDLESS else request.features
    device = pick_device(request.device)
    features = Features.open(name, request.data, device)
    if features.extractor is None:
        raise MissingExtraError(f"a distance between images of {request.data}", "lite0")
    precision = known.get("precision") or pick_precision("auto", device)
    settings = {
        "format": STUDY_FORMAT,
        "scale_name": request.scale_name,
        "scale": to_dict(scale),
        "precision": precision,
        "recipes": {name: to_dict(run_config(scale, name, 0)) for name in VARIANTS},
        "data": request.data,
        "data_fingerprint": data.fingerprint,
        "file_rule": rule,
        **features.facts(),
        "versions": {kind: VERSIONS[kind] for kind in KINDS},
    }
    if known:
        # Studies of earlier versions lack these two.
        versions = {kind: completed(known.get("versions"))[kind] for kind in KINDS}
        _require_same(out, {"features_source": settings["features_source"], **known, "versions": versions}, settings)
    else:
        save_json(out / STUDY, settings)
    return Bench(scale, data, features, request.data, out / PICTURES, precision)


def _read_settings(out: Path) -> dict[str, Any]:
    """The settings of the folder's study, with the defaults of later fields. Empty for a new study."""
    if not (out / STUDY).is_file():
        return {}
    known: dict[str, Any] = load_json(out / STUDY)
    recipes = {name: to_dict(from_dict(RunConfig, recipe)) for name, recipe in known.get("recipes", {}).items()}
    return {"file_rule": 1, **known, "recipes": recipes}


def require_study_folder(out: Path) -> None:
    """Raise `RunError` if `out` contains something other than a study."""
    if not _is_vacant(out) and not (out / STUDY).is_file():
        raise RunError(f"{out} exists and is not a study: choose another --out, or empty it")


def _is_vacant(out: Path) -> bool:
    """Whether a study can begin in the folder. Files of a process that was killed at its start do not count."""
    return not out.exists() or (
        out.is_dir() and all(file.name == LOCK or temporary_of(file.name) == STUDY for file in out.iterdir())
    )


def _require_same(out: Path, there: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changed = [each for each in differences(there, now) if each[0] not in _FREE]
    if changed:
        listed = "\n  ".join(f"{name}: {old!r} in the study, {new!r} now" for name, old, new in changed)
        raise RunError(
            f"{out} holds a study with other settings:\n  {listed}\n"
            "Repeat its settings to continue it, or choose another --out"
        )
