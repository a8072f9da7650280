"""The command line before any command runs: laziness, exit codes and one clean message per error."""

from __future__ import annotations

import errno
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from prologue import __version__
from prologue.cli import main as cli
from prologue.errors import DataError

ROOT = Path(__file__).parents[2]


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[list[str]], int]], None]:
    """Installs a function as the command `fake`."""

    def install(run: Callable[[list[str]], int]) -> None:
        monkeypatch.setitem(cli.COMMANDS._components, "fake", run)

    return install


def _raise(error: BaseException) -> Callable[[list[str]], int]:
    def run(argv: list[str]) -> int:
        raise error

    return run


@pytest.mark.parametrize("argv", [["--help"], ["--version"]])
def test_help_and_version_import_the_standard_library_only(argv: list[str]) -> None:
    loaded = _python(
        "import sys\nbefore = set(sys.modules)\n"
        f"from prologue.cli.main import main\nassert main({argv!r}) == 0\n"
        "print('LOADED', *sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    names = set(loaded.rpartition("LOADED")[2].split())
    assert names - sys.stdlib_module_names == {"prologue"}


def test_presets_needs_no_torch() -> None:
    loaded = _python("import sys\nfrom prologue.cli.main import main\nmain(['presets'])\nprint('LOADED', *sys.modules)")
    assert not {"torch", "numpy"} & set(loaded.rpartition("LOADED")[2].split())


@pytest.mark.slow
def test_help_takes_at_most_half_the_time_of_importing_torch() -> None:
    """Paired and in turn, the best of each: a busy machine slows both sides, and the margin is tenfold."""

    def seconds(*arguments: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start

    pairs = [(seconds("-m", "prologue", "--help"), seconds("-c", "import torch")) for _ in range(2)]
    assert min(pair[0] for pair in pairs) <= 0.5 * min(pair[1] for pair in pairs)


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert re.search(rf"^  {name} +\w.+\w$", shown, flags=re.MULTILINE)


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, "--help"]) == 0
    assert f"prologue {name}" in capsys.readouterr().out


def test_version_is_the_citation_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"prologue {__version__}\n"
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trian"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: unknown command 'trian': did you mean 'train'?")
    assert cli.main(["--verbose"]) == 2
    assert "unknown option '--verbose'" in capsys.readouterr().err


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert capsys.readouterr().err.startswith("usage: prologue COMMAND")


def test_command_gets_its_arguments_and_gives_the_exit_code(command: Callable[..., None]) -> None:
    seen: list[list[str]] = []

    def run(argv: list[str]) -> int:
        seen.append(argv)
        return 3

    command(run)
    assert cli.main(["fake", "--count", "2"]) == 3
    assert seen == [["--count", "2"]]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (DataError("cats/1.png is damaged"), 2, "error: cats/1.png is damaged\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/a/run.json"),
            2,
            "error: no space left on the disk while writing runs/a/run.json: "
            "free some space and run the same command again; it continues\n",
        ),
        (
            RuntimeError("I/O error: No space left on device (os error 28)"),
            2,
            "error: no space left on the disk: free some space and run the same command again; it continues\n",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "error: /x: Permission denied\n"),
    ],
)
def test_errors_are_one_message(
    error: BaseException,
    code: int,
    message: str,
    command: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    command(_raise(error))
    assert cli.main(["fake"]) == code
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", message)


def test_faults_of_the_program_keep_their_traceback(command: Callable[..., None]) -> None:
    command(_raise(ZeroDivisionError("ours")))
    with pytest.raises(ZeroDivisionError):
        cli.main(["fake"])


@pytest.mark.skipif(sys.platform == "win32", reason="Windows reports a closed pipe as another error")
def test_closed_pipe_is_quiet() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "prologue", "presets", "small-32"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr as stream:
        assert stream.read() == b""
    assert process.wait() == cli.BROKEN_PIPE


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell closes the streams")
@pytest.mark.parametrize(("closed", "shown"), [(">&-", "stderr"), ("2>&-", "stdout"), ("<&- >&- 2>&-", "")])
def test_a_closed_stream_leads_nowhere_and_no_file_gets_its_number(closed: str, shown: str, tmp_path: Path) -> None:
    """A file that is opened while a standard stream is closed would get what is written to that stream."""
    code = (
        "import os, sys\nfrom prologue.cli import main as cli\n@cli.COMMANDS.register\ndef fake(argv):\n"
        "    with open('made.txt', 'w') as file:\n        print('said')\n        print('told', file=sys.stderr)\n"
        "        sys.stdout.flush()\n        return 0 if file.fileno() > 2 else 7\nsys.exit(cli.main(['fake']))\n"
    )
    (tmp_path / "odd.py").write_text(code, encoding="utf-8")
    line = f'exec "{sys.executable}" odd.py {closed}'
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("said\n" * (shown == "stdout"), "told\n" * (shown == "stderr"))


def test_import_runs_the_callers_module_before_the_command(tmp_path: Path) -> None:
    (tmp_path / "own_module.py").write_text("print('imported')")
    line = [sys.executable, "-m", "prologue", "--import", "own_module", "presets"]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("imported\n")


@pytest.mark.parametrize(
    "given", [["--import"], ["--import", "json"], ["--import="], ["--import", "no_such", "presets"]]
)
def test_import_says_what_is_wrong(
    given: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(cli.IMPORTED, raising=False)
    assert cli.main(given) == cli.USAGE_ERROR
    assert "--import" in capsys.readouterr().err
