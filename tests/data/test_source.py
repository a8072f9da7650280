"""Sources by name: options, sources of the caller's own code, and what is refused."""

from __future__ import annotations

import dataclasses
import sys
import types
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image
from tests.data.pictures import fill

from prologue.config import DataConfig
from prologue.data import crops
from prologue.data.embedded.plates import Plates
from prologue.data.embedded.shapes import Shapes, ShapesSet
from prologue.data.folder.images import Folder
from prologue.data.source import (
    SOURCES,
    Data,
    ImageSource,
    JoinedSet,
    embedded_name,
    import_source,
    open_data,
    place_of,
    source_of,
)
from prologue.errors import DataError

SIZE = (16, 20)
CENTER = DataConfig(crop="center", token_views="center", flip=False)


def test_options_are_read_and_the_others_keep_their_defaults() -> None:
    assert source_of("shapes") == Shapes()
    assert source_of("shapes:grain=0.3") == Shapes(grain=0.3)
    assert source_of("shapes: cell=2, grain=1") == Shapes(grain=1.0, cell=2)
    assert source_of("plates:figures=kinds,noise=0") == Plates(figures="kinds", noise=0.0)
    assert source_of("./shapes") == Folder("./shapes")


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("shapes:grian=0.3", "--data shapes:grian=0.3: .*'grian'; did you mean 'grain'"),
        ("shapes:colour=3", "data source 'shapes': .*'colour'; its options are grain, cell"),
        ("shapes:grain=1.5", "grain must be from 0 to 1, not 1.5"),
        ("shapes:grain=nan", "grain must be from 0 to 1, not nan"),
        ("shapes:grain=much", "grain must be a number, not 'much'"),
        ("shapes:cell=2.5", "cell must be a whole number, not '2.5'"),
        ("shapes:cell=65", "cell must be from 1 to 64, not 65"),
        ("shapes:grain", "'grain' is not an option of the form key=value"),
        ("shapes:", "'' is not an option of the form key=value"),
        ("shapes:grain=0.1,grain=0.2", "'grain' is given twice"),
        ("plates:figures=letters", "figures must be one of digits, kinds, not 'letters'"),
        ("digits:noise=0.1", "'digits': .*'noise'; it has no options"),
        ("photos:grain=1", "no folder or zip named photos:grain=1"),
        ("no_such_module:Images", "--data no_such_module:Images: .*--import no_such_module"),
    ],
)
def test_wrong_names_and_options_are_refused(where: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_data(where, DataConfig(), (32, 32))


def test_names_and_paths_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert embedded_name("shapes:grain=0.3") == embedded_name("shapes") == "shapes"
    assert embedded_name("./shapes") is embedded_name("/data/a:b.zip") is embedded_name("pkg.mod:Name") is None
    for name in ("shapes:grain=0.3", "pkg.mod:Name", "mod:Name:root=C:\\photos,n=3"):
        assert place_of(name) == name
    for path in ("photos", "a/b:c", "C:photos", "mod:3"):
        assert place_of(path) == str(tmp_path / path)
    if sys.platform != "win32":  # a colon in a name
        fill(tmp_path / "old:Photos", "")
        assert place_of("old:Photos") == str(tmp_path / "old:Photos")
        import_source("old:Photos")
        assert len(open_data("old:Photos", DataConfig(validation_fraction=0), SIZE).train) == 4


class Ramps(ImageSource):
    """Grey pictures whose level is their index."""

    class_names = ("even", "odd")
    fingerprint = "1"

    def __init__(
        self, count: int = 8, *, start: float = 0.0, mirror: bool = False, text: str = "", form: str = ""
    ) -> None:
        self.count, self.form, self.given = count, form, (count, start, mirror, text)

    def __len__(self) -> int:
        return self.count

    def image(self, index: int) -> Any:
        wide = Image.new("F", (40, 30))
        level = np.full((30, 40, 3), index, dtype=np.uint8)
        return {"pillow": Image.fromarray(level[..., 0]), "floats": level / 255, "none": None, "range": wide}.get(
            self.form, level
        )

    def label(self, index: int) -> int:
        return 5 if self.form == "label" else index % 2

    def split(self, index: int) -> Literal["train", "validation"] | None:
        if self.form == "splits":
            return "validation" if index < 2 else "train"
        return "train" if self.form == "half" and index else None


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module `ramps` outside of the package, which registers nothing."""
    module = types.ModuleType("ramps")
    vars(module).update(Ramps=Ramps, count=3)
    monkeypatch.setitem(sys.modules, "ramps", module)
    monkeypatch.setattr(SOURCES, "_components", dict(SOURCES._components))


def opened(where: str = "ramps:Ramps", config: DataConfig = CENTER) -> Data:
    import_source(where)
    return open_data(where, config, SIZE)


@pytest.mark.usefixtures("outside")
def test_only_a_typed_name_is_imported() -> None:
    with pytest.raises(DataError, match="--import ramps"):
        open_data("ramps:Ramps", CENTER, SIZE)
    assert len(opened().train) > 0
    assert len(open_data("ramps:Ramps", CENTER, SIZE).train) > 0  # from now on it is known
    for where in ("ramps:Nothing", "no_such_module:Ramps"):
        with pytest.raises(DataError, match=f"--data {where}: .*cannot be imported.*no folder or zip of this name"):
            import_source(where)
    with pytest.raises(DataError, match="ramps:count is no data source: derive it from"):
        opened("ramps:count")


@pytest.mark.usefixtures("outside")
def test_options_have_the_types_of_the_signature() -> None:
    import_source("ramps:Ramps")
    source = source_of("ramps:Ramps:count=5,start=2,mirror=true,text=a:b=c")
    assert isinstance(source, Ramps)
    assert source.given == (5, 2.0, True, "a:b=c")
    with pytest.raises(DataError, match="mirror must be one of true, false, not 'yes'"):
        source_of("ramps:Ramps:mirror=yes")


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize("form", ["array", "pillow", "splits"])
def test_pictures_are_cropped_labelled_and_split(form: str) -> None:
    config = dataclasses.replace(CENTER, validation_fraction=0.3)
    data = opened(f"ramps:Ramps:count=40,form={form}", config)
    assert data.class_names == ("even", "odd")
    assert data.summary("mine").startswith("mine: 40 images in 2 classes of 20 each")
    levels = [
        [int(part.center_view(index)[0, 0, 0]) for index in range(len(part))] for part in (data.train, data.validation)
    ]
    assert sorted(levels[0] + levels[1]) == list(range(40))
    for part, seen in zip((data.train, data.validation), levels, strict=True):
        assert part.center_view(0).shape == (3, *SIZE)
        assert part.labels.tolist() == [level % 2 for level in seen]
    if form == "splits":
        assert levels[1] == [0, 1]
    else:
        assert 8 <= len(levels[1]) <= 16
        more = opened(f"ramps:Ramps:count=60,form={form}", config).validation
        later = [int(more.center_view(index)[0, 0, 0]) for index in range(len(more))]
        assert [level for level in later if level < 40] == levels[1]  # added images move no other


@pytest.mark.usefixtures("outside")
def test_views_are_the_crops_of_the_whole_picture() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)

    class One(Ramps):
        def image(self, index: int) -> Any:
            return picture

    data = One(2).open(DataConfig(flip=False, token_views="ten-crop"), SIZE)
    whole = Image.fromarray(picture)
    rng = np.random.default_rng
    np.testing.assert_array_equal(data.train.center_view(0), crops.pixels(crops.center_crop(whole, SIZE)))
    np.testing.assert_array_equal(
        data.train.train_view(0, rng(3)), crops.pixels(crops.random_crop(whole, SIZE, rng(3)))
    )
    assert data.train.token_views(0).shape == (5, 3, *SIZE)


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("floats", r"image\(\d\) of .* is float64 \(30, 40, 3\): return a Pillow image, or uint8"),
        ("none", r"image\(\d\) of .* is NoneType"),
        ("range", r"image\(\d\) of .*: the pixels are floating-point numbers"),
        ("label", r"label\(0\) of .* is 5: class ids are 0 to 1"),
        ("half", r"split\(0\) of .* is None: return 'train' or 'validation' for each image, or None for all"),
    ],
)
def test_a_source_that_contradicts_the_protocol_is_refused(form: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        opened(f"ramps:Ramps:form={form}").train.center_view(0)


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("__len__", lambda self: 0, r"the data source \S*:Ramps has no images"),
        ("fingerprint", None, "Ramps has no fingerprint: set it to text"),
        ("class_names", ("a", "a"), "Ramps has two classes of one name: a, a"),
    ],
)
def test_an_incomplete_source_is_refused(
    field: str, value: object, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ramps, field, value)
    with pytest.raises(DataError, match=message):
        opened()


@pytest.mark.usefixtures("outside")
def test_the_fingerprint_follows_what_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [opened().fingerprint, opened("ramps:Ramps:count=9").fingerprint, opened(config=DataConfig()).fingerprint]
    found.append(opened("ramps:Ramps:form=splits").fingerprint)
    monkeypatch.setattr(Ramps, "fingerprint", "2")
    found.append(opened().fingerprint)
    assert len(set(found)) == 5
    assert opened().fingerprint == found[-1]


def test_joined_sets_have_the_images_of_all_in_order() -> None:
    first, second = (ShapesSet(split, count, SIZE, CENTER) for split, count in (("train", 3), ("validation", 2)))  # type: ignore[arg-type]
    joined = JoinedSet((first, second))
    assert len(joined) == 5
    assert joined.labels.tolist() == [0, 1, 2, 0, 1]
    for index, (images, inside) in enumerate([(first, 0), (first, 1), (first, 2), (second, 0), (second, 1)]):
        np.testing.assert_array_equal(joined.center_view(index), images.center_view(inside))
        np.testing.assert_array_equal(joined.token_views(index), images.token_views(inside))
    for index in (-1, 5):
        with pytest.raises(IndexError):
            joined.center_view(index)
    assert Data(first, ShapesSet("validation", 0, SIZE, CENTER), (), "f").whole() is first
