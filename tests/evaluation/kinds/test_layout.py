"""Distances within and between prologues by hand, planted layouts, and the images that they are taken of."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prologue import Pipeline
from prologue.config import DataConfig
from prologue.data.embedded.shapes import Shapes
from prologue.data.pictures import to_pil
from prologue.errors import EvaluationError
from prologue.evaluation.codes import encode_images
from prologue.evaluation.feature_networks import Features
from prologue.evaluation.kinds import layout
from prologue.evaluation.kinds.layout import compare_prologues, differs, evaluate_layout
from prologue.sampling.guidance import Guidance
from prologue.sampling.recipe import Recipe
from prologue.utils.rng import torch_stream

IMAGES = Shapes().open(DataConfig(shapes_images=4, shapes_validation=40), (8, 12)).validation


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch_stream(seed, "points"), dtype=torch.float64)


def test_ratio_by_hand() -> None:
    # Class 0: prologues {0, 2} and {5, 9}; class 1: {1, 1} and {4, 4}; class 2 has one prologue and no part.
    points = torch.tensor([[0.0, 2], [5, 9], [1, 1], [4, 4], [100, 0]]).double()[..., None]
    record = compare_prologues(points, torch.tensor([0, 0, 1, 1, 2]), "coarse")
    within = (2 + 4 + 0 + 0) / 4
    between = (2 * (5 + 9 + 3 + 7) / 4 + 2 * 3) / 4
    assert record["coarse_within"] == pytest.approx(within)
    assert record["coarse_between"] == pytest.approx(between)
    assert record["coarse_ratio"] == pytest.approx(within / between)


def test_classes_of_any_size_weigh_by_their_prologues() -> None:
    points = normal(7, 3, 4)
    classes = torch.tensor([0, 1, 0, 0, 1, 0, 0])
    each = torch.zeros(7), torch.zeros(7)
    for first in range(7):
        for a in range(3):
            for second in range(7):
                for b in range(3):
                    distance = float((points[first, a] - points[second, b]).square().mean().sqrt())
                    if first == second and a != b:
                        each[0][first] += distance / 6
                    elif first != second and classes[first] == classes[second]:
                        others = int((classes == classes[first]).sum()) - 1
                        each[1][first] += distance / (9 * others)
    record = compare_prologues(points, classes, "x")
    assert record["x_within"] == pytest.approx(float(each[0].mean()), rel=1e-6)
    assert record["x_between"] == pytest.approx(float(each[1].mean()), rel=1e-6)


def test_planted_layouts() -> None:
    classes = torch.arange(40) % 4
    centres, noise = normal(40, 1, 12), normal(40, 4, 12, seed=1)
    fixed = compare_prologues(centres.expand(40, 4, 12), classes, "x")
    assert fixed["x_ratio"] == pytest.approx(0, abs=1e-6)
    assert fixed["x_shuffled_low"] > 0.9
    # Layout of variance 1, details of variance 1: distances are as √1 to √2.
    half = compare_prologues(centres + noise, classes, "x")
    assert half["x_ratio_low"] < 0.5**0.5 < half["x_ratio_high"] < half["x_shuffled_low"]
    free = compare_prologues(noise, classes, "x")
    assert free["x_ratio_low"] < 1 < free["x_ratio_high"]
    for record in (fixed, half, free):
        assert record["x_shuffled"] == pytest.approx(1, abs=0.02)
        assert record["x_shuffled_low"] < 1 < record["x_shuffled_high"]


@pytest.mark.slow
def test_the_interval_covers_the_truth() -> None:
    covered = 0
    for seed in range(40):
        points = normal(24, 1, 6, seed=seed) + normal(24, 3, 6, seed=1000 + seed)
        record = compare_prologues(points, torch.zeros(24, dtype=torch.int64), "x", seed=seed)
        covered += record["x_ratio_low"] < 0.5**0.5 < record["x_ratio_high"]
    assert covered >= 34


def test_labels_and_what_does_not_differ() -> None:
    seen = torch.tensor([[0.0, 0], [1, 1], [0, 1]]).double()[..., None]
    record = compare_prologues(seen, torch.zeros(3, dtype=torch.int64), "verdict", differs)
    assert record["verdict_within"] == pytest.approx(1 / 3)
    assert record["verdict_between"] == pytest.approx((1 + 0.5 + 0.5) / 3)
    same = compare_prologues(torch.zeros(3, 2, 1).double(), torch.zeros(3, dtype=torch.int64), "verdict", differs)
    assert (same["verdict_within"], same["verdict_ratio"], same["verdict_shuffled"]) == (0, None, None)
    assert set(compare_prologues(None, torch.zeros(3), "verdict").values()) == {None}
    with pytest.raises(EvaluationError, match="no two prologues"):
        compare_prologues(seen, torch.arange(3), "verdict")


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "MOST_OF_A_CLASS", 11)
    with pytest.raises(EvaluationError, match=r"6 prologues of a class with 2 .*--count or --per"):
        compare_prologues(normal(6, 2, 3), torch.zeros(6, dtype=torch.int64), "x")


class Means:
    name, hash = "Means", "abc"

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean((2, 3))


def test_images_are_those_of_the_pipeline_whatever_the_batch(tiny_models) -> None:
    tokenizer, prior = tiny_models(num_classes=8)
    indices = np.arange(16)
    class_ids = torch.from_numpy(IMAGES.labels[indices])
    records, shown = [], []
    for batch in (5, 64):
        record, pictures = evaluate_layout(
            tokenizer, prior, Recipe(), IMAGES, indices, class_ids, Features(Means(), None), per=3, seed=9, batch=batch
        )
        records.append(record)
        shown.append(pictures)
    for name in ("coarse_within", "coarse_ratio_low", "features_ratio", "features_shuffled_high"):
        assert records[0][name] == pytest.approx(records[1][name], rel=1e-4)
    assert records[0]["verdict_ratio"] is None
    assert shown[0].samples.shape == (layout.SHOWN, 3, 3, 8, 12)
    tokens = encode_images(tokenizer, IMAGES, indices)
    pipeline = Pipeline(tokenizer, prior)
    again = pipeline.resample(tokens[: layout.SHOWN], class_ids[: layout.SHOWN], 3, seed=9)
    mine = to_pil(shown[0].samples.flatten(0, 1))
    assert [one.tobytes() for one in mine] == [one.tobytes() for one in again.images]
    decoded = pipeline.decode(tokens.visual[:1])[0]
    assert to_pil(shown[0].reconstructions)[0].tobytes() == decoded.tobytes()


def test_guidance_is_left_out_for_the_null_class_and_lonely_images_are_told(tiny_models) -> None:
    tokenizer, prior = tiny_models()
    guided = Recipe(Guidance.overall("linear", 2))
    ids = torch.full((4,), prior.null_class)
    record, _ = evaluate_layout(tokenizer, prior, guided, IMAGES, np.arange(4), ids, Features(), per=2)
    assert record["notes"] == []
    assert record["features_ratio"] is None
    record, _ = evaluate_layout(
        tokenizer, prior, guided, IMAGES, np.arange(4), torch.tensor([0, 0, 0, 1]), Features(), per=2
    )
    assert record["notes"] == ["1 images are the only ones of their class and do not count in the ratios"]


def test_what_cannot_be_measured_is_refused(tiny_models) -> None:
    tokenizer, prior = tiny_models(prior_prologue=False)
    given = (IMAGES, np.arange(4), torch.zeros(4, dtype=torch.int64), Features())
    with pytest.raises(EvaluationError, match="no prologue"):
        evaluate_layout(tokenizer, prior, Recipe(), *given, per=2)
    with pytest.raises(EvaluationError, match="at least 2"):
        evaluate_layout(*tiny_models(), Recipe(), *given, per=1)
