"""References in ADM's form: round trip, foreign files, and what is refused."""

from __future__ import annotations

import gc
import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from prologue.errors import EvaluationError
from prologue.evaluation.distances import moments_of
from prologue.evaluation.metrics.frechet import GaussianStatistics
from prologue.evaluation.reference import ReferenceCard, card_path, open_reference, write_reference
from prologue.utils.processes import ALONE, Processes

MEANS = SimpleNamespace(name="Means", hash="abc", dimension=3)
FEATURES = torch.from_numpy(np.random.default_rng(0).normal(size=(9, 3)))
IMAGES = np.random.default_rng(1).integers(0, 256, (5, 3, 4, 6), dtype=np.uint8)


def written(path: Path, images: np.ndarray | None = None, **changes: Any) -> ReferenceCard:
    statistics = GaussianStatistics(3)
    statistics.update(FEATURES)
    facts = {"features": "Means", "features_hash": "abc", "image_size": (4, 6), "split": "train"}
    return write_reference(path, statistics, images, **(facts | {"data_fingerprint": "f"} | changes))


@pytest.mark.parametrize("images", [None, IMAGES])
def test_round_trip(tmp_path: Path, images: np.ndarray | None) -> None:
    path = tmp_path / "deep" / "train.npz"
    card = written(path, images)
    found = open_reference(path)
    assert (found.card, found.features, found.split, found.count) == (card, "Means", "train", 9)
    assert found.moments is not None
    expected = moments_of(FEATURES)
    assert torch.equal(found.moments.mean, expected.mean)
    assert torch.equal(found.moments.covariance, expected.covariance)
    found.require(MEANS, (4, 6), "train")
    with np.load(path, allow_pickle=False) as archive:  # as ADM's evaluator reads it
        np.testing.assert_allclose(archive["sigma"], np.cov(FEATURES.numpy().T))
        assert ("arr_0" in archive) is (images is not None)
    read = list(found.batches(2, ALONE))
    assert len(read) == (0 if images is None else 3)
    if images is not None:
        np.testing.assert_array_equal(torch.cat(read).numpy(), images)
        shares = [list(found.batches(2, Processes(rank, 2))) for rank in range(2)]
        np.testing.assert_array_equal(torch.cat([*shares[0], *shares[1]]).numpy(), images)
    assert sorted(file.name for file in path.parent.iterdir()) == ["train.json", "train.npz"]


def test_refuses_other_features_size_and_split_naming_both(tmp_path: Path) -> None:
    path = tmp_path / "train.npz"
    written(path)
    found = open_reference(path)
    for extractor, size, split, named in (
        (SimpleNamespace(name="Lite0", hash="abc", dimension=3), (4, 6), "train", "Means.*Lite0"),
        (SimpleNamespace(name="Means", hash="other", dimension=3), (4, 6), "train", "abc.*other"),
        (SimpleNamespace(name="Means", hash=None, dimension=4), (4, 6), "train", "3 features.*has 4"),
        (MEANS, (6, 4), "train", "4x6.*6x4"),
        (MEANS, (4, 6), "validation", "train images.*validation images"),
    ):
        with pytest.raises(EvaluationError, match=named):
            found.require(extractor, size, split)


def test_a_foreign_file_is_declared(tmp_path: Path) -> None:
    path = tmp_path / "foreign.npz"
    spatial = {"mu_s": np.zeros(2), "sigma_s": np.eye(2)}
    np.savez_compressed(path, mu=np.zeros(3), sigma=np.eye(3), arr_0=IMAGES.transpose(0, 2, 3, 1), **spatial)
    with pytest.raises(EvaluationError, match=r"--reference-features.*--reference-split"):
        open_reference(path)
    with pytest.raises(EvaluationError, match="declare --reference-split"):
        open_reference(path, features="means")
    found = open_reference(path, "means", "train")
    assert (found.card, found.count, found.images_shape) == (None, None, (5, 4, 6))
    assert found.facts()["reference_declared"] is True
    found.require(MEANS, (4, 6), "train")
    with pytest.raises(EvaluationError, match="has 4"):
        found.require(SimpleNamespace(name="Means", hash=None, dimension=4), (4, 6), "train")
    with pytest.raises(EvaluationError, match="4x6"):
        found.require(MEANS, (8, 8), "train")
    np.testing.assert_array_equal(torch.cat(list(found.batches(3, ALONE))).numpy(), IMAGES)  # though compressed
    # Images alone are measured in any features: only their split has to be known.
    np.savez(path, IMAGES.transpose(0, 2, 3, 1))
    alone = open_reference(path, split="validation")
    assert (alone.moments, alone.features, alone.count) == (None, None, 5)


def test_damaged_and_wrong_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    for arrays, named in (
        ({"mean": np.zeros(3), "cov": np.eye(3)}, "keys cov, mean; a reference holds `mu` and `sigma`, or `arr_0`"),
        ({"mu": np.zeros(3)}, "keys mu;"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, r"\(3,\) and \(4, 4\)"),
        ({"mu": np.full(3, np.nan), "sigma": np.eye(3)}, "NaN"),
        ({"arr_0": IMAGES}, r"\(N, H, W, 3\).*\(5, 3, 4, 6\)"),
        ({"arr_0": IMAGES.transpose(0, 2, 3, 1).astype(np.float32)}, "float32"),
        ({"mu": np.array([{"a": 1}], dtype=object), "sigma": np.eye(1)}, "allow_pickle"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(EvaluationError, match=named):
            open_reference(path, "means", "train")
    path.write_bytes(path.read_bytes()[:50])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", ResourceWarning)
        with pytest.raises(EvaluationError, match="cannot be read as an"):
            open_reference(path, "means", "train")
        gc.collect()
    assert [warning for warning in told if str(path) in str(warning.message)] == []  # it is closed
    with pytest.raises(EvaluationError, match="is not a file"):
        open_reference(tmp_path / "gone.npz")


def test_the_json_must_fit(tmp_path: Path) -> None:
    path = tmp_path / "train.npz"
    written(path)
    with pytest.raises(EvaluationError, match="split train, and --reference-split validation"):
        open_reference(path, split="validation")
    np.savez(path, mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(EvaluationError, match="not the file that"):
        open_reference(path)
    card = json.loads(card_path(path).read_text())
    card_path(path).write_text(json.dumps(card | {"surprise": 1}))
    with pytest.raises(EvaluationError, match="surprise"):
        open_reference(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_images_in_any_order_of_memory(tmp_path: Path, save: Any) -> None:
    path = tmp_path / "fortran.npz"
    rows_last = np.asfortranarray(IMAGES.transpose(0, 2, 3, 1))
    assert not rows_last.flags.c_contiguous
    save(path, arr_0=rows_last, mu=np.zeros(3), sigma=np.asfortranarray(np.arange(9.0).reshape(3, 3)))
    reference = open_reference(path, "means", "train")
    assert reference.images_shape == (5, 4, 6)
    read = list(reference.batches(2, ALONE))
    assert [len(part) for part in read] == [2, 2, 1]
    assert all(part.is_contiguous() for part in read)
    np.testing.assert_array_equal(torch.cat(read).numpy(), IMAGES)
    shares = [list(reference.batches(2, Processes(rank, 2))) for rank in range(2)]
    np.testing.assert_array_equal(torch.cat([*shares[0], *shares[1]]).numpy(), IMAGES)
    assert reference.moments is not None
    np.testing.assert_array_equal(reference.moments.covariance.numpy(), np.arange(9.0).reshape(3, 3))


@pytest.mark.parametrize(
    ("images", "fault"),
    [
        (IMAGES, r"its shape \(5, 3, 4, 6\) has the channels before rows and columns"),
        (IMAGES.transpose(0, 2, 3, 1) / 255, r"its values are float64, not whole numbers 0 to 255 \(uint8\)"),
        (IMAGES[:, 0], r"its shape \(5, 4, 6\) is that of grey images, or of a single one"),
        (np.zeros((5, 4, 6, 4), np.uint8), r"its shape \(5, 4, 6, 4\) has a channel of transparency"),
        (np.zeros((0, 4, 6, 3), np.uint8), r"its shape \(0, 4, 6, 3\) holds no pixels"),
        (np.zeros((5, 4), np.uint8), r"its shape is \(5, 4\)"),
    ],
)
def test_the_fault_of_an_array_of_images_is_told(tmp_path: Path, images: np.ndarray, fault: str) -> None:
    np.savez(tmp_path / "bad.npz", arr_0=images)
    with pytest.raises(EvaluationError, match=rf"arr_0 must be uint8 images of shape \(N, H, W, 3\), and {fault}"):
        open_reference(tmp_path / "bad.npz", "means", "train")
