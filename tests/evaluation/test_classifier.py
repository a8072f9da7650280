from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from prologue.data.embedded import shapes
from prologue.evaluation import classifier
from prologue.evaluation.classifier import KINDS, SHAPES, Kind, accuracy, classifier_card, kind_of, load_classifier
from prologue.evaluation.distort import distort
from prologue.utils.rng import torch_stream


def test_shipped_classifiers_are_small_and_of_these_images() -> None:
    assert SHAPES.file.stat().st_size < 500_000
    assert float(classifier_card()["accuracy_32px"]) >= 0.97
    assert classifier_card()["shapes_version"] == str(shapes.VERSION), "the scenes changed: train the classifier again"
    for kind in KINDS.values():
        if kind is not SHAPES:
            assert kind.file.stat().st_size < 300_000
            card = classifier_card(kind.file)
            assert card["version"] == str(kind.version), (
                f"the images changed: train the classifier of {kind.name} again"
            )
            assert set(kind.judged) < set(card)


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (16, 16), (32, 48)])
def test_shipped_classifier_recognises_validation_scenes(size: tuple[int, int]) -> None:
    assert accuracy(load_classifier(), ("shapes", size), count=500) >= 0.97


@pytest.mark.parametrize("kind", [kind for kind in KINDS.values() if kind is not SHAPES], ids=lambda kind: kind.name)
def test_shipped_classifiers_do_as_well_as_their_cards_say(kind: Kind) -> None:
    if kind.name == "Plates-digits":
        pytest.importorskip("sklearn")
    model, card = load_classifier(kind), classifier_card(kind.file)
    for name, view in list(kind.judged.items())[:2]:
        assert accuracy(model, view, count=250) == pytest.approx(float(card[name]), abs=0.08)


def test_images_have_the_classifier_of_their_kind() -> None:
    wheres = ("shapes", "shapes:grain=0", "shapes:grain=0.3", "plates", "plates:figures=kinds", "digits", "./shapes")
    kinds = [kind_of(where) for where in wheres]
    assert [None if kind is None else kind.name for kind in kinds] == [
        "Shapes", "Shapes", "Grain", "Plates-digits", "Plates-kinds", None, None,
    ]  # fmt: skip


def test_shipped_classifier_bears_mild_distortion() -> None:
    assert accuracy(load_classifier(), ("shapes", (32, 32)), count=500, noise=torch_stream(1, "noise")) >= 0.95


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
    model = load_classifier(SHAPES, tmp_path / "a")
    assert f"{accuracy(model, ('shapes', (64, 64)), 64):.4f}" == card["accuracy_64px"]
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("kind", list(KINDS.values()), ids=lambda kind: kind.name)
def test_class_and_view_of_training_images_are_independent(kind: Kind) -> None:
    """Each class is drawn at every size and strength of noise: otherwise these would give the class away."""
    classes = len(kind.class_names)
    rounds = len(kind.views) * classes
    for class_id in range(classes):
        views = [classifier._view_of(kind, i) for i in range(rounds) if i % classes == class_id]
        assert sorted(views) == sorted(kind.views)


def test_distortions_are_mild_seeded_and_in_range() -> None:
    images = torch.rand(16, 3, 32, 32, generator=torch_stream(0, "images")) * 2 - 1
    once = distort(images, torch_stream(1, "distort"))
    assert torch.equal(once, distort(images, torch_stream(1, "distort")))
    assert once.abs().max() <= 1
    flat = torch.full((16, 3, 32, 32), 0.2)
    assert (distort(flat, torch_stream(1, "distort")).mean((1, 2, 3)) - 0.2).abs().max() < 0.15
