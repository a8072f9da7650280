"""Charts of the kinds: any number of positions, scales, titles and marks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from prologue.data.pictures import thumbnails, titled
from prologue.evaluation.kinds.codebook import code_sheet, entropy_chart, position_sheet, usage_chart
from prologue.evaluation.kinds.intervention import change_map, effect_chart
from prologue.evaluation.kinds.probe import INPUTS, _skill, accuracy_chart, factor_map
from prologue.evaluation.kinds.sweep import sweep_chart
from prologue.sampling.recipe import Recipe


def _square(colour: str, side: int = 8) -> Image.Image:
    return Image.new("RGB", (side, side), colour)


@pytest.mark.parametrize("positions", [1, 16])
def test_charts_of_any_number_of_positions(positions: int) -> None:
    effect = {"effect": 2.0, "effect_low": 1.0, "effect_high": 3.0}
    record: dict[str, Any] = {"positions": [effect] * positions, "whole": 5.0, "resampled": 4.0}
    record |= {f"{name}_{end}": None for name in ("whole", "resampled") for end in ("low", "high")}
    assert effect_chart(record).width == 960
    flat = np.zeros((positions, 4, 6))
    assert change_map(flat, flat[0], flat[0]).mode == "RGB"
    codes: dict[str, Any] = {"prologue_tokens": positions, "prologue_codebook_size": 4, "prologue_counts": [5, 2]}
    codes |= {"prologue_entropy_bits": [0.0] * positions, "prologue_most_bits": 2.0}
    assert usage_chart(codes).size == entropy_chart(codes).size


def test_probe_charts() -> None:
    record: dict[str, Any] = {"chance": 0.2}
    for name in INPUTS:
        record[f"{name}_dimension"] = 4
        for part in ("top1", "control"):
            record |= {f"{name}_{part}": 0.5, f"{name}_{part}_low": 0.4, f"{name}_{part}_high": 0.6}
    assert accuracy_chart(record).width == 960
    factor = {"factor": "kind", "chance": 0.2, "prologue_positions": [0.2] * 16, "visual_positions": [0.3] * 256}
    factor |= dict.fromkeys(INPUTS, 0.6)
    whole = factor_map(record | {"factors": [factor, factor]})
    plain = {key: value for key, value in record.items() if not key.startswith(("prologue", "random"))}
    without = factor_map(plain | {"factors": [factor | {"prologue_positions": []}]})
    assert without.height < whole.height  # a panel less
    assert accuracy_chart(plain).width == 960
    assert _skill(factor, 0.6) == pytest.approx(50)
    assert _skill(factor, 0.1) == 0
    assert _skill({"chance": 1.0}, 1.0) == 0


def test_sheets_hold_their_images_under_a_title() -> None:
    plain = _square("white", 300)
    sheet = titled(plain, "a title that is longer than its picture is wide, so that it takes lines")
    assert sheet.width == 300
    assert sheet.height > 300 + 2 * 28
    assert sheet.crop((0, 0, 300, sheet.height - 300)).getcolors() != [(300 * (sheet.height - 300), (255, 255, 255))]
    images = [_square("red"), _square("blue"), _square("lime")]
    for made in (code_sheet(images, "code", columns=2), position_sheet([("a", images), ("b", images[:1])], "position")):
        colours = {colour for _, colour in made.getcolors(maxcolors=100_000) or []}
        assert {(255, 0, 0), (0, 0, 255), (0, 255, 0)} <= colours
    big = Image.new("RGB", (512, 256))
    assert [image.size for image in thumbnails([big, images[0]])] == [(128, 64), (8, 8)]
    assert big.size == (512, 256)


def test_a_sweep_shows_its_points_best_and_default() -> None:
    recipes = [Recipe(temperature=0.8, top_k=4), Recipe(temperature=1.0, top_k=4), Recipe(temperature=0.8, top_k=9)]

    def marked(winner: int) -> int:
        """Pixels in the colour of the star."""
        points = [
            {"recipe": recipe.to_dict(), "round": 0, "final": True, "kid": 1.0, "kid_low": 0.5, "kid_high": 1.5, "n": 4}
            for recipe in recipes
        ]
        record = {"points": points, "leads": "kid", "measure": "KID", "n": 4, "n_first": 4}
        record |= {"winner": [*recipes, Recipe()][winner].to_dict(), "default": Recipe().to_dict()}
        record |= {"default_kid": 1.0, "default_kid_low": 0.8, "default_kid_high": 1.2}
        picture = np.array(sweep_chart(record))
        return int((picture.reshape(-1, 3) == (0xD1, 0x78, 0x2C)).all(1).sum())

    assert marked(3) == 0  # the winner is no point
    both = marked(0)
    assert both > 200  # a star in each of two panels
    assert marked(1) > 0.8 * both
