"""A recipe in the words of its flags."""

from __future__ import annotations

from prologue.evaluation.runs import Record


def recipe_words(recipe: Record) -> str:
    """The recipe in the words of its flags, those that are set."""
    guidance = recipe["guidance"]
    if guidance["whole"] is not None:
        words = [f"guidance overall:{_schedule(guidance['whole'])}"]
    elif guidance["prologue"] is not None and guidance["visual"] is not None:
        words = [f"guidance split:{_schedule(guidance['prologue'])},{_schedule(guidance['visual'])}"]
    else:
        words = ["no guidance"]
    names = ("temperature", "prologue_temperature", "top_k", "top_p")
    words += [f"{name.replace('_', '-')} {recipe[name]:g}" for name in names if recipe[name] is not None]
    return ", ".join(words)


def _schedule(schedule: Record) -> str:
    return f"{schedule['kind']}:{schedule['scale']:g}:{schedule['power']:g}"
