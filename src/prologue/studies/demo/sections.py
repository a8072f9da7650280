"""The demo's report: its sections, each made from records and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from prologue import builtin
from prologue.config import RunConfig
from prologue.evaluation.runs import Record
from prologue.report.curves import EXPLAINED, Trained, training_curves
from prologue.report.figures import Bars, bar_chart
from prologue.report.page import Block, Commands, Gallery, Picture, Report, Section, Table, Text
from prologue.studies.demo import verdict
from prologue.studies.demo.measure import Measures
from prologue.studies.demo.plan import Plan
from prologue.training.flops import prior_step_flops, tokenizer_step_flops
from prologue.utils.files import in_shell

IDEA = (
    "A tokenizer turns an image into a grid of visual tokens, from which a decoder paints it again; a second model, "
    "the prior, learns to write such tokens one after another, and so to invent images. "
    "Visual tokens that are good for painting are hard to write: the first ones must be chosen before anything about "
    "the picture is decided. "
    "Prologue tokens are a few more tokens in front of them that the decoder never sees; they are trained by one thing "
    "alone, how well the prior can predict the whole sequence. "
    "So they come to say first what makes the rest predictable, and an image is drawn by writing a prologue and then "
    "the visual tokens that follow from it."
)
_NAMES = {"prologue": "with prologue", "2d": "without (2d)"}


@dataclass(frozen=True)
class Told:
    """One run as the report tells it."""

    config: RunConfig
    measures: Measures
    metrics: Sequence[Mapping[str, Any]]
    reconstructions: Image.Image
    guided: Image.Image
    unguided: Image.Image
    seconds: Mapping[str, float]
    """What each part took."""


@dataclass(frozen=True)
class Resampled:
    """Images drawn again from one prologue, and what was measured of them."""

    grid: Image.Image
    record: Record


def demo_report(
    folder: Path,
    plan: Plan,
    told: Mapping[str, Told],
    resampled: Resampled,
    minutes_taken: float,
    footer: str,
    opening: Image.Image | None = None,
) -> Report:
    """The whole report. `told` has `prologue`, and `2d` where it was compared; `opening` was shown at the start."""
    ours = told["prologue"]
    sentence, good = verdict.verdict(plan, ours.measures, minutes_taken)
    sections = [
        Section("What prologue tokens are", [Text(IDEA)]),
        Section("Targets", _targets(plan, ours.measures)),
        Section("Samples by class", _samples(told)),
        Section("Reconstructions", _reconstructions(told)),
        Section("One prologue, many images", _resampled(resampled)),
        Section("Measures", _measures(told)),
        Section("With and without a prologue", _comparison(told)),
        Section("Training", _curves(told)),
        Section("Plan and time", _time(plan, told, minutes_taken)),
        *([] if opening is None else [Section("What a few hours buy", [_opening(opening)])]),
        Section("Go on with this run", [_commands(folder)]),
    ]
    title = f"Prologue tokens in {plan.minutes:g} minutes"
    return Report(title, sentence, sections, good, footer)


def _opening(picture: Image.Image) -> Picture:
    caption = (
        f"Samples of {builtin.DEFAULT}, from the package: the same method on the same scenes, with a larger "
        f"prior and more steps. `prologue generate {builtin.DEFAULT} --out samples` draws more."
    )
    return Picture("opening", picture, f"Samples of {builtin.DEFAULT} by class", caption, wide=True)


def _targets(plan: Plan, measures: Measures) -> list[Block]:
    rows = [
        [f"{each.minutes:g} minutes: {each.text}", "met" if each.met else "missed", f"{100 * each.found:.1f} %",
         f"≥ {100 * each.wanted:.0f} %"]
        for each in verdict.targets(plan, measures)
    ]  # fmt: skip
    blocks: list[Block] = [Table(["target", "", "reached", "wanted"], rows)]
    if plan.minutes < verdict.SAMPLE_TARGETS[0][0]:
        blocks.append(
            Text(f"This run had {plan.minutes:g} minutes, less than any target is set for: pictures may be poor.")
        )
    samples, parts = verdict.chosen(measures)["recognition"], measures["recognition"]
    chart = bar_chart(
        "Recognised by the classifier",
        [each["class"] for each in parts["by_class"]],
        [
            _bars(f"reconstructions (N = {parts['n']})", parts),
            _bars(f"samples (N = {samples['n']})", samples),
        ],
        whole=1.0,
    )
    caption = (
        "The judge is a small classifier that was trained on real scenes only; no loss of this run uses it. It "
        f"recognises {100 * parts['originals_rate']:.1f} % of the original images. Bars carry 95 % intervals (Wilson)."
    )
    return [*blocks, Picture("recognition", chart, "Recognition rate of each class", caption)]


def _bars(name: str, record: Record) -> Bars:
    each = record["by_class"]
    return Bars(name, *([entry[key] for entry in each] for key in ("rate", "rate_low", "rate_high")))


def _samples(told: Mapping[str, Told]) -> list[Block]:
    choice = told["prologue"].measures["choice"]
    tried = len(choice["candidates"])
    blocks: list[Block] = [
        Text(
            f"The recipe was chosen among {tried} with {choice['candidates'][0]['n']} samples each by "
            f"{choice['measure']}. Chosen and stored in the run: {verdict.recipe_text(choice['chosen'])}. The pictures "
            "are the first of the measured samples, not picked."
        )
    ]
    for name, each in told.items():
        for kind, image in (("guided", each.guided), ("unguided", each.unguided)):
            record = each.measures[kind]
            caption = (
                f"{_said(name, told)}{verdict.recipe_text(record['recipe'])}: the asked class is recognised in "
                f"{_interval(record['recognition'], 'rate', 100, '.1f')} % of {record['n']} samples."
            )
            blocks.append(Picture(_file(name, kind), image, f"Samples by class, {kind}", caption, wide=True))
    return blocks


def _reconstructions(told: Mapping[str, Told]) -> list[Block]:
    blocks: list[Block] = []
    for name, each in told.items():
        record, seen = each.measures["reconstruction"], each.measures["recognition"]
        worst = verdict.worst_class(seen)
        tokenizer = each.config.tokenizer
        caption = (
            f"{_said(name, told)}Validation images above what the decoder paints from {tokenizer.visual_tokens} visual "
            f"tokens of {tokenizer.codebook_size} codes. PSNR {_interval(record, 'psnr', 1, '.2f')} dB over "
            f"{record['n']} images; the class is recognised in {100 * seen['rate']:.1f} %, least often "
            f"{worst['class']} ({100 * worst['rate']:.1f} % of {worst['n']})."
        )
        picture = Picture(
            _file(name, "reconstructions"), each.reconstructions, "Images and reconstructions", caption, True
        )
        blocks.append(picture)
    return blocks


def _resampled(resampled: Resampled) -> list[Block]:
    text = (
        "Each row keeps the prologue of one validation image and draws the visual tokens anew. What stays along a row "
        "is what the prologue says; what changes is what it leaves open."
    )
    caption = verdict.stays(resampled.record)
    return [Text(text), Picture("resampled", resampled.grid, "Images resampled from one prologue", caption, wide=True)]


_ROWS: tuple[tuple[str, str, str, float, str], ...] = (
    ("PSNR of reconstructions, dB", "reconstruction", "psnr", 1, ".2f"),
    ("SSIM of reconstructions", "reconstruction", "ssim", 1, ".4f"),
    ("KID-Shapes of reconstructions", "reconstruction", "kid", 1, ".4f"),
    ("FD-Shapes of reconstructions (indicative)", "reconstruction", "fd", 1, ".2f"),
    ("class recognised in reconstructions, %", "recognition", "rate", 100, ".1f"),
    ("visual codes in use, %", "reconstruction", "visual_usage", 100, ".1f"),
    ("asked class recognised, guided, %", "guided", "recognition.rate", 100, ".1f"),
    ("asked class recognised, unguided, %", "unguided", "recognition.rate", 100, ".1f"),
    ("KID-Shapes, guided", "guided", "kid", 1, ".4f"),
    ("KID-Shapes, unguided", "unguided", "kid", 1, ".4f"),
    ("FD-Shapes, guided (indicative)", "guided", "fd", 1, ".2f"),
    ("FD-Shapes, unguided (indicative)", "unguided", "fd", 1, ".2f"),
    ("tokens of an image, nats", "likelihood", "nats", 1, ".1f"),
    ("of these, visual tokens", "likelihood", "visual_nats", 1, ".1f"),
    ("entropy of the visual ids without context, nats", "likelihood", "visual_entropy", 1, ".1f"),
    ("prologue: cost, nats", "likelihood", "cost", 1, ".2f"),
    ("prologue: diversity, nats", "likelihood", "diversity", 1, ".2f"),
    ("prologue: use, nats", "likelihood", "use", 1, ".2f"),
)


def _measures(told: Mapping[str, Told]) -> list[Block]:
    rows = []
    for label, kind, key, factor, form in _ROWS:
        cells, counts = [], set()
        for each in told.values():
            record = each.measures[kind]
            counts.add(record["n"])
            name = key
            if key.startswith("recognition."):
                record, name = record["recognition"], key.partition(".")[2]
            cells.append("–" if record.get(name) is None else _interval(record, name, factor, form))
        rows.append([label, *cells, ", ".join(map(str, sorted(counts)))])
    head = ["measure", *([_NAMES[name] for name in told] if len(told) > 1 else ["figure (95 % interval)"]), "N"]
    caption = (
        "KID leads: with so few images a Fréchet distance depends on their number, so FD is indicative and compares at "
        "the same N only. Both are in the features of the shapes classifier, which no loss uses, and are not FID. Nats "
        "are sums per image over validation images with their true class; across two tokenizers they do not compare, "
        "so the entropy of the visual ids stands beside them."
    )
    blocks: list[Block] = [Table(head, rows, caption)]
    ours = told["prologue"].measures
    blocks += [Text(sentence, strong=number > 0) for number, sentence in enumerate(verdict.carried(ours))]
    blocks += [Text(note[:1].upper() + note[1:] + ".") for note in verdict.notes(list(ours.values()))]
    return blocks


def _comparison(told: Mapping[str, Told]) -> list[Block]:
    if len(told) < 2:
        return []
    *sentences, conclusion = verdict.comparison(told["prologue"].measures, told["2d"].measures)
    rows = []
    for name, each in told.items():
        config = each.config
        tokenizer, prior = config.tokenizer_training, config.prior_training
        flops = [tokenizer_step_flops(config) * tokenizer.steps, prior_step_flops(config) * prior.steps]
        rows.append(
            [
                _NAMES[name],
                f"{tokenizer.steps} × {tokenizer.batch}",
                f"{prior.steps} × {prior.batch}",
                f"{flops[0] / 1e12:.3g} + {flops[1] / 1e12:.3g}",
                f"{each.seconds['tokenizer']:.0f} + {each.seconds['prior']:.0f}",
                verdict.recipe_text(each.measures["choice"]["chosen"]),
            ]
        )
    head = ["run", "stage 1, steps × images", "stage 2", "TFLOPs", "seconds", "chosen recipe"]
    caption = (
        "Both runs see the same images in the same order, with the same sizes and learning rates, and choose their "
        "recipe with the same effort. The prologue's run computes more: the stage-1 prior, and longer sequences in "
        "stage 2. The conclusion widens the four intervals, so that chance in any one of them does not decide."
    )
    return [Text(conclusion, strong=True), *map(Text, sentences), Table(head, rows, caption)]


def _curves(told: Mapping[str, Told]) -> list[Block]:
    pictures = training_curves([Trained(_NAMES[name], each.config, each.metrics) for name, each in told.items()])
    return [Text(EXPLAINED), Gallery(pictures)] if pictures else []


def _time(plan: Plan, told: Mapping[str, Told], minutes_taken: float) -> list[Block]:
    ours = told["prologue"]
    config = ours.config
    text = (
        f"The budget was {plan.minutes:g} minutes. A calibration of {plan.seconds['calibration']:.0f} s planned "
        f"{plan.tokenizer_steps} steps of {config.tokenizer_training.batch} images for the tokenizer and "
        f"{plan.prior_steps} steps of {config.prior_training.batch} for the prior, on {config.data.shapes_images} "
        f"training scenes of {config.tokenizer.image_size[0]} px. Until this page was written it took "
        f"{minutes_taken:.1f} minutes ({100 * minutes_taken / plan.minutes:.0f} % of the budget)."
    )
    taken: dict[str, float] = {}
    for each in told.values():
        for name, seconds in each.seconds.items():
            taken[name] = taken.get(name, 0.0) + seconds
    taken["calibration"] = plan.seconds["calibration"]
    taken["starting and writing"] = max(0.0, 60 * minutes_taken - sum(taken.values()))
    rows = [
        [name, *("–" if part.get(name) is None else f"{part[name]:.1f}" for part in (plan.seconds, taken))]
        for name in dict.fromkeys([*plan.seconds, *taken])
    ]
    caption = (
        "Rendering and snapshots happen inside the stages. A run "
        "that was stopped and continued counts the work that is in the result, not what was lost."
    )
    return [Text(text), Table(["part", "planned, s", "taken, s"], rows, caption)]


def _commands(folder: Path) -> Commands:
    run = in_shell(folder)
    original = in_shell(folder / "pictures" / "original.png")
    return Commands(
        [
            (f"prologue generate {run} --classes star,heart --count 16 --out samples", "Draw images of some classes."),
            (
                f"prologue resample {run} {original} --count 8 --out resampled",
                "Keep the prologue of an image, and draw the rest again. Any picture will do.",
            ),
            (f"prologue evaluate reconstruction {run} --features shapes", "Measure the tokenizer."),
            (
                f"prologue evaluate generation {run} --features shapes --count 2048",
                "Measure samples, with more of them.",
            ),
            (f"prologue evaluate likelihood {run}", "Measure what the prior pays, and what the prologue carries."),
        ]
    )


def _interval(record: Record, name: str, factor: float, form: str) -> str:
    """`12.3 (11.9–12.7)`, or the figure alone where it has no interval."""
    low, high = record.get(f"{name}_low"), record.get(f"{name}_high")
    value = format(factor * record[name], form)
    if low is None or high is None:
        return value
    return f"{value} ({format(factor * low, form)} – {format(factor * high, form)})"


def _said(name: str, told: Mapping[str, Told]) -> str:
    return f"{_NAMES[name].capitalize()}: " if len(told) > 1 else ""


def _file(name: str, kind: str) -> str:
    return kind if name == "prologue" else f"{kind}-{name}"
