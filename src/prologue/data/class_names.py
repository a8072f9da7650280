"""The classes of a model, by name and by id."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from prologue.data.names import same_letters, valid_text
from prologue.errors import SamplingError, did_you_mean

ClassLike = str | int | None
"""A name, an id, or None for the null class."""
Classes = ClassLike | Sequence[ClassLike] | Tensor
"""One class, several, or an int64 tensor of ids."""

_SHOWN = 20


@dataclass(frozen=True)
class ClassNames:
    """`names` in the order of their ids. The null class has the id `len(names)`."""

    names: tuple[str, ...]

    def find(self, name: str) -> int | None:
        """The id of a name, or None. Accents may be composed or decomposed, and a name may have bytes that are not
        UTF-8."""
        if name in self.names:
            return self.names.index(name)
        spelled = [same_letters(each) for each in self.names]
        wanted = same_letters(valid_text(name))
        return spelled.index(wanted) if spelled.count(wanted) == 1 else None

    def id(self, value: ClassLike) -> int:
        """The id of a class, which is a name, an id or None. Raises `SamplingError` with the nearest name and the
        list."""
        if value is None:
            return len(self.names)
        if isinstance(value, str):
            index = self.find(value)
            if index is not None:
                return index
            raise SamplingError(f"unknown class {value!r}: {did_you_mean(value, self.names)}{self._known()}")
        try:
            index = -1 if isinstance(value, bool) else operator.index(value)
        except TypeError:
            index = -1
        if not 0 <= index <= len(self.names):
            raise SamplingError(f"unknown class {value!r}: {self._known()}")
        return index

    def ids(self, classes: Classes) -> list[int]:
        """The ids of one class or of several."""
        if isinstance(classes, Tensor | np.ndarray):
            classes = classes.reshape(-1).tolist()
        if classes is None or isinstance(classes, str) or not isinstance(classes, Sequence):
            return [self.id(classes)]
        return [self.id(value) for value in classes]

    def name(self, class_id: int) -> str:
        """The name of an id; `null` for the null class. Raises `SamplingError` for an unknown id."""
        known = self.id(class_id)
        return "null" if known == len(self.names) else self.names[known]

    def _known(self) -> str:
        names = self.names
        if not names:
            return "this model has no classes: leave the class out, or give None"
        rest = f", … ({len(names)} in all)" if len(names) > _SHOWN else ""
        return f"classes are {', '.join(names[:_SHOWN])}{rest}, their ids 0…{len(names) - 1}, or None"
