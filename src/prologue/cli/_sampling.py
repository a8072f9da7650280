"""What `generate` and `resample` share: their common options, and the parser of `--classes`."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from tyro.conf import arg

from prologue._version import __version__
from prologue.data.class_names import ClassLike, ClassNames
from prologue.errors import ConfigError
from prologue.pipeline import Pipeline
from prologue.sampling.flags import RecipeFlags
from prologue.training.models import Which
from prologue.utils.measurements import provenance
from prologue.utils.options import DeviceOption, JsonOption, SeedOption

NULL_NAME = "null"


@dataclass(frozen=True, kw_only=True)
class SamplingFlags(RecipeFlags):
    """Options of the commands that draw images."""

    out: Annotated[Path, arg(metavar="DIR")]
    """Folder for the images; created if necessary."""
    seed: SeedOption = 0
    """Seed of the first image; image i has seed + i."""
    batch: int = 64
    """Images per batch; limits the memory that drawing takes."""
    device: DeviceOption = "auto"
    dtype: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    """Number format; auto is bf16 if the device has bf16 units, else fp32. int8 stores the prior's weights as int8."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the decode step, which takes 1 to 2 minutes; auto compiles for a large number of images."""
    checkpoint: Which = "finished"
    """Models to draw with; newest is the EMA of the newest checkpoint of a run in training."""
    overwrite: bool = False
    """Replace images of an earlier call in the folder."""
    json: JsonOption = None

    def open(self, run: str, device: torch.device | None = None) -> Pipeline:
        """Open the pipeline of `run` on `device`, else on that of the flags. Compilation is reported on stderr."""
        choice: dict[str, Literal["auto"] | bool] = {"auto": "auto", "on": True, "off": False}
        pipeline = Pipeline.from_pretrained(
            run, device or self.device, self.dtype, choice[self.compile], self.checkpoint
        )
        pipeline.on_compile = _say_compiled
        return pipeline

    def request(self, pipeline: Pipeline, **asked: Any) -> dict[str, Any]:
        """Everything that determines the bytes of the images, as JSON values: flags, models and `asked`."""
        assert pipeline.source is not None
        return {
            "weights": pipeline.source.hashes(),
            **asked,
            "seed": self.seed,
            "recipe": pipeline.recipe.replace(**self.sampling()).to_dict(),
            "batch": self.batch,
            "precision": pipeline.prior.precision,
            "compile": self.compile,
            "device": pipeline.device.type,
            "torch": torch.__version__,
            "prologue": __version__,
        }

    def origin(self, command: Sequence[str], run: str, pipeline: Pipeline, seconds: float) -> dict[str, Any]:
        """The provenance of the images, for `--json`."""
        assert pipeline.source is not None
        facts = {"run": run, "device": str(pipeline.device), "dtype": pipeline.prior.precision, **pipeline.source.facts}
        return provenance(command, **facts, seconds=seconds)

    def check(self) -> None:
        """Raise an error for invalid values before a model is loaded."""
        if self.batch < 1:
            raise ConfigError(f"--batch must be at least 1, not {self.batch}")
        super().check()


def _say_compiled(what: str, seconds: float | None) -> None:
    print(f"compiling the {what} …" if seconds is None else f"compiled in {seconds:.0f} s", file=sys.stderr)


def parse_classes(text: str, pipeline: Pipeline) -> list[ClassLike]:
    """Parse names or ids between commas, `null` for the null class. A name has precedence over an equal id."""
    names = ClassNames(pipeline.class_names)
    if names.find(text) is not None:
        return [text]
    return [_parse_class(part.strip(), names) for part in text.split(",")]


def _parse_class(text: str, names: ClassNames) -> ClassLike:
    if names.find(text) is not None:
        return text
    if text == NULL_NAME:
        return None
    return int(text) if text.isdecimal() else text


@contextmanager
def notes_on_stderr() -> Iterator[None]:
    """Show each warning as one line, without its place in the code."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"note: {message}", file=sys.stderr)
        yield
