"""Options behind the name of embedded images."""

from __future__ import annotations

import pytest

from prologue.config import DataConfig
from prologue.data.opening import open_data
from prologue.data.options import PlatesOptions, ShapesOptions, embedded_name
from prologue.errors import DataError


def test_options_are_read_and_those_left_out_keep_their_defaults() -> None:
    assert ShapesOptions.parse("shapes") == ShapesOptions()
    assert ShapesOptions.parse("shapes:grain=0.3") == ShapesOptions(grain=0.3)
    assert ShapesOptions.parse("shapes: cell=2, grain=1") == ShapesOptions(grain=1.0, cell=2)
    assert PlatesOptions.parse("plates:figures=kinds,noise=0") == PlatesOptions(figures="kinds", noise=0.0)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("shapes:grian=0.3", "--data shapes:grian=0.3: unknown option 'grian': did you mean 'grain'"),
        ("shapes:colour=3", "unknown option 'colour': shapes takes grain, cell"),
        ("shapes:grain=1.5", "grain must be a number from 0 to 1, not '1.5'"),
        ("shapes:grain=nan", "grain must be a number from 0 to 1, not 'nan'"),
        ("shapes:grain=much", "grain must be a number from 0 to 1, not 'much'"),
        ("shapes:cell=2.5", "cell must be a whole number from 1 to 64, not '2.5'"),
        ("shapes:grain", "'grain' is not an option of the form key=value"),
        ("shapes:", "'' is not an option of the form key=value"),
        ("shapes:grain=0.1,grain=0.2", "'grain' is given twice"),
        ("plates:figures=letters", "figures must be one of digits, kinds, not 'letters'"),
        ("digits:noise=0.1", "digits takes no options"),
    ],
)
def test_wrong_options_are_named(where: str, message: str) -> None:
    with pytest.raises(DataError, match=message.replace("'", ".")):
        open_data(where, DataConfig(), (32, 32))


def test_only_embedded_images_have_options() -> None:
    assert embedded_name("shapes:grain=0.3") == embedded_name("shapes") == "shapes"
    assert embedded_name("./shapes") is None
    assert embedded_name("/data/a:b.zip") is None
    with pytest.raises(DataError, match="photos:grain=1"):
        open_data("photos:grain=1", DataConfig(), (32, 32))
