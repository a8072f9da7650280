"""What the demo's figures say, in words that are computed from them: targets, the prologue's worth, the comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prologue.evaluation.metrics.intervals import NORMAL_95
from prologue.evaluation.runs import Record
from prologue.sampling.recipe import Recipe
from prologue.studies.demo.measure import Measures
from prologue.studies.demo.plan import Plan

RECONSTRUCTION_TARGET = 0.9
SAMPLE_TARGETS = ((10.0, 0.5), (60.0, 0.8))
"""(minutes, part of the samples in which the asked class is recognised)."""
_NORMAL_FOUR = 2.497705
"""For a conclusion from four differences, of which none should exceed its interval by chance in 95 % of all runs."""


@dataclass(frozen=True)
class Target:
    """Something that the demo should reach, and what it reached."""

    text: str
    wanted: float
    found: float
    minutes: float
    """The budget that it is set for."""

    @property
    def met(self) -> bool:
        return self.found >= self.wanted


def chosen(measures: Measures) -> Record:
    """The record of the samples at the recipe that the demo chose."""
    choice = measures["choice"]
    return measures["guided" if choice["chosen"] == choice["guided"] else "unguided"]


def worst_class(record: Record) -> Record:
    """The class that is recognised least often."""
    worst: Record = min(record["by_class"], key=lambda each: each["rate"])
    return worst


def targets(plan: Plan, measures: Measures) -> list[Target]:
    """The targets of 10 minutes, and those of 60 for a budget of at least so much."""
    samples = chosen(measures)["recognition"]
    found = [
        Target(
            "every shape is visible in reconstructions (recognition in the worst class)",
            RECONSTRUCTION_TARGET,
            worst_class(measures["recognition"])["rate"],
            SAMPLE_TARGETS[0][0],
        )
    ]
    for minutes, wanted in SAMPLE_TARGETS:
        if minutes <= max(plan.minutes, SAMPLE_TARGETS[0][0]):
            text = f"the asked class is recognised in {samples['n']} samples at the chosen recipe"
            found.append(Target(text, wanted, samples["rate"], minutes))
    return found


def verdict(plan: Plan, measures: Measures, minutes_taken: float) -> tuple[str, bool]:
    """The sentences on top of the report, and whether every target is met."""
    reached = targets(plan, measures)
    met, missed = [each for each in reached if each.met], [each for each in reached if not each.met]
    rate, parts = chosen(measures)["recognition"], measures["recognition"]
    text = (
        f"After {minutes_taken:.1f} minutes, an independent classifier recognises the asked class in "
        f"{percent(rate)} of {rate['n']} generated images, and the class in {percent(parts)} of {parts['n']} "
        f"reconstructions. "
    )
    if not missed:
        text += f"{'Both' if len(met) == 2 else f'All {len(met)}'} targets are met."
    elif not met:
        text += f"{'Both' if len(missed) == 2 else f'All {len(missed)}'} targets are missed."
    else:
        text += f"{len(met)} of {len(reached)} targets are met; missed: {'; '.join(each.text for each in missed)}."
    if plan.minutes < SAMPLE_TARGETS[0][0]:
        text += f" The targets are set for {SAMPLE_TARGETS[0][0]:g} minutes, and this run was given {plan.minutes:g}."
    return text, not missed


def carried(measures: Measures) -> list[str]:
    """What the prologue carries (METHOD §1), said plainly where it is little."""
    record = measures["likelihood"]
    if record["cost"] is None:
        return []
    cost, use, diversity = record["cost"], record["use"] or 0.0, record["diversity"]
    text = (
        f"Over {record['n']} validation images the prologue costs {cost:.1f} nats per image, its ids have a diversity "
        f"of {diversity:.1f} nats, and exchanging prologues between images makes the visual tokens {use:.1f} nats "
        "dearer (its use; an upper estimate, because a wrong prologue is worse than none)."
    )
    out = [text]
    if record["collapsed"]:
        out.append("The prologue has collapsed in this run: images hardly differ in it, or the prior does not use it.")
    elif use < cost:
        out.append("Its use is below its cost: at this size and budget the prologue does not pay for itself.")
    if record["indicative"]:
        out.append(f"With {record['n']} images these figures are indicative.")
    return out


def stays(record: Record) -> str:
    """What resampling keeps and changes, from measured distances."""
    layout, other = record["layout_same_prologue"], record["layout_same_class"]
    detail, other_detail = record["pixels_same_prologue"], record["pixels_same_class"]
    ratio = layout / max(other, 1e-9)
    figures = (
        f"Shrunk to 4 × 4 pixels, {record['n']} resamples differ from their image's reconstruction by {layout:.3f} on "
        f"a scale of 0 to 1, {record['n_same_class']} other samples of the same class by {other:.3f}; at full size by "
        f"{detail:.3f} and {other_detail:.3f}. The shrunk ones are nearer by "
        f"{record['layout_nearer']:.3f} (95 % interval over the {record['images']} images: "
        f"{record['layout_nearer_low']:.3f} to {record['layout_nearer_high']:.3f})."
    )
    if record["layout_nearer_low"] <= 0:
        return f"{figures} So the prologue fixes nothing of the layout that so few images can show."
    much = "most" if ratio < 0.4 else "part" if ratio < 0.8 else "a little"
    return f"{figures} So the prologue fixes {much} of the layout and the colours; what is drawn anew is the rest."


EQUAL_PSNR = 0.5
"""Decibels within which two tokenizers count as equally good."""


def comparison(ours: Measures, theirs: Measures) -> list[str]:
    """The prologue's run against the one without, in the samples, the reconstructions, and in one conclusion."""
    out, better, worse = [], 0, 0
    for kind, name in (("guided", "with guidance"), ("unguided", "without guidance")):
        a, b = ours[kind], theirs[kind]
        difference, reach = _rates_apart(a["recognition"], b["recognition"])
        out.append(
            f"Recognition {name}: {a['recognition']['rate']:.1%} with a prologue, {b['recognition']['rate']:.1%} "
            f"without; difference {100 * difference:+.1f} ± {100 * reach:.1f} points over {a['n']} samples each."
        )
        wide = reach * _NORMAL_FOUR / NORMAL_95
        better, worse = better + (difference > wide), worse + (difference < -wide)
        if a["kid"] is not None and b["kid"] is not None:
            gain = b["kid"] - a["kid"]
            reach = NORMAL_95 * (a["kid_error"] ** 2 + b["kid_error"] ** 2) ** 0.5
            out.append(
                f"{a['kid_name']} {name} (lower is better): {a['kid']:.4f} with a prologue, {b['kid']:.4f} without; "
                f"improvement {gain:+.4f} ± {reach:.4f}."
            )
            wide = reach * _NORMAL_FOUR / NORMAL_95
            better, worse = better + (gain > wide), worse + (gain < -wide)
    psnr = ours["reconstruction"]["psnr"] - theirs["reconstruction"]["psnr"]
    out.append(f"Reconstruction: PSNR differs by {psnr:+.2f} dB (the method should leave it about the same).")
    return [*out, _conclusion(better, worse, bool(ours["likelihood"]["collapsed"]), psnr)]


def _conclusion(better: int, worse: int, collapsed: bool, psnr: float) -> str:
    if better and not worse and collapsed:
        return "The run with a prologue samples better, but its prologue has collapsed: this is not the paper's effect."
    if better and not worse and abs(psnr) > EQUAL_PSNR:
        return (
            "The run with a prologue samples better, but the two tokenizers do not reconstruct equally well, so this "
            "cannot be said to be the paper's effect, which is better samples at equal reconstruction."
        )
    if better and not worse:
        return "The paper's effect, better samples from the same number of images, shows here beyond the intervals."
    if worse and not better:
        return (
            "The paper's effect does not show at this size: the run without a prologue samples better here. "
            "The paper's models are far larger and see far more images; nothing was tuned to turn this around."
        )
    if better and worse:
        return "The measures disagree, so the paper's effect cannot be said to show at this size."
    return "The paper's effect does not show at this size: no difference between the samples is beyond chance."


def _rates_apart(first: Record, second: Record) -> tuple[float, float]:
    """Difference of two rates, and the reach of its 95 % interval."""
    variance = sum(each["rate"] * (1 - each["rate"]) / each["n"] for each in (first, second))
    return first["rate"] - second["rate"], NORMAL_95 * variance**0.5


def percent(record: Record) -> str:
    """A rate in per cent."""
    return f"{100 * record['rate']:.0f} %"


def recipe_text(data: dict[str, Any]) -> str:
    """A recipe in words."""
    recipe = Recipe.from_dict(data)
    whole = recipe.guidance.whole
    guidance = f"guidance {whole.scale:g} ({whole.kind})" if whole is not None else "no guidance"
    return f"{guidance}, temperature {recipe.temperature:g}"


def notes(records: Sequence[Record]) -> list[str]:
    """What the evaluations themselves remarked, each once."""
    return list(dict.fromkeys(note for record in records for note in record.get("notes", ())))
