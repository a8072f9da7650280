"""The `prologue` command: picks a subcommand from argv before anything heavy is imported.

Every command is a module of `prologue.cli` with `run(argv: list[str]) -> int`. Errors that a user can mend
(`prologue.errors`) are printed as one message without a traceback and end with exit code 2.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import redirect_stdout, suppress
from importlib import import_module
from io import TextIOWrapper

from prologue._version import __version__
from prologue.errors import ConfigError, PrologueError, did_you_mean
from prologue.utils.cpu_threads import limit_spinning

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("demo", "the whole story on embedded data: train, sample, evaluate, report"),
    "train": ("train", "train a tokenizer and its prior on embedded images, a folder or a zip"),
    "generate": ("generate", "draw images from a trained run, or from the model in the package"),
    "resample": ("resample", "keep an image's prologue and draw its visual tokens again"),
    "evaluate": ("evaluate", "measure a run, or look inside it; lists the kinds"),
    "report": ("report", "write one page of all that was measured of runs, side by side"),
    "reproduce": ("reproduce", "the paper's tables in small: all variants, several seeds, verdicts on its claims"),
    "bench": ("bench", "measure sampling speed against an in-process baseline"),
    "weights": ("weights", "make the weight files of others' networks: LPIPS, ConvNeXt, Inception"),
    "import": ("import_", "turn the authors' checkpoints into a folder that this package opens"),
    "presets": ("presets", "list the named configurations, or print one as JSON"),
}
"""Command → (module of `prologue.cli`, what it does)."""

IMPORTED = "PROLOGUE_IMPORT"
"""Environment variable: modules to import at the start, separated by commas."""

USAGE_ERROR = 2
INTERRUPTED = 130
BROKEN_PIPE = 141


def help_text() -> str:
    """The top-level help, made from the table alone."""
    width = max(map(len, COMMANDS)) + 4
    commands = "\n".join(f"  {name:<{width}}{summary}" for name, (_, summary) in COMMANDS.items())
    return (
        "usage: prologue COMMAND [OPTIONS]\n\n"
        "Autoregressive image generation with learned prologue tokens.\n\n"
        f"commands:\n{commands}\n\n"
        f"options:\n  {'-h, --help':<{width}}show this message\n  {'--version':<{width}}show the version\n"
        f"  {'--import M':<{width}}import the module M, which registers your own components, before the command\n\n"
        "`prologue COMMAND --help` lists the options of a command. Begin with `prologue demo`."
    )


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 for errors that a user can mend, 130 when interrupted."""
    _replace_closed_streams()
    _let_streams_replace()
    try:
        with redirect_stdout(sys.stdout):  # a command whose --json is the standard output prints elsewhere
            code = _dispatch(sys.argv[1:] if argv is None else argv)
            sys.stdout.flush()
        return code
    except SystemExit as stop:  # argument parsers leave this way after --help
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except PrologueError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError as error:
        if error.filename is not None:  # a pipe that the user named
            return _fail(f"{error.filename}: {error.strerror}")
        # The reader (head, less) is gone: the flush at exit must not fail on the same pipe again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception as error:
        message = _environment_fault(error)
        if message is None:
            raise
        return _fail(message)


def _replace_closed_streams() -> None:
    """Let a closed standard stream (`>&-`) lead nowhere; else the next file that is opened would get its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        with suppress(OSError):  # read only, so that `--json /dev/stdout` fails instead of losing the record
            opened = os.open(os.devnull, os.O_RDONLY)
            if opened != number:
                os.close(opened)
        setattr(sys, name, open(os.devnull, "w" if number else "r", encoding="utf-8"))  # noqa: SIM115


def _let_streams_replace() -> None:
    """Let the standard streams escape what they cannot encode: a table must not die of a dash."""
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
    if first not in COMMANDS:
        kind = "option" if first.startswith("-") else "command"
        hint = did_you_mean(first, COMMANDS).rstrip() or f"commands are {', '.join(COMMANDS)}"
        raise ConfigError(f"unknown {kind} {first!r}: {hint} (`prologue --help` lists them)")
    limit_spinning()
    module = import_module(f"prologue.cli.{COMMANDS[first][0]}")
    code: int = module.run(rest)
    return code


def _import_modules(argv: list[str]) -> list[str]:
    """Import the modules of every leading `--import MODULE`, here and in processes that this one starts.

    Raises:
        ConfigError: a module cannot be imported, or nothing comes after the option.
    """
    named = [name for name in os.environ.get(IMPORTED, "").split(",") if name]
    while argv[0] == "--import" or argv[0].startswith("--import="):
        _option, equals, name = argv[0].partition("=")
        name, argv = (name, argv[1:]) if equals else (" ".join(argv[1:2]), argv[2:])
        if not name or not argv:
            raise ConfigError("usage: prologue --import MODULE COMMAND [OPTIONS]")
        named.append(name)
    for name in named:
        if "" not in sys.path and os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())  # as `python -m` does
        try:
            import_module(name)
        except ImportError as error:
            raise ConfigError(f"--import {name}: {error}") from error
    if named:
        os.environ[IMPORTED] = ",".join(dict.fromkeys(named))
    return argv


def _environment_fault(error: Exception) -> str | None:
    """What to tell about a fault of the disk or of a path; None where the fault is ours and needs its traceback."""
    # Writers in native code (safetensors) give the system's number only inside their text.
    if "os error 28" in str(error) or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)):
        where = f" while writing {error.filename}" if isinstance(error, OSError) and error.filename else ""
        return f"no room left on the disk{where}: free some space and run the same command again; it continues"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return None


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return USAGE_ERROR
