"""What a study is measured with, once its settings are found to be those of its folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prologue.config import FILE_RULE, RunConfig
from prologue.data.opening import open_data
from prologue.data.options import ENDLESS, embedded_name
from prologue.errors import EvaluationError, MissingExtraError, RunError
from prologue.evaluation.feature_networks import Features
from prologue.evaluation.metrics.kid import LEAST
from prologue.evaluation.versions import VERSIONS, completed
from prologue.models.precision import pick_precision
from prologue.studies.reproduce import state
from prologue.studies.reproduce.measures import Bench
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
_MEASURED = ("features", "reconstruction", "generation", "likelihood", "probe", "layout", "memorisation", "sweep")
"""Kinds of figures that a study has: runs measured with other versions of them do not go into one table."""
_FREE = ("data", "precision", "scale.seeds")
"""What may differ: the place of the same images, and how many seeds are usual; a study keeps its own number format."""


def open_bench(request: StudyRequest, progress: Progress) -> Bench:
    """The study's images and features, after its settings were found to be those of the folder."""
    out, scale = request.out, request.scale
    if not (out / STUDY).is_file() and state.is_packed(out):
        progress.say(f"restoring the study from {out / state.FOLDER}")
        state.unpack(out)
    size = (scale.image_size, scale.image_size)
    known = _read_settings(out)
    rule = known.get("file_rule", FILE_RULE)
    config = dataclasses.replace(run_config(scale, "2d", 0).data, file_rule=rule)
    data = open_data(request.data, config, size)
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
    # Whatever computes the rest of a study computes it in the number format that it began with.
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
        "versions": {kind: VERSIONS[kind] for kind in _MEASURED},
    }
    if known:
        # Studies that were begun before these were kept: the first versions, and the code that is there now.
        versions = {kind: completed(known.get("versions"))[kind] for kind in _MEASURED}
        _require_same(out, {"features_source": settings["features_source"], **known, "versions": versions}, settings)
    else:
        save_json(out / STUDY, settings)
    return Bench(scale, data, features, request.data, out / PICTURES, precision)


def _read_settings(out: Path) -> dict[str, Any]:
    """The settings of a study; what its version did not have stands at what it did. Empty for a new one."""
    if not (out / STUDY).is_file():
        return {}
    known: dict[str, Any] = load_json(out / STUDY)
    recipes = {name: to_dict(from_dict(RunConfig, recipe)) for name, recipe in known.get("recipes", {}).items()}
    return {"file_rule": 1, **known, "recipes": recipes}


def require_study_folder(out: Path) -> None:
    """A `RunError` where `out` holds something else than a study, whole or packed."""
    if not _is_vacant(out) and not (out / STUDY).is_file() and not state.is_packed(out):
        if (out / state.INDEX).is_file():
            raise RunError(f"{out} holds the files of a packed state: move them into {out / state.FOLDER}")
        raise RunError(f"{out} exists and is not a study: choose another --out, or empty it")


def _is_vacant(out: Path) -> bool:
    """Whether a study can begin here; what a kill leaves of its very first steps does not count."""
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
