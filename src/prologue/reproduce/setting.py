"""What a study is measured with, once its settings are found to be those of its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prologue.config import load_json, save_json, to_dict
from prologue.data.opening import open_data
from prologue.device import pick_device
from prologue.errors import EvaluationError, MissingExtraError, RunError
from prologue.evaluation.runs import Features
from prologue.reproduce import state
from prologue.reproduce.measures import Bench
from prologue.reproduce.pictures import FOLDER as PICTURES
from prologue.reproduce.request import StudyRequest
from prologue.reproduce.scales import run_config
from prologue.training.progress import Progress

STUDY = "study.json"
STUDY_FORMAT = 1


def open_bench(request: StudyRequest, progress: Progress) -> Bench:
    """The study's images and features, after its settings were found to be those of the folder."""
    out, scale = request.out, request.scale
    if not (out / STUDY).is_file():
        if state.is_packed(out):
            progress.say(f"restoring the study from {out / state.FOLDER}")
            state.unpack(out)
        elif out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise RunError(f"{out} exists and is not a study: choose another --out, or empty it")
    size = (scale.image_size, scale.image_size)
    data = open_data(request.data, run_config(scale, "2d", 0).data, size)
    for note in data.notes:
        progress.say(note)
    if not len(data.validation):
        raise EvaluationError(f"{request.data} leaves no images held out, and recipes are chosen on held-out images")
    name = "shapes" if request.features == "auto" and request.data == "shapes" else request.features
    features = Features.open(name, request.data, pick_device(request.device))
    if features.extractor is None:
        raise MissingExtraError(f"a distance between images of {request.data}", "lite0")
    settings = {
        "format": STUDY_FORMAT,
        "scale_name": request.scale_name,
        "scale": to_dict(scale),
        "data": request.data,
        "data_fingerprint": data.fingerprint,
        **features.facts(),
    }
    if (out / STUDY).is_file():
        _require_same(out, load_json(out / STUDY), settings)
    else:
        save_json(out / STUDY, settings)
    return Bench(scale, data, features, request.data, out / PICTURES)


def _require_same(out: Path, there: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
        inner = settings.get("scale")
        plain = {key: value for key, value in settings.items() if key not in ("scale", "data")}
        return plain | ({f"scale.{key}": value for key, value in inner.items()} if isinstance(inner, dict) else {})

    ours, theirs = flat(now), flat(there)
    differences = [
        f"{name}: {theirs.get(name)!r} in the study, {ours.get(name)!r} now"
        for name in sorted({*ours, *theirs})
        if ours.get(name) != theirs.get(name)
    ]
    if differences:
        listed = "\n  ".join(differences)
        raise RunError(
            f"{out} holds a study with other settings:\n  {listed}\n"
            "Repeat its settings to continue it, or choose another --out"
        )
