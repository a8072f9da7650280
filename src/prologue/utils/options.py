"""Types of options that commands share. They annotate the fields of option dataclasses, from which `tyro` reads argv.

A path option may begin with `~`. A text option that may be a path has the mark `LOCATION`, an option that names a file
to write has the mark `OUTPUT_FILE`; `prologue.cli.options.parse` reads both marks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

LOCATION = "location"
"""Marks a text option that may be a path: `--data`, `RUN`."""
OUTPUT_FILE = "output file"
"""Marks an option that names a file to write."""
DeviceOption = Annotated[
    Literal["auto", "cpu", "cuda", "mps"],
    tyro.conf.arg(help="Device to compute on; auto takes the first available of cuda, mps and cpu."),
]
SeedOption = Annotated[int, tyro.conf.arg(help="Seed of every random draw, a signed 64-bit integer.")]
JsonOption = Annotated[
    Path | None,
    tyro.conf.arg(metavar="FILE", help="File to which the results and their provenance are also written, as JSON."),
    OUTPUT_FILE,
]
