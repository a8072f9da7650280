"""Classes by name and by id."""

from __future__ import annotations

import pytest

from prologue.data.class_names import ClassNames
from prologue.errors import SamplingError


def test_a_name_is_found_in_either_spelling_of_its_accents_and_by_its_bytes() -> None:
    names = ClassNames(("caf\u00e9", "b\\xe9", "e\u0301"))
    assert names.id("caf\u00e9") == names.id("cafe\u0301") == 0
    assert names.id("b\\xe9") == names.id("b\udce9") == 1
    assert names.id("\u00e9") == 2


def test_two_names_of_one_spelling_stay_apart() -> None:
    """A table of an older rule may have both."""
    names = ClassNames(("\u00e9a\u0300", "e\u0301\u00e0"))
    assert [names.id(name) for name in names.names] == [0, 1]
    with pytest.raises(SamplingError, match="unknown class"):
        names.id("\u00e9\u00e0")
