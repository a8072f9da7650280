"""The nearest training image by brute force, copies, mirror images; the figures made of the distances."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations
from math import comb

import numpy as np
import pytest
import torch

from prologue.data.source import Data
from prologue.errors import EvaluationError
from prologue.evaluation import nearest
from prologue.evaluation.feature_networks import Features
from prologue.evaluation.kinds import memorisation
from prologue.evaluation.kinds.memorisation import evaluate_memorisation
from prologue.evaluation.metrics.coarse import coarse_pixels
from prologue.evaluation.metrics.intervals import wilson_interval
from prologue.evaluation.nearest import Described, NearestSearch, chance_of_near, compare_nearest, nearest_training
from prologue.evaluation.samples import Samples
from prologue.sampling.recipe import Recipe
from prologue.utils.rng import numpy_stream


@dataclass
class Pictures:
    """An image set in memory."""

    pixels: np.ndarray
    views: int = 1
    size: tuple[int, int] = field(init=False)
    labels: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.size = self.pixels.shape[2:]
        self.labels = np.arange(len(self.pixels)) % 3

    def __len__(self) -> int:
        return len(self.pixels)

    def center_view(self, index: int) -> np.ndarray:
        return self.pixels[index]


class Means:
    """Features that anyone can compute."""

    name, hash = "Means", "abc"

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean((2, 3))


def pictures(count: int, seed: int, size: tuple[int, int] = (8, 12)) -> Pictures:
    return Pictures(numpy_stream(seed, "pictures").integers(0, 256, (count, 3, *size), dtype=np.uint8))


def test_coarse_pixels_are_means_of_fields() -> None:
    images = torch.from_numpy(pictures(2, 0, (16, 24)).pixels)
    coarse = coarse_pixels(images)
    assert coarse.shape == (2, 3 * 64)
    assert coarse.dtype == torch.float64
    assert coarse.view(2, 3, 8, 8)[1, 2, 3, 4] == images[1, 2, 6:8, 12:15].double().mean()
    with pytest.raises(EvaluationError, match="uint8"):
        coarse_pixels(images.float())


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_nearest_is_that_of_brute_force(batch: int) -> None:
    train, asked = pictures(23, 0), torch.from_numpy(pictures(9, 1).pixels)
    extractor = Means()
    images = Described.of(asked, extractor)
    found = nearest_training(images, train, extractor, batch=batch)
    everything = torch.from_numpy(train.pixels)
    for name, points, others in (
        ("coarse", images.coarse, coarse_pixels(everything)),
        ("features", images.features.double(), extractor(everything).double()),
    ):
        distances = (points[:, None] - others[None]).square().mean(2).sqrt()
        assert torch.equal(found[name].index, distances.argmin(1))
        torch.testing.assert_close(found[name].distance, distances.min(1).values)
        assert not found[name].mirrored.any()


def test_planted_copies_are_found_at_distance_0_and_mirrored_ones_where_asked() -> None:
    train = pictures(40, 0)
    copies = torch.from_numpy(train.pixels)[[31, 7]]
    images = Described.of(torch.cat([copies, copies.flip(-1)]), None)
    found = nearest_training(images, train, mirror=True, batch=7)["coarse"]
    assert found.index.tolist() == [31, 7, 31, 7]
    assert found.distance.tolist() == [0, 0, 0, 0]
    assert found.mirrored.tolist() == [False, False, True, True]
    plain = nearest_training(images, train, batch=7)["coarse"]
    assert (plain.distance > 0).tolist() == [False, False, True, True]


def test_what_cannot_be_compared_is_refused() -> None:
    search = NearestSearch(torch.zeros(2, 3))
    with pytest.raises(EvaluationError, match="no training images"):
        search.result()
    with pytest.raises(EvaluationError, match="NaN"):
        search.add(torch.tensor([[0.0, torch.nan, 0.0]]), 0)
    with pytest.raises(EvaluationError, match="3 values"):
        search.add(torch.zeros(1, 4), 0)
    with pytest.raises(EvaluationError, match="no features"):
        nearest_training(Described(torch.zeros(2, 192, dtype=torch.float64)), pictures(3, 0), Means())


def test_figures_by_hand() -> None:
    samples, validation = torch.tensor([1.0, 2, 3]).double(), torch.tensor([4.0, 2]).double()
    copies = torch.tensor([0.0, 0, 1, 2]).double()
    record = compare_nearest(samples, validation, copies)
    assert record["coarse_nearer"] == pytest.approx((1 + 1 + 0.5 + 1 + 0 + 1) / 6)
    assert record["coarse_nearer_low"] <= record["coarse_nearer"] <= record["coarse_nearer_high"]
    assert record["coarse_threshold"] == 2
    assert record["coarse_share"] == pytest.approx(1 / 3)
    assert (record["coarse_share_low"], record["coarse_share_high"]) == wilson_interval(1, 3)[1:]
    assert record["coarse_share_expected"] == pytest.approx(1 / 3)
    assert record["coarse_copies_share"] == 0.75
    assert (record["coarse_median"], record["coarse_validation_median"], record["coarse_copies_median"]) == (2, 3, 0.5)
    assert record["coarse_quantiles"][::50] == [1, 2, 3]
    nothing = compare_nearest(None, None, None)
    assert set(nothing) == set(record)
    assert set(nothing.values()) == {None}
    with pytest.raises(EvaluationError, match="need samples"):
        compare_nearest(samples, validation[:0], copies)


@pytest.mark.parametrize(("samples", "rank", "validation"), [(3, 2, 4), (4, 1, 3), (2, 3, 3)])
def test_chance_is_that_of_all_orders(samples: int, rank: int, validation: int) -> None:
    total = samples + validation
    # The places of the validation images in the order of all; so many samples stand before the one of this rank.
    counts = [places[rank - 1] - (rank - 1) for places in combinations(range(total), validation)]
    for near in range(samples + 1):
        expected = sum(count >= near for count in counts) / comb(total, validation)
        assert chance_of_near(near, samples, rank, validation) == pytest.approx(expected)


def test_a_fair_model_is_seldom_warned_of() -> None:
    low = 0
    for number in range(40):
        rng = numpy_stream(number, "fair")
        sides = (torch.from_numpy(rng.gamma(4, size=size)) for size in (300, 150, 10))
        record = compare_nearest(*sides, seed=number)
        low += record["coarse_share_chance"] < nearest.CHANCE
        assert 0.3 < record["coarse_nearer"] < 0.7
    assert low <= 4


@pytest.fixture
def data() -> Data:
    return Data(pictures(30, 0), pictures(12, 1), ("a", "b", "c"), "f")


def test_a_generator_of_copies_gets_share_1(tiny_models, data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, prior = tiny_models()

    def copied(tokenizer, prior, recipe, class_ids, *, seed=0, seeds=None, **_):
        for row in range(len(class_ids)) if seeds is None else seeds.tolist():
            image = data.train.pixels[(seed + row) % len(data.train)]
            yield Samples(torch.from_numpy(image[None]), class_ids[:1])

    monkeypatch.setattr(memorisation, "draw_samples", copied)
    features = Features(Means(), None)
    record, closest = evaluate_memorisation(tokenizer, prior, Recipe(), data, features, count=20, batch=8)
    assert (record["n"], record["n_validation"], record["n_training"]) == (20, 12, 30)
    for name in ("coarse", "features"):
        assert (record[f"{name}_share"], record[f"{name}_nearer"], record[f"{name}_median"]) == (1, 1, 0)
        assert record[f"{name}_share_chance"] < 1e-5
        assert record[f"{name}_share_low"] > record[f"{name}_share_expected"]
    assert [entry["training_index"] for entry in record["closest"]] == [0, 1, 2, 3, 4, 5]
    assert [entry["seed"] for entry in record["closest"]] == [0, 1, 2, 3, 4, 5]
    for pair in closest.samples:
        assert torch.equal(pair.image, pair.training)
        assert pair.distance == 0
    assert all(pair.distance > 0 for pair in closest.validation)
    assert record["training_kid_high"] is not None


def test_figures_of_a_run_do_not_depend_on_the_batch(tiny_models, data: Data) -> None:
    tokenizer, prior = tiny_models()
    records = [
        evaluate_memorisation(
            tokenizer, prior, Recipe(), data, Features(Means(), None), count=10, seed=4, batch=batch, mirror=True
        )
        for batch in (3, 64)
    ]
    for name in ("coarse_median", "coarse_nearer", "features_validation_median", "training_kid", "validation_fd"):
        assert records[0][0][name] == pytest.approx(records[1][0][name], rel=1e-4)
    assert records[0][0]["closest"] == records[1][0]["closest"]
    shown = records[0][1].samples[0]
    assert shown.distance == pytest.approx(
        float((coarse_pixels(shown.image[None]) - coarse_pixels(shown.training[None])).square().mean().sqrt())
    )
    assert records[0][0]["coarse_undecoded_median"] != records[0][0]["coarse_validation_median"]


def test_copies_between_the_splits_are_told_and_no_held_out_images_are_refused(tiny_models, data: Data) -> None:
    tokenizer, prior = tiny_models()
    leaking = Data(data.train, Pictures(data.train.pixels[:4]), data.class_names, "f")
    record, _ = evaluate_memorisation(tokenizer, prior, Recipe(), leaking, Features(), count=4)
    note = "4 validation images have the coarse pixels of a training image: the split may contain copies"
    assert record["notes"] == [note]
    assert (record["features_share"], record["validation_kid"], record["reason"]) == (None, None, Features().reason)
    empty = Data(data.train, pictures(0, 0), data.class_names, "f")
    with pytest.raises(EvaluationError, match=r"held out.*validation-fraction"):
        evaluate_memorisation(tokenizer, prior, Recipe(), empty, Features(), count=4)
    with pytest.raises(EvaluationError, match="count"):
        evaluate_memorisation(tokenizer, prior, Recipe(), data, Features(), count=0)
