"""Probes of planted codes: what is there is found, what is not there is at chance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from prologue.config import DataConfig
from prologue.data.embedded.plates import HUES, Plates, PlatesSet
from prologue.data.embedded.shapes import CLASS_NAMES, ShapesSet
from prologue.errors import EvaluationError
from prologue.evaluation.factors import Factor, known_factors
from prologue.evaluation.kinds.probe import (
    INPUTS,
    ProbeInputs,
    check_classes,
    evaluate_probe,
    pixel_grid,
    read_inputs,
    table_rates,
)
from prologue.models.sequence import TokenIds
from prologue.models.tokenizer import to_model_range
from prologue.utils.rng import torch_stream

NAMES = tuple("abcdef")
SIZE = (8, 12)


def planted(count: int, seed: int) -> ProbeInputs:
    """`prologue` tells the class, `visual_first` half of the time, the other inputs never."""
    generator = torch_stream(seed, "planted")
    labels = torch.arange(count) % 6
    values = {name: torch.randn(count, 6, generator=generator) for name in INPUTS}
    shown = torch.where(torch.rand(count, generator=generator) < 0.5, labels, labels.roll(1))
    values["prologue"] = F.one_hot(labels, 6).float()
    values["visual_first"] = F.one_hot(shown, 6).float()
    prologue = torch.stack([labels, torch.zeros_like(labels)], dim=1)
    return ProbeInputs(values, TokenIds(prologue, torch.randint(0, 5, (count, 3), generator=generator)), labels)


@pytest.fixture(scope="module")
def record() -> dict:
    train, test = planted(600, 0), planted(300, 1)
    factor = Factor("even", 2, train.labels % 2, test.labels % 2)
    return evaluate_probe(train, test, NAMES, image_size=SIZE, factors=[factor], codebook_sizes=(6, 5))


def test_planted_classes_are_found(record: dict) -> None:
    assert (record["n"], record["n_train"], record["classes"]) == (300, 600, 6)
    assert record["chance"] == pytest.approx(1 / 6)
    assert record["prologue_top1"] == record["prologue_top5"] == 1
    assert record["prologue_top1_low"] > 0.98
    assert record["visual_first_top1_low"] < 0.6
    assert record["visual_first_top1_high"] > 0.45
    for name in list(INPUTS)[2:]:
        assert record[f"{name}_top1_low"] <= 1 / 6 <= record[f"{name}_top1_high"]
        assert record[f"{name}_top5"] == pytest.approx(5 / 6, abs=0.08)
    assert record["difference_visual_first"] == pytest.approx(1 - record["visual_first_top1"])
    assert record["difference_visual_first_low"] > 0.4


def test_shuffled_labels_are_at_chance(record: dict) -> None:
    # Perfect codes are the hard case: all images of a class are right or wrong together.
    for name in INPUTS:
        assert record[f"{name}_control_at_chance"], name
        assert record[f"{name}_control_chance"] == pytest.approx(1 / 6, abs=1e-9)
        assert record[f"{name}_control_low"] < record[f"{name}_control_high"]


def test_a_factor_is_found_where_it_is(record: dict) -> None:
    (factor,) = record["factors"]
    assert (factor["factor"], factor["values"], factor["chance"]) == ("even", 2, 0.5)
    assert factor["prologue"] == 1
    assert factor["pixels_low"] < 0.5 < factor["pixels_high"]
    assert factor["prologue_positions"] == [1.0, 0.5]
    assert len(factor["visual_positions"]) == 3
    assert max(factor["visual_positions"]) < factor["clear"] < 0.65


def test_five_classes_have_no_top_5() -> None:
    def cut(part: ProbeInputs) -> ProbeInputs:
        rows = part.labels < 5
        return ProbeInputs({name: x[rows] for name, x in part.values.items()}, part.tokens[rows], part.labels[rows])

    record = evaluate_probe(cut(planted(120, 0)), cut(planted(60, 1)), NAMES[:5], image_size=SIZE)
    assert "prologue_top5" not in record
    assert record["factors"] == []


def test_tables_of_codes_by_hand() -> None:
    # Code 0 names value 1 (2 of 3), code 1 is a tie that the more frequent value 1 wins, code 2 is unknown: 1.
    ids = torch.tensor([[0], [0], [0], [1], [1], [3]])
    y = torch.tensor([1, 1, 0, 0, 1, 1])
    asked = torch.tensor([[0], [0], [1], [2], [3]])
    truth = torch.tensor([1, 0, 1, 1, 0])
    assert table_rates(ids, y, asked, truth, 4, 2) == pytest.approx([3 / 5])


def test_pixels_have_nearly_as_many_numbers() -> None:
    assert pixel_grid((32, 32), 32) == (3, 4)
    assert pixel_grid((32, 32), 48) == (4, 4)
    assert pixel_grid((8, 16), 24) == (2, 4)
    assert pixel_grid((4, 4), 10_000) == (4, 4)
    assert pixel_grid((64, 64), 1) == (1, 1)


def test_missing_classes_are_named() -> None:
    every, some = torch.arange(6), torch.tensor([0, 1, 2, 4])
    with pytest.raises(EvaluationError, match=r"train side.*'d', 'f'.*--train-count"):
        check_classes(some, every, NAMES)
    with pytest.raises(EvaluationError, match=r"4 images on the test side.*'d', 'f'.*--count"):
        check_classes(every, some, NAMES)
    with pytest.raises(EvaluationError, match=r"and 2 more"):
        check_classes(torch.tensor([3]), every, NAMES)
    with pytest.raises(EvaluationError, match="two classes or more"):
        check_classes(every, every, ())


def test_inputs_are_what_they_are_called(tiny_models) -> None:
    tokenizer, _ = tiny_models(image_size=(16, 16))
    images = ShapesSet("train", 20, (16, 16), DataConfig())
    indices = np.array([3, 5, 8, 13])
    inputs = read_inputs(tokenizer, images, indices, batch=4)
    pictures = torch.stack([torch.from_numpy(images.center_view(int(index)).copy()) for index in indices])
    tokens = tokenizer.encode(to_model_range(pictures))
    assert torch.equal(inputs.tokens.prologue, tokens.prologue)
    assert torch.equal(inputs.labels, torch.from_numpy(indices % 8))
    prologue = tokenizer.prologue_quantizer.codes(tokens.prologue)
    visual = tokenizer.visual_quantizer.codes(tokens.visual)
    assert torch.equal(inputs.values["prologue"], prologue.flatten(1))
    assert torch.equal(inputs.values["visual_first"], visual[:, :3].flatten(1))
    assert torch.allclose(inputs.values["visual_pooled"], visual.mean(1))
    assert inputs.values["pixels"].shape == (4, 12)
    # The first of 2 × 2 fields, its red mean.
    assert float(inputs.values["pixels"][0, 0]) == pytest.approx(float(pictures[0, 0, :8, :8].float().mean()) / 255)
    single = read_inputs(tokenizer, images, indices, batch=1)
    for name in INPUTS:
        assert torch.allclose(inputs.values[name], single.values[name]), name
    other = read_inputs(tokenizer, images, indices, seed=1)
    assert torch.equal(other.values["prologue"], inputs.values["prologue"])
    assert not torch.equal(other.values["random_encoder"], inputs.values["random_encoder"])


@pytest.mark.slow
def test_without_a_prologue_the_first_visual_tokens_are_probed(tiny_models) -> None:
    """What a prologue is compared with: as many first visual tokens of a 2d or 1d tokenizer."""
    plain, _ = tiny_models("2d", image_size=(16, 16))
    images = ShapesSet("train", 96, (16, 16), DataConfig())
    every = np.arange(96)
    inputs = read_inputs(plain, images, every, tokens=2)
    assert list(inputs.values) == ["visual_first", "visual_pooled", "pixels"]
    codes = plain.visual_quantizer.codes(inputs.tokens.visual)
    assert torch.equal(inputs.values["visual_first"], codes[:, :2].flatten(1))
    assert read_inputs(plain, images, every[:2]).values["visual_first"].shape == (2, 16 * plain.config.code_dim)
    factors = known_factors(images, every, images, every)
    record = evaluate_probe(inputs, inputs, CLASS_NAMES, image_size=(16, 16), factors=factors, codebook_sizes=(0, 16))
    assert not any("prologue" in key and record[key] is not None for key in record if "top1" in key)
    assert "visual_first_top1" in record
    assert "difference_visual_first" not in record
    assert record["factors"][0]["prologue_positions"] == []
    assert "prologue" not in record["factors"][0]
    with pytest.raises(EvaluationError, match="17 first visual tokens cannot be probed: an image has 16"):
        read_inputs(plain, images, every, tokens=17)


def test_factors_of_scenes() -> None:
    sides = [ShapesSet(split, 90, (16, 16), DataConfig()) for split in ("train", "validation")]
    factors = {factor.name: factor for factor in known_factors(sides[0], np.arange(90), sides[1], np.arange(5, 50))}
    assert list(factors) == ["kind", "colour", "texture", "background", "night", "light", "x", "y", "size"]
    assert torch.equal(factors["kind"].test, torch.arange(5, 50) % len(CLASS_NAMES))
    assert bool(factors["night"].train[7]) == sides[0].scene(7).night
    for name in ("light", "x", "y", "size"):
        assert torch.bincount(factors[name].train).tolist() == [30, 30, 30]
        order = np.argsort([getattr(sides[1].scene(index), name) for index in range(5, 50)], kind="stable")
        assert bool((factors[name].test[order].diff() >= 0).all())


def test_factors_of_plates_are_known_and_other_images_have_none() -> None:
    options = Plates(figures="kinds")
    sides = [PlatesSet(split, 64, (40, 40), DataConfig(), options) for split in ("train", "validation")]
    factors = {factor.name: factor for factor in known_factors(sides[0], np.arange(64), sides[1], np.arange(8, 40))}
    assert {name: factor.values for name, factor in factors.items()} == {
        "figure": 8, "figure_hue": 4, "ground_hue": 4, "x": 3, "y": 3,
    }  # fmt: skip
    assert factors["figure"].train.tolist() == sides[0].labels.tolist()
    assert factors["figure"].test.tolist() == sides[1].labels[8:40].tolist()
    assert factors["x"].train.tolist() == [1 + round(sides[0].plate(index).x) for index in range(64)]
    assert sides[1].plate(8).ground_hue == list(HUES)[int(factors["ground_hue"].test[0])]
    scenes = ShapesSet("train", 64, (40, 40), DataConfig())
    assert known_factors(sides[0], np.arange(64), scenes, np.arange(8)) == []
