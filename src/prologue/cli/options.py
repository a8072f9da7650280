"""What all commands share: options from argv.

Conventions: commands that draw take `--seed` (`SeedOption`), those that compute `--device` (`DeviceOption`), and those
that measure `--json FILE` (`JsonOption`). A flag has dashes or underscores. A boolean is `--flag`, `--no-flag` or
`--flag true|false`. `~` is expanded in `Path` options and in text options marked as a `LOCATION`. A file of an option
marked as an `OUTPUT_FILE` is checked before any work: an error if it cannot be written.
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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
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
_NO_UNION = re.compile(
    r"Error parsing (?P<flag>\S+): no type matching (?P<forms>.*?) could be instantiated from \[(?P<values>.*?)\]"
)
_UNKNOWN = re.compile(r"Unrecognized options: (?P<token>[^\s,=]+)")
T = TypeVar("T")


def parse(kind: type[T], argv: Sequence[str], prog: str, description: str, epilog: str = "") -> T:
    """Build the options dataclass `kind` from argv. `--help` prints the options, then `epilog`, and exits with 0.

    Raises:
        ConfigError: argv has a mistake; the message is one sentence.
        SamplingError: `--seed` plus `--count` exceeds the range of seeds.
    """
    _refuse_empty(argv)
    flags = dict(_flags(kind))
    arguments = _spell(flags, argv)
    refused = io.StringIO()
    try:
        with contextlib.redirect_stderr(refused), _readable_width():
            options = tyro.cli(kind, args=arguments, prog=prog, description=description)
    except SystemExit as stop:
        if stop.code == 0:
            if epilog:
                print(f"\n{epilog}")
            raise
        raise ConfigError(f"{_sentence(refused.getvalue(), arguments, flags)}; see `{prog} --help`") from None
    seed, count = getattr(options, "seed", None), getattr(options, "count", None)
    if count is not None and count > MOST_IMAGES:
        raise ConfigError(f"--count must be at most {MOST_IMAGES}, not {count}")
    if seed is not None:
        check_seeds(seed, count or 1)
    return _with_paths(options)


@contextlib.contextmanager
def _readable_width() -> Iterator[None]:
    """Give the help at least `_NARROWEST` columns; a narrow terminal would get one letter per line."""
    kept = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(max(_NARROWEST, shutil.get_terminal_size().columns))
    try:
        yield
    finally:
        os.environ.pop("COLUMNS")
        if kept is not None:
            os.environ["COLUMNS"] = kept


def _refuse_empty(argv: Sequence[str]) -> None:
    """Raise `ConfigError` for an empty argument, such as an unset shell variable: as a path it would mean `.`."""
    for before, token in pairwise(["", *argv]):
        flag, equals, value = token.partition("=")
        if not token or (equals and not value and flag.startswith("--")):
            what = flag or (before if before.startswith("--") else "an argument")
            raise ConfigError(f"{what} is empty: give a value, or leave it out")


def check_run_seed(seed: int, count: int = 1) -> None:
    """Raise `ConfigError` if a run or a study cannot use `count` seeds from this one."""
    if seed < 0:
        raise ConfigError(f"--seed must not be negative, is {seed}")
    check_seeds(seed, count)


def _with_paths(options: T) -> T:
    """Expand `~` in the paths of the options, and check that their output files can be written.

    If an output file is the standard output, `sys.stdout` becomes standard error.
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


def _flags(kind: type, prefix: str = "--") -> Iterator[tuple[str, Any]]:
    """The flags of a dataclass or `TypedDict` of options, each with its type."""
    marked = typing.get_type_hints(kind, include_extras=True)
    for name, hint in typing.get_type_hints(kind).items():
        if tyro.conf.Positional in getattr(marked[name], "__metadata__", ()):
            continue
        if not typing.is_typeddict(hint):
            yield prefix + name.replace("_", "-"), hint
        else:  # the fields of the run configuration have no prefix of their own
            yield from _flags(hint, prefix if name == "fields" else f"{prefix}{name.replace('_', '-')}.")


def _spell(flags: Mapping[str, Any], argv: Sequence[str]) -> list[str]:
    """Rewrite argv for tyro: `--flag true|false` to `--flag` or `--no-flag`, `--numbers 1,2` to `--numbers 1 2`."""
    spelled: list[str] = []
    tokens = list(argv)
    while tokens:
        token = tokens.pop(0)
        name, equals, value = token.partition("=")
        flag = name.replace("_", "-")
        hint = flags.get(flag)
        if hint is bool:
            if not equals and tokens and tokens[0].lower() in ("true", "false"):
                value = tokens.pop(0)
            if value.lower() not in ("true", "false") and (equals or value):
                raise ConfigError(f"{flag} must be true or false, not {value!r}")
            group, _, last = flag.removeprefix("--").rpartition(".")
            spelled.append("--" + ".".join(filter(None, [group, f"no-{last}"])) if value.lower() == "false" else flag)
        elif _is_numbers(hint) and (equals or tokens):
            spelled += [flag, *(value if equals else tokens.pop(0)).split(",")]
        else:
            spelled.append(token)
    return spelled


def _is_numbers(hint: Any) -> bool:
    """Whether a type is a tuple of numbers, or may be one."""
    kinds = [hint, *typing.get_args(hint)]
    return any(typing.get_origin(kind) is tuple and typing.get_args(kind)[0] in (int, float) for kind in kinds)


def _sentence(box: str, argv: Sequence[str], flags: Iterable[str]) -> str:
    """Reduce tyro's framed message to one line: the first paragraph, and the nearest flag to an unknown one.

    The frame is drawn with box characters or, if the output cannot encode them, with dashes below a title.
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
    union = _NO_UNION.match(sentence)
    if union is not None:
        return f"{union['flag']} must be {re.sub('[{}]', '', union['forms'])}, not {union['values']}"
    sentence = sentence.removeprefix("Error parsing ")
    unknown = _UNKNOWN.match(sentence)
    if unknown is not None:
        sentence += _about_unknown(unknown["token"], argv, list(flags))
    return sentence[0].lower() + sentence[1:]


def _about_unknown(token: str, argv: Sequence[str], flags: Sequence[str]) -> str:
    """What an unrecognized token may be: a group of flags, a flag with an error in its name, or a value too many."""
    if not token.startswith("--"):
        before = [flag for flag in argv[: argv.index(token)] if flag.startswith("--")] if token in argv else []
        return f" (a value too many after {before[-1]})" if before else ""
    group = [flag for flag in flags if flag.startswith(f"{token}.")]
    if group:
        return f" (a group of options: set one of {', '.join(group)})"
    token = token.replace("_", "-")
    endings = {flag.strip("-").rpartition(".")[2] for flag in flags}
    near = get_close_matches(token.strip("-").rpartition(".")[2], endings, n=1, cutoff=0.6)
    alike = [flag for flag in flags if flag.strip("-").rpartition(".")[2] in near] or flags
    nearest = get_close_matches(token, alike, n=1, cutoff=0.5)
    return f" (did you mean {nearest[0]}?)" if nearest else ""
