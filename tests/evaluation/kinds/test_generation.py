"""Samples with uniform labels, their reference, and the rate at which the asked class is seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prologue import Guidance, Pipeline
from prologue.errors import EvaluationError, SamplingError
from prologue.evaluation.feature_networks import Features
from prologue.evaluation.kinds.generation import evaluate_generation
from prologue.evaluation.recognition import recognised_classes
from prologue.evaluation.samples import draw_samples, possible_recipe, uniform_classes
from prologue.sampling.recipe import Recipe

GUIDED = Recipe(Guidance.overall("linear", 2), temperature=0.9)


class Pictures:
    size = (8, 12)
    views = 1

    def __init__(self, count: int) -> None:
        self.pixels = np.random.default_rng(0).integers(0, 256, (count, 3, *self.size), dtype=np.uint8)
        self.labels = np.zeros(count, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.pixels)

    def center_view(self, index: int) -> np.ndarray:
        return self.pixels[index]


class Means:
    name, dimension, hash = "Means", 3, "abc"

    def __init__(self) -> None:
        self.shown: list[torch.Tensor] = []

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.shown.append(images)
        return images.float().mean((2, 3))


class AlwaysOne:
    """A classifier that takes everything for class 1."""

    name = "One"

    def classify(self, images: torch.Tensor) -> torch.Tensor:
        assert images.dtype == torch.uint8
        return torch.ones(len(images), dtype=torch.int64)


def test_labels_are_uniform() -> None:
    for classes, count in ((3, 8), (5, 5), (7, 3), (1, 4)):
        counts = torch.bincount(uniform_classes(classes, count), minlength=classes)
        assert counts.sum() == count
        assert counts.max() - counts.min() <= 1
    assert uniform_classes(0, 3).tolist() == [0, 0, 0]  # the null class of a prior without classes


def test_samples_are_those_of_the_pipeline(tiny_models) -> None:
    tokenizer, prior = tiny_models()
    parts = list(draw_samples(tokenizer, prior, GUIDED, torch.tensor([0, 1, 2, 0, 1]), seed=7, batch=2))
    assert [len(part.images) for part in parts] == [2, 2, 1]
    expected = Pipeline(tokenizer, prior).generate(
        [0, 1, 2, 0, 1], seed=7, guidance=GUIDED.guidance, temperature=GUIDED.temperature
    )
    drawn = torch.cat([part.images for part in parts]).permute(0, 2, 3, 1).numpy()
    together = np.stack([np.array(image) for image in expected.images]).astype(int)
    assert np.abs(drawn - together).max() <= 1  # batches of another size round otherwise


def test_a_record_states_both_numbers_and_the_recipe(tiny_models) -> None:
    tokenizer, prior = tiny_models()
    extractor, pictures = Means(), Pictures(5)
    record = evaluate_generation(
        tokenizer, prior, GUIDED, pictures, Features(extractor, None), count=8, batch=3, classifier=AlwaysOne()
    )
    assert (record["n"], record["n_reference"], record["reference_split"]) == (8, 5, "train")
    assert record["recipe"] == GUIDED.to_dict()
    assert record["guided"] is True
    assert torch.equal(torch.cat(extractor.shown[3:]), torch.from_numpy(pictures.pixels))
    assert len(torch.cat(extractor.shown[:3])) == 8
    assert record["kid_low"] < record["kid"] < record["kid_high"]
    assert record["recognition"]["recognised"] == 3
    # As many training images as samples, where there are more of them.
    few = evaluate_generation(tokenizer, prior, Recipe(), pictures, Features(Means(), None), count=4)
    assert (few["n"], few["n_reference"], few["recognition"]) == (4, 4, None)


def test_unequal_classes_of_the_reference_are_noted(tiny_models) -> None:
    """Samples have all classes equally often, so that images which do not lie at a distance from any model's."""
    tokenizer, prior = tiny_models()
    pictures = Pictures(60)

    def notes(*labels: int) -> str:
        pictures.labels = np.repeat(np.arange(3), labels)
        features = Features(Means(), None)
        return " ".join(evaluate_generation(tokenizer, prior, Recipe(), pictures, features, count=3)["notes"])

    assert prior.num_classes == 3
    assert "unequal classes" not in notes(21, 20, 19)
    assert "unequal classes (5 to 30 images)" in notes(30, 25, 5)


def test_without_features_no_training_image_is_read(tiny_models) -> None:
    record = evaluate_generation(*tiny_models(), Recipe(), Pictures(0), Features(), count=3, classifier=AlwaysOne())
    assert (record["fd"], record["n_reference"]) == (None, 0)
    assert record["recognition"]["rate"] == pytest.approx(1 / 3)
    with pytest.raises(EvaluationError, match="count"):
        evaluate_generation(*tiny_models(), Recipe(), Pictures(0), Features(), count=0)


def test_no_class_takes_no_guidance(tiny_models) -> None:
    tokenizer, prior = tiny_models(num_classes=0)
    with pytest.raises(SamplingError, match="null class"):
        evaluate_generation(tokenizer, prior, GUIDED, Pictures(3), Features(), count=3)
    recipe = possible_recipe(GUIDED, prior)
    assert recipe == Recipe(temperature=0.9)
    assert evaluate_generation(tokenizer, prior, recipe, Pictures(3), Features(), count=3)["classes"] == 0
    assert possible_recipe(GUIDED, tiny_models()[1]) == GUIDED


def test_recognition_by_class() -> None:
    record = recognised_classes(torch.tensor([0, 0, 1, 1, 1, 2]), torch.tensor([0, 1, 1, 1, 0, 0]), ("a", "b"))
    assert (record["n"], record["recognised"], record["rate"]) == (6, 3, 0.5)
    assert [(row["class"], row["n"], row["recognised"]) for row in record["by_class"]] == [
        ("a", 2, 1),
        ("b", 3, 2),
        ("2", 1, 0),
    ]
    assert 0 < record["rate_low"] < 0.5 < record["rate_high"] < 1
