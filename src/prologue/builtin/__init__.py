"""The models in the package. The name `builtin:NAME` stands for a run folder in every command and function."""

from __future__ import annotations

from pathlib import Path

from prologue.errors import CheckpointError
from prologue.utils.files import cache_folder, expand

SCHEME = "builtin:"
DEFAULT = "builtin:shapes"
CARD = "card.json"
"""File with a model's training and its measured figures."""
_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """The names of all models in the package, `builtin:NAME`."""
    return sorted(f"{SCHEME}{path.parent.name}" for path in _FOLDER.glob(f"*/{CARD}"))


def locate(run: str | Path) -> Path:
    """The folder of a run, given by its path or by the name of a model in the package. `~` is expanded.

    Raises:
        CheckpointError: the package has no model of this name.
    """
    text = str(run)
    if not text.startswith(SCHEME):
        return Path(expand(text))
    if text not in names():
        known = ", ".join(names()) or "none"
        raise CheckpointError(f"this package has no model {text!r}: there is {known}")
    return _FOLDER / text.removeprefix(SCHEME)


def is_builtin(run: Path) -> bool:
    """Whether a folder holds a model of the package. Such a folder is never written to."""
    return run.parent == _FOLDER


def shown(run: Path) -> str:
    """The name of a run for messages: its path, or `builtin:NAME`."""
    return f"{SCHEME}{run.name}" if is_builtin(run) else str(run)


def notes_folder(run: Path) -> Path:
    """The folder for results about a run: its own folder, or the user's cache for a model in the package."""
    return cache_folder() / f"builtin-{run.name}" if is_builtin(run) else run
