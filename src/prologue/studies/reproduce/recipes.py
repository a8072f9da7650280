"""The sampling recipes that runs chose: in words, and whether a choice lies at an end of what was tried."""

from __future__ import annotations

from prologue.sampling.recipe import Recipe
from prologue.studies.reproduce.pieces import Result

EDGE = "†"
"""Stands after a value at an end of what was tried."""


def recipe_text(result: Result, kind: str) -> str:
    """`scale 2, T 0.9†`, or – where there is none."""
    record = result["measures"].get(kind)
    if record is None:
        return "–"
    values, ends = _values(Recipe.from_dict(record["recipe"])), at_end(result, kind)
    return ", ".join(f"{name} {value:g}{EDGE if name in ends else ''}" for name, value in values.items())


def at_end(result: Result, kind: str) -> list[str]:
    """Which of the recipe's values lie at an end of those tried, of three or more."""
    record = result["measures"].get(kind)
    if record is None:
        return []
    tried = result["measures"].get(f"choice_{kind}", {}).get("tried", ())
    recipes = [_values(Recipe.from_dict(each["recipe"])) for each in tried]
    out = []
    for name, value in _values(Recipe.from_dict(record["recipe"])).items():
        values = sorted({other[name] for other in recipes if name in other})
        if len(values) > 2 and value in (values[0], values[-1]):
            out.append(name)
    return out


def _values(recipe: Recipe) -> dict[str, float]:
    """What the sweep varies: the scale of the guidance, where there is one, and the temperature."""
    whole = recipe.guidance.whole
    return ({} if whole is None else {"scale": whole.scale}) | {"T": recipe.temperature}
