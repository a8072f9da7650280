from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from prologue.data.shapes import CLASS_NAMES, VERSION, scene
from prologue.evaluation import classifier
from prologue.evaluation.classifier import SHIPPED, accuracy, classifier_card, load_classifier
from prologue.evaluation.distort import distort
from prologue.rng import torch_stream


def test_shipped_classifier_is_small_and_of_these_scenes() -> None:
    assert SHIPPED.stat().st_size < 1_000_000
    card = classifier_card()
    assert card["shapes_version"] == str(VERSION), "the scenes changed: train the classifier again"
    assert float(card["accuracy_32px"]) >= 0.97


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (16, 16), (32, 48)])
def test_shipped_classifier_recognises_validation_scenes(size: tuple[int, int]) -> None:
    assert accuracy(load_classifier(), size, count=500) >= 0.97


def test_shipped_classifier_bears_mild_distortion() -> None:
    assert accuracy(load_classifier(), (32, 32), count=500, noise=torch_stream(1, "noise")) >= 0.95


@pytest.fixture
def keep_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.usefixtures("keep_threads")
def test_the_command_gives_the_same_file_twice_and_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    for name in ("a", "b"):
        arguments = ["--scenes", "256", "--epochs", "1", "--validation", "64", "--seed", "3"]
        assert classifier.main([*arguments, "--out", str(tmp_path / name)]) == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert torch.equal(torch.get_rng_state(), before)
    card = classifier_card(tmp_path / "a")
    assert (card["scenes"], card["seed"], card["validation_images"]) == ("256", "3", "64")
    model = load_classifier(tmp_path / "a")
    assert f"{accuracy(model, (64, 64), 64):.4f}" == card["accuracy_64px"]
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_class_and_size_of_training_images_are_independent() -> None:
    """Each class is drawn at every size: otherwise the size would give the class away."""
    rounds = len(classifier._SIZES) * len(CLASS_NAMES)
    for class_id in range(len(CLASS_NAMES)):
        sizes = [classifier._size_of(i) for i in range(rounds) if scene("train", i).kind == CLASS_NAMES[class_id]]
        assert sorted(sizes) == sorted(classifier._SIZES)


def test_distortions_are_mild_seeded_and_in_range() -> None:
    images = torch.rand(16, 3, 32, 32, generator=torch_stream(0, "images")) * 2 - 1
    once = distort(images, torch_stream(1, "distort"))
    assert torch.equal(once, distort(images, torch_stream(1, "distort")))
    assert once.abs().max() <= 1
    flat = torch.full((16, 3, 32, 32), 0.2)
    assert (distort(flat, torch_stream(1, "distort")).mean((1, 2, 3)) - 0.2).abs().max() < 0.15
