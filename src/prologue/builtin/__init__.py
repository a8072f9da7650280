"""The models that come with the package, which are named `builtin:NAME` wherever a run's folder is taken."""

from __future__ import annotations

from pathlib import Path

from prologue.errors import CheckpointError
from prologue.utils.files import cache_folder, expand

SCHEME = "builtin:"
DEFAULT = "builtin:shapes"
CARD = "card.json"
"""How a model was made and what was measured of it."""
_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Of all models that come with the package, as they are asked for."""
    return sorted(f"{SCHEME}{path.parent.name}" for path in _FOLDER.glob(f"*/{CARD}"))


def locate(run: str | Path) -> Path:
    """The folder of a run: `builtin:NAME` is the package's own, anything else is a path, whose `~` is a home folder.

    Such a name is looked up nowhere else; an unknown one is a `CheckpointError` with the list.
    """
    text = str(run)
    if not text.startswith(SCHEME):
        return Path(expand(text))
    if text not in names():
        known = ", ".join(names()) or "none"
        raise CheckpointError(f"no model {text!r} comes with this package: there is {known}")
    return _FOLDER / text.removeprefix(SCHEME)


def is_builtin(run: Path) -> bool:
    """Whether a folder is that of a model of the package, which nothing may be written to."""
    return run.parent == _FOLDER


def shown(run: Path) -> str:
    """How a run's folder is named to users: a model of the package by its name."""
    return f"{SCHEME}{run.name}" if is_builtin(run) else str(run)


def notes_folder(run: Path) -> Path:
    """Where what is found out about a run is kept: its own folder, and for a model of the package the user's cache."""
    return cache_folder() / f"builtin-{run.name}" if is_builtin(run) else run
