"""Features by a function of the user's: `--features module:function`."""

from __future__ import annotations

import hashlib
import inspect
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor

from prologue.errors import EvaluationError
from prologue.evaluation.features import CHOICES, FeatureExtractor, Pixels, checked_pixels

_FORM = "a function without arguments that returns a callable from uint8 images (b, 3, h, w) to features (b, d)"


class FunctionExtractor(FeatureExtractor):
    """What `module:function` returns: a callable from uint8 images (b, 3, h, w) on the CPU to features (b, d).

    The module must be importable from the Python path or the working folder: nothing is loaded from a file that an
    option or a download names. Distances are called after the function; `hash` is the callable's attribute of that
    name, else None. `source` hashes the whole files of the module and of the function, so that an edited helper beside
    it counts. Other modules that these import and files that they read are not seen: state those in `hash`. Raises
    `EvaluationError` for a module or function that is not there, of another form, or without a source file.
    """

    dimension = None

    def __init__(self, where: str) -> None:
        module_name, _, function = where.partition(":")
        if not all(part.isidentifier() for part in (*module_name.split("."), function)):
            raise EvaluationError(f"--features {where!r} must be module:function, such as mypackage.features:make")
        if function.lower() in CHOICES:
            raise EvaluationError(f"features of your own cannot be called {function!r}: rename the function")
        self.name = function
        module = _module(module_name, where)
        make = getattr(module, function, None)
        if not callable(make):
            raise EvaluationError(
                f"--features {where!r}: {module_name} has no function {function!r}; it must be {_FORM}"
            )
        self._callable: Any = make()
        if not callable(self._callable):
            raise EvaluationError(f"--features {where!r} returned {type(self._callable).__name__}; it must be {_FORM}")
        self.source = f"{where} {_code_hash(where, module, make, type(self._callable))}"
        stated = getattr(self._callable, "hash", None)
        self.hash = None if stated is None else str(stated)

    @torch.inference_mode()
    def __call__(self, images: Pixels) -> Float32[Tensor, "b d"]:
        features = self._callable(checked_pixels(images))
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(images):
            shown = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise EvaluationError(
                f"the features {self.name!r} of {len(images)} images must be a tensor ({len(images)}, d), not {shown}"
            )
        return features.float().cpu()


def _code_hash(where: str, *parts: Any) -> str:
    """sha256 of the files that the parts are defined in. A part that is built in has none; the module must have one."""
    files = set()
    for part in parts:
        try:
            files.add(inspect.getfile(inspect.unwrap(part) if callable(part) else part))
        except (TypeError, OSError):
            continue
    try:
        contents = sorted({Path(file).read_bytes() for file in files})
    except OSError as error:
        raise EvaluationError(f"--features {where!r}: its code cannot be read ({error})") from error
    if not contents:
        raise EvaluationError(
            f"--features {where!r}: the module has no source file that would tell its figures from those of another "
            "version: move the function to a module of its own"
        )
    return hashlib.sha256(b"\0".join(hashlib.sha256(content).digest() for content in contents)).hexdigest()


def _module(name: str, where: str) -> Any:
    folder = str(Path.cwd())
    added = folder not in sys.path and "" not in sys.path
    if added:  # as `python -m` does; the console script does not
        sys.path.insert(0, folder)
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise  # the module is there, and what it imports is not: its own traceback says where
        raise EvaluationError(
            f"--features {where!r}: no module {name!r}; install it, or run from the folder that holds it"
        ) from error
    finally:
        if added:
            sys.path.remove(folder)
