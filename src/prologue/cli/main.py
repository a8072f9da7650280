"""The `prologue` command: it selects a command from argv before it imports anything heavy.

Errors that a user can fix (`prologue.errors`) are printed as one message without a traceback and exit with code 2.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from importlib import import_module
from io import TextIOWrapper

from prologue._version import __version__
from prologue.errors import ConfigError, PrologueError, did_you_mean
from prologue.utils.cpu_threads import limit_spinning
from prologue.utils.registry import Registry, add_working_folder

_SUMMARIES = {
    "demo": "train, sample, evaluate and report on embedded data, within a time budget",
    "train": "train a tokenizer and its prior on embedded images, a folder or a zip",
    "generate": "draw images from a trained run, or from the model in the package",
    "resample": "keep an image's prologue and draw its visual tokens again",
    "evaluate": "measure a run or analyse it; lists the kinds of evaluation",
    "report": "write one page of all measurements of runs, side by side",
    "reproduce": "reproduce the paper's tables in small: all variants, several seeds, verdicts on its claims",
    "bench": "measure sampling speed against an in-process baseline",
    "weights": "make the weight files of published networks: LPIPS, ConvNeXt, Inception",
    "import": "convert the authors' checkpoints to a folder that this package opens",
    "presets": "list the named configurations, or print one as JSON",
}

COMMANDS: Registry[Callable[[list[str]], int]] = Registry(
    "command", {name: f"prologue.cli.{'import_' if name == 'import' else name}:run" for name in _SUMMARIES}
)
"""Functions that take the arguments of a command and return its exit code.

A function `my_command` from outside is the command `my-command`; the first line of its docstring is its summary.
"""

IMPORTED = "PROLOGUE_IMPORT"
"""Environment variable with the modules to import at the start, separated by commas."""

USAGE_ERROR = 2
INTERRUPTED = 130
BROKEN_PIPE = 141


def command_names() -> dict[str, str]:
    """Command as typed → its name in `COMMANDS`. The package's commands have precedence."""
    return {name.rpartition(":")[2].replace("_", "-"): name for name in reversed(list(COMMANDS))}


def _summary(name: str) -> str:
    if name in _SUMMARIES:
        return _SUMMARIES[name]
    return (COMMANDS.get(name).__doc__ or "").strip().partition("\n")[0]


def help_text() -> str:
    """The top-level help; it imports no command of the package."""
    names = dict(reversed(command_names().items()))
    width = max(map(len, names)) + 4
    commands = "\n".join(f"  {shown:<{width}}{_summary(name)}".rstrip() for shown, name in names.items())
    return (
        "usage: prologue COMMAND [OPTIONS]\n\n"
        "Autoregressive image generation with learned prologue tokens.\n\n"
        f"commands:\n{commands}\n\n"
        f"options:\n  {'-h, --help':<{width}}show this message\n  {'--version':<{width}}show the version\n"
        f"  {'--import M':<{width}}import the module M, which registers your own components, before the command\n\n"
        "`prologue COMMAND --help` lists the options of a command. Start with `prologue demo`."
    )


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 for errors that a user can fix, 130 after Ctrl-C."""
    _replace_closed_streams()
    _let_streams_replace()
    try:
        with redirect_stdout(sys.stdout):  # parse() redirects it if --json is the standard output
            code = _dispatch(sys.argv[1:] if argv is None else argv)
            sys.stdout.flush()
        return code
    except SystemExit as stop:  # argument parsers exit this way after --help
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except PrologueError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError as error:
        if error.filename is not None:  # a pipe that the user named
            return _fail(f"{error.filename}: {error.strerror}")
        # The reader (head, less) has exited. The flush at exit must not fail on the same pipe again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception as error:
        message = _environment_fault(error)
        if message is None:
            raise
        return _fail(message)


def _replace_closed_streams() -> None:
    """Open the null device for a closed standard stream (`>&-`), so that no other file gets its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        with suppress(OSError):  # read-only, so that `--json /dev/stdout` fails instead of losing the record
            opened = os.open(os.devnull, os.O_RDONLY)
            if opened != number:
                os.close(opened)
        setattr(sys, name, open(os.devnull, "w" if number else "r", encoding="utf-8"))  # noqa: SIM115


def _let_streams_replace() -> None:
    """Make the standard streams escape characters that they cannot encode, instead of an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _dispatch(argv: list[str]) -> int:
    if not argv:
        print(help_text(), file=sys.stderr)
        return USAGE_ERROR
    argv = _import_modules(argv)
    first, rest = argv[0], argv[1:]
    if first in ("-h", "--help"):
        print(help_text())
        return 0
    if first == "--version":
        print(f"prologue {__version__}")
        return 0
    names = command_names()
    if first not in names:
        kind = "option" if first.startswith("-") else "command"
        hint = did_you_mean(first, names).rstrip() or f"commands are {', '.join(reversed(names))}"
        raise ConfigError(f"unknown {kind} {first!r}: {hint} (`prologue --help` lists them)")
    limit_spinning()
    return COMMANDS.get(names[first])(rest)


def _import_modules(argv: list[str]) -> list[str]:
    """Import the modules of every leading `--import MODULE`, here and in the processes that this one starts.

    Raises:
        ConfigError: a module cannot be imported, or nothing follows the option.
    """
    named = [name for name in os.environ.get(IMPORTED, "").split(",") if name]
    while argv[0] == "--import" or argv[0].startswith("--import="):
        _option, equals, name = argv[0].partition("=")
        name, argv = (name, argv[1:]) if equals else (" ".join(argv[1:2]), argv[2:])
        if not name or not argv:
            raise ConfigError("usage: prologue --import MODULE COMMAND [OPTIONS]")
        named.append(name)
    for name in named:
        add_working_folder()
        try:
            import_module(name)
        except ImportError as error:
            raise ConfigError(f"--import {name}: {error}") from error
    if named:
        os.environ[IMPORTED] = ",".join(dict.fromkeys(named))
    return argv


def _environment_fault(error: Exception) -> str | None:
    """The message for an error of the disk or of a path; None for a bug, which needs its traceback."""
    # Writers in native code (safetensors) have the system's error number only in their text.
    if "os error 28" in str(error) or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)):
        where = f" while writing {error.filename}" if isinstance(error, OSError) and error.filename else ""
        return f"no space left on the disk{where}: free some space and run the same command again; it continues"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return None


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return USAGE_ERROR
