"""A judge of classes: it sees what its features tell apart, says what it is worth, and refuses what it cannot judge."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from prologue.config import DataConfig
from prologue.data.embedded.shapes import Shapes
from prologue.data.source import Data
from prologue.errors import EvaluationError
from prologue.evaluation.features import ShapesExtractor
from prologue.evaluation.recognition import fit_judge, judge_facts


@pytest.fixture(scope="module")
def shapes() -> Data:
    return Shapes().open(DataConfig(shapes_images=320, shapes_validation=96), (32, 32))


class Blind:
    """Features that know nothing."""

    name, dimension, hash = "Blind", 4, None

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :4].float() * 0 + torch.arange(len(images))[:, None] % 3


class Nothing:
    """A set of no images."""

    def __len__(self) -> int:
        return 0


def test_it_sees_what_its_features_tell_apart(shapes: Data) -> None:
    judge = fit_judge(ShapesExtractor(), shapes)
    facts = judge_facts(judge)
    assert (facts["judge"], facts["judge_n"], facts["judge_n_train"]) == ("linear on Shapes", 96, 320)
    assert facts["judge_rate"] > 0.9
    assert facts["judge_rate_low"] < facts["judge_rate"] <= facts["judge_rate_high"]
    assert facts["judge_chance"] == 12 / 96
    pictures = torch.from_numpy(np.stack([shapes.validation.center_view(index) for index in range(64)]))
    assert int((judge.classify(pictures) == torch.arange(64) % 8).sum()) >= 56


def test_a_blind_one_is_at_chance(shapes: Data) -> None:
    facts = judge_facts(fit_judge(Blind(), shapes, count=90))  # type: ignore[arg-type]
    assert (facts["judge_n"], facts["judge_n_train"]) == (90, 90)
    assert facts["judge_rate"] < 0.3


def test_what_cannot_be_judged_is_refused(shapes: Data) -> None:
    with pytest.raises(EvaluationError, match=r"needs features.*\[lite0\]"):
        fit_judge(None, shapes)
    with pytest.raises(EvaluationError, match="at least two classes"):
        fit_judge(Blind(), dataclasses.replace(shapes, class_names=()))  # type: ignore[arg-type]
    nothing = dataclasses.replace(shapes, validation=Nothing())  # type: ignore[arg-type]
    with pytest.raises(EvaluationError, match="no images are held out"):
        fit_judge(Blind(), nothing)  # type: ignore[arg-type]


def test_a_judge_without_a_record_is_named() -> None:
    assert judge_facts(ShapesExtractor()) == {"judge": "Shapes"}
