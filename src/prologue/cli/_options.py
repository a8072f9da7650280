"""What every command shares: options from argv.

Conventions: `--device` (`DeviceOption`), `--seed` (`SeedOption`) on what draws, `--json FILE` (`JsonOption`) on what
measures. Flags may be written with dashes or underscores; booleans as `--flag`, `--no-flag` or `--flag true|false`.
`~` is a home folder in every path: in `Path` options and in those that are marked as a `LOCATION`. An option that is
marked as an `OUTPUT_FILE` is refused at once where it cannot be written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import shutil
import sys
import typing
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import tyro

from prologue.errors import ConfigError
from prologue.utils.files import expand, is_stdout, require_writable
from prologue.utils.options import LOCATION, OUTPUT_FILE
from prologue.utils.rng import MOST_IMAGES, check_seeds

_NARROWEST = 60
_NO_NUMBER = re.compile(
    r"Error parsing (?P<flag>\S+): .*?"
    r"(?:invalid literal for (?P<whole>int)\(\) with base 10|could not convert string to float): "
    r"(?P<value>.*?)(?: - |$)"
)
T = TypeVar("T")


def parse(kind: type[T], argv: Sequence[str], prog: str, description: str, epilog: str = "") -> T:
    """Build the options dataclass `kind` from argv; a mistake in argv is a `ConfigError` of one sentence.

    A `--seed` from which `--count` seeds leave the range of seeds is a `SamplingError`. `--help` prints the options,
    then `epilog`, and leaves with `SystemExit(0)`.
    """
    _refuse_empty(argv)
    arguments = _spell_booleans(kind, argv)
    refused = io.StringIO()
    try:
        with contextlib.redirect_stderr(refused), _readable_width():
            options = tyro.cli(kind, args=arguments, prog=prog, description=description)
    except SystemExit as stop:
        if stop.code == 0:
            if epilog:
                print(f"\n{epilog}")
            raise
        raise ConfigError(f"{_sentence(refused.getvalue())}; see `{prog} --help`") from None
    seed, count = getattr(options, "seed", None), getattr(options, "count", None)
    if count is not None and count > MOST_IMAGES:
        raise ConfigError(f"--count must be at most {MOST_IMAGES}, not {count}")
    if seed is not None:
        check_seeds(seed, count or 1)
    return _with_paths(options)


@contextlib.contextmanager
def _readable_width() -> Iterator[None]:
    """Let the parser's help have `_NARROWEST` columns on a narrower terminal, where it would be a letter a line."""
    kept = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(max(_NARROWEST, shutil.get_terminal_size().columns))
    try:
        yield
    finally:
        os.environ.pop("COLUMNS")
        if kept is not None:
            os.environ["COLUMNS"] = kept


def _refuse_empty(argv: Sequence[str]) -> None:
    """A `ConfigError` for an empty argument, such as a shell variable that is not set: as a path it would be `.`."""
    for before, token in pairwise(["", *argv]):
        flag, equals, value = token.partition("=")
        if not token or (equals and not value and flag.startswith("--")):
            what = flag or (before if before.startswith("--") else "an argument")
            raise ConfigError(f"{what} is empty: give a value, or leave it out")


def check_run_seed(seed: int, count: int = 1) -> None:
    """Raise `ConfigError` where a run or a study of so many seeds cannot begin with this one."""
    if seed < 0:
        raise ConfigError(f"--seed must not be negative, is {seed}")
    check_seeds(seed, count)


def _with_paths(options: T) -> T:
    """The options with home folders in their paths written out, and their output files found to be writable.

    Where an output file is the standard output, what the command prints goes to standard error from here on.
    """
    hints = typing.get_type_hints(type(options), include_extras=True)
    changes: dict[str, Any] = {}
    for item in dataclasses.fields(options):  # type: ignore[arg-type]
        value, marks = getattr(options, item.name), getattr(hints[item.name], "__metadata__", ())
        changes[item.name] = value = _expanded(value, LOCATION in marks)
        if OUTPUT_FILE in marks and value is not None:
            require_writable(value)
            if is_stdout(value):
                sys.stdout = sys.stderr
    return dataclasses.replace(options, **changes)  # type: ignore[type-var]


def _expanded(value: Any, text: bool) -> Any:
    if isinstance(value, tuple):
        return tuple(_expanded(each, text) for each in value)
    if isinstance(value, Path):
        return Path(expand(str(value)))
    return expand(value) if text and isinstance(value, str) else value


def _spell_booleans(kind: type, argv: Sequence[str]) -> list[str]:
    """`--flag true` and `--flag=false` as `--flag` and `--no-flag`, for the boolean fields of `kind`."""
    hints = typing.get_type_hints(kind)
    flags = {f.name.replace("_", "-") for f in dataclasses.fields(kind) if hints[f.name] is bool}
    spelled: list[str] = []
    tokens = list(argv)
    while tokens:
        token = tokens.pop(0)
        name, equals, value = token.partition("=")
        flag = name.removeprefix("--").replace("_", "-")
        if not name.startswith("--") or flag not in flags:
            spelled.append(token)
            continue
        if not equals and tokens and tokens[0].lower() in ("true", "false"):
            equals, value = "=", tokens.pop(0)
        if equals and value.lower() not in ("true", "false"):
            raise ConfigError(f"--{flag} must be true or false, not {value!r}")
        spelled.append(f"--no-{flag}" if value.lower() == "false" else f"--{flag}")
    return spelled


def _sentence(box: str) -> str:
    """The parser's framed message as one line: its first paragraph, and the first spelling it suggests.

    The frame is drawn with box characters where the output can show them, and with dashes elsewhere; then the title
    is a paragraph of its own.
    """
    paragraphs: list[list[str]] = [[]]
    for line in box.splitlines():
        text = line.strip(" │")
        if not text or text.startswith(("╭", "╰")):
            continue
        if set(text) <= {"─", "-"}:
            paragraphs.append([])
        else:
            paragraphs[-1].append(text)
    if "╭" not in box:
        paragraphs = paragraphs[1:] or paragraphs
    sentence = " ".join(paragraphs[0]).rstrip(".") or "the options could not be read"
    number = _NO_NUMBER.match(sentence)
    if number is not None:
        words = [word for word in re.findall(r"\{(\w+)\}", sentence) if word != "None"]
        forms = " or ".join(["a whole number" if number["whole"] else "a number", *words])
        return f"{number['flag']} must be {forms}, not {number['value']}"
    for paragraph in paragraphs[1:2]:
        if len(paragraph) > 1 and paragraph[0].startswith("Perhaps you meant"):
            sentence += f" (did you mean {paragraph[1].split()[0]}?)"
    return sentence[0].lower() + sentence[1:]
