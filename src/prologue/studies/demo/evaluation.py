"""The evaluations of a demo, as `prologue evaluate` makes them, and their summary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from prologue.evaluation.evaluations import evaluate, store_of
from prologue.evaluation.kinds import named_kind
from prologue.evaluation.kinds.base import checked
from prologue.evaluation.kinds.reconstruction import recognise_reconstructions
from prologue.evaluation.recognition import shipped_classifier
from prologue.evaluation.runs import Record, RunInfo
from prologue.evaluation.versions import versions_of
from prologue.studies.demo.plan import PROLOGUES, RESAMPLED, Plan
from prologue.studies.demo.training import DemoRequest
from prologue.utils.device import pick_device
from prologue.utils.measurements import provenance

RECONSTRUCTION_TARGET = 0.9
"""Recognition rate of the worst class in reconstructions."""
TARGET_MINUTES = 10.0
SAMPLE_TARGETS = ((TARGET_MINUTES, 0.5), (60.0, 0.8))
"""(minutes, part of the samples in which the asked class is recognised)."""


def evaluations(folder: Path, plan: Plan, request: DemoRequest) -> Iterator[tuple[str, Record]]:
    """Evaluate a run. Results that its folder has are not measured again."""

    def measured(name: str, **options: Any) -> Record:
        kind = named_kind(name)
        options = {"seed": request.seed, **options}
        prepared = kind.prepare(checked(kind.options(run=folder, device=request.device, **options)))
        flags = [word for option, value in options.items() for word in (f"--{option}", str(value))]
        return evaluate(kind, prepared, ["evaluate", name, str(folder), *flags]).record

    info = RunInfo.load(folder)
    yield "reconstruction", measured("reconstruction", count=plan.measured_images, features="shapes")
    yield "recognition", _recognition(info, plan, request)
    yield "guided", measured("generation", count=plan.samples, features="shapes")
    yield "unguided", measured("generation", count=plan.samples, features="shapes", guidance="none")
    yield "likelihood", measured("likelihood", count=plan.measured_images)
    if info.config is not None and info.config.tokenizer.prologue_tokens:
        yield "layout", measured("layout", count=PROLOGUES, per=RESAMPLED, features="shapes")


def _recognition(info: RunInfo, plan: Plan, request: DemoRequest) -> Record:
    """How often the classifier of the embedded shapes recognises the class of reconstructions."""

    def make() -> Record:
        tokenizer = info.source.tokenizer().to(pick_device(request.device))
        opened = info.open_data(None, tokenizer.config.image_size)
        images, names = opened.data.validation, opened.data.class_names
        classifier = shipped_classifier(opened.source, names)
        assert classifier is not None, "the demo has embedded images"
        indices = np.arange(min(plan.measured_images, len(images)))
        return recognise_reconstructions(tokenizer, images, indices, classifier, names)

    inputs = {"weights": info.weights, "images": plan.measured_images, "versions": versions_of("reconstruction")}
    origin = provenance(["demo", "--out", str(info.path)], run=str(info.path), weights=info.weights)
    return store_of(info.path).get("recognition", inputs, make, provenance=origin).record


def summary(measured: Mapping[str, Record], of: str = "") -> Iterator[str]:
    """Two lines of results of a run, after the words `of`."""
    seen, samples = measured["recognition"], measured["guided"]["recognition"]
    yield (
        f"{of}reconstructions: PSNR {measured['reconstruction']['psnr']:.1f} dB, class recognised in "
        f"{100 * seen['rate']:.0f} % of {seen['n']}"
    )
    yield f"{of}samples: asked class recognised in {100 * samples['rate']:.0f} % of {samples['n']}"


def targets(plan: Plan, measured: Mapping[str, Record]) -> str:
    """The number of targets that are met: those of 10 minutes and, for longer budgets, of 60 minutes."""
    worst = min(each["rate"] for each in measured["recognition"]["by_class"])
    rate = measured["guided"]["recognition"]["rate"]
    longest = max(plan.minutes, TARGET_MINUTES)
    met = [worst >= RECONSTRUCTION_TARGET]
    met += [rate >= wanted for minutes, wanted in SAMPLE_TARGETS if minutes <= longest]
    line = f"targets met: {sum(met)} of {len(met)}"
    if plan.minutes < TARGET_MINUTES:
        line += f" (set for {TARGET_MINUTES:g} minutes, this run had {plan.minutes:g})"
    return line
