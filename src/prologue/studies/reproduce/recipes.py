"""The sampling recipe that a run chose, as text, and whether its values are at the ends of the sweep."""

from __future__ import annotations

from prologue.sampling.recipe import Recipe
from prologue.studies.reproduce.pieces import Result

EDGE = "†"
"""Marks a value at an end of the sweep."""


def recipe_text(result: Result, kind: str) -> str:
    """`scale 2, T 0.9†`, or `–` without a recipe."""
    record = result["measures"].get(kind)
    if record is None:
        return "–"
    values, ends = _values(Recipe.from_dict(record["recipe"])), at_end(result, kind)
    return ", ".join(f"{name} {value:g}{EDGE if name in ends else ''}" for name, value in values.items())


def at_end(result: Result, kind: str) -> list[str]:
    """The names of the recipe's values that are at an end of three or more values in the sweep."""
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
    """The values that the sweep varies: the guidance scale, if there is one, and the temperature."""
    whole = recipe.guidance.whole
    return ({} if whole is None else {"scale": whole.scale}) | {"T": recipe.temperature}
