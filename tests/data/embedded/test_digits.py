"""The embedded digits: real scans, never mirrored, class-balanced split."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from prologue.config import DataConfig
from prologue.data.source import open_data
from prologue.errors import MissingExtraError


def test_digits_are_split_by_class_and_never_mirrored() -> None:
    pytest.importorskip("sklearn")
    data = open_data("digits", DataConfig(flip=True, crop="center", validation_fraction=0.1), (32, 32))
    assert len(data.train) + len(data.validation) == 1797
    assert data.class_names == tuple("0123456789")
    held = np.bincount(data.validation.labels) / (np.bincount(data.train.labels) + np.bincount(data.validation.labels))
    assert held.min() > 0.09
    assert held.max() < 0.11
    center = data.train.center_view(0)
    assert center.shape == (3, 32, 32)
    np.testing.assert_array_equal(center[0], center[2])
    rng = np.random.default_rng(0)
    assert {data.train.train_view(0, rng).tobytes() for _ in range(10)} == {center.tobytes()}
    assert data.train.views == 5
    assert data.train.token_views(0).shape == (5, 3, 32, 32)
    everything = {data.train.center_view(i).tobytes() for i in range(len(data.train))}
    assert sum(data.validation.center_view(i).tobytes() in everything for i in range(len(data.validation))) == 0


def test_digits_fit_any_size() -> None:
    pytest.importorskip("sklearn")
    data = open_data("digits", DataConfig(validation_fraction=0), (24, 40))
    assert len(data.validation) == 0
    view = data.train.center_view(3)
    assert view.shape == (3, 24, 40)
    assert view[:, :, :8].max() == 0


def test_digits_without_scikit_learn_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"\[digits\]"):
        open_data("digits", DataConfig(), (32, 32))
