"""`pipeline.json`: the class names, the default recipe and the origin of a folder with two models."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prologue.data.source import embedded_name
from prologue.errors import CheckpointError, ConfigError, PrologueError
from prologue.sampling.recipe import Recipe
from prologue.utils.serialization import from_dict, load_json, save_json, to_dict

FORMAT = 1
NAME = "pipeline.json"
ASIDE = "pipeline.json.aside"


@dataclass(frozen=True)
class Manifest:
    """`class_names` in the order of their ids, empty without classes; `recipe` is None if none was chosen."""

    class_names: tuple[str, ...] = ()
    recipe: Recipe | None = None
    data: str | None = None
    """Name of the embedded image set that was trained on; None for other images and for imported models. Earlier
    versions wrote a path here, which is read but not written: `run.json` has the path of the images."""
    trained_on: tuple[str, ...] = ()
    """Feature extractors that a training loss used; distances in their features are marked."""
    background: tuple[int, int, int] = (255, 255, 255)
    """RGB background of transparent pixels, in training and in `Pipeline.encode`."""
    format: int = FORMAT

    def save(self, folder: Path) -> None:
        """Write the file into `folder`, without the path of images on this machine."""
        save_json(folder / NAME, to_dict(self.shared()))
        (folder / ASIDE).unlink(missing_ok=True)

    def shared(self) -> Manifest:
        """The manifest as it is written."""
        return self.replace(data=self.data if self.data is not None and embedded_name(self.data) else None)

    @classmethod
    def withdraw(cls, folder: Path) -> None:
        """Rename the file, because the two models of `folder` do not match until it is written again."""
        if (folder / NAME).is_file():
            (folder / NAME).replace(folder / ASIDE)

    @classmethod
    def set_aside(cls, folder: Path) -> Manifest | None:
        """The manifest that `withdraw` renamed, with its recipe; None without a readable one."""
        try:
            return from_dict(cls, load_json(folder / ASIDE), ASIDE)
        except PrologueError:
            return None

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read the manifest of a folder; a missing one, or another format, raises a `CheckpointError`."""
        if not (folder / NAME).is_file():
            if not folder.exists():
                raise CheckpointError(f"{folder} does not exist: give a run folder or an exported folder")
            if not folder.is_dir():
                raise CheckpointError(f"{folder} is a file: give a run folder or an exported folder")
            raise CheckpointError(
                f"{folder} has no {NAME}, so it is not a finished run or an exported folder: "
                "finish the training by running the same `prologue train` command again"
            )
        try:
            data: Any = load_json(folder / NAME)
        except ConfigError as error:
            raise CheckpointError(str(error)) from error
        found = data.get("format") if isinstance(data, dict) else None
        if found != FORMAT:
            raise CheckpointError(
                f"{folder / NAME} has format {found}, this version reads {FORMAT}: use the version that wrote it"
            )
        try:
            return from_dict(cls, data, NAME)
        except PrologueError as error:  # for example an error of the recipe
            raise CheckpointError(f"{folder / NAME}: {error}") from error

    def replace(self, **changes: Any) -> Manifest:
        """A changed copy."""
        return dataclasses.replace(self, **changes)
