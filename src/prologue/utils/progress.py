"""Progress bars of loops."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.progress import track


def progress(steps: Sequence[int], what: str) -> Iterable[int]:
    """Iterate over the steps; a bar named `what` shows them if standard error is a terminal."""
    quiet = len(steps) < 2 or not sys.stderr.isatty()
    return track(steps, what, console=Console(stderr=True), transient=True, disable=quiet)
