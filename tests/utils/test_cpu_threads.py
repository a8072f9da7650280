"""How many threads work uses, and how idle ones wait."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch

from prologue.utils import cpu_threads as threads
from prologue.utils.cpu_threads import cpu_threads, limit_spinning, threads_for

pytestmark = pytest.mark.slow

_SEEN = """
import os, sys
sys.argv = ["prologue", "presets"]
{before}
import torch
print(os.environ.get("GOMP_SPINCOUNT"))
"""


def _output(before: str, **environ: str) -> str:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    code = _SEEN.format(before=before)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**plain, **environ}
    )
    return done.stdout


def _spin_count(before: str, **environ: str) -> str:
    return _output(before, **environ).splitlines()[-1]


def test_the_number_follows_from_the_size_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    with cpu_threads(3):
        assert threads_for(2, 160) == 1  # one guided image of builtin:shapes
        assert threads_for(32, 160) == 1
        assert threads_for(8 * 64, 128) == 3  # a training step of small-32


def test_a_number_of_the_user_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with cpu_threads(3):
        assert threads_for(2, 160) == 3


def test_the_callers_number_is_set_again() -> None:
    before = torch.get_num_threads()
    seen = []

    def fail() -> None:
        with cpu_threads(before + 1):
            seen.append(torch.get_num_threads())
            with cpu_threads(before + 2):
                seen.append(torch.get_num_threads())
            seen.append(torch.get_num_threads())
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert seen == [before + 1, before + 2, before + 1]
    assert torch.get_num_threads() == before


def test_python_threads_take_turns_and_leave_nothing_changed() -> None:
    before, wrong = torch.get_num_threads(), []

    def work(number: int) -> None:
        for _ in range(200):
            with cpu_threads(number):
                if torch.get_num_threads() != number:
                    wrong.append(number)

    workers = [threading.Thread(target=work, args=(number,)) for number in (1, 2, 3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
    assert torch.get_num_threads() == before


def test_the_command_line_limits_spinning() -> None:
    assert _spin_count("from prologue.cli.main import main; main(['presets'])") == str(threads.SPIN_ROUNDS)


def test_a_policy_of_the_user_wins() -> None:
    command = "from prologue.cli.main import main; main(['presets'])"
    assert _spin_count(command, OMP_WAIT_POLICY="ACTIVE") == "None"
    assert _spin_count(command, GOMP_SPINCOUNT="77") == "77"


def test_the_library_leaves_the_environment_as_it_was() -> None:
    seen = "from prologue.utils import cpu_threads as threads; old = threads.limit_spinning\n"
    seen += "threads.limit_spinning = lambda: print('asked', old()) or True\nfrom prologue import Pipeline"
    lines = _output(seen).splitlines()
    assert (lines[0], lines[-1]) == ("asked True", "None")


def test_nothing_is_set_where_it_would_come_too_late() -> None:
    environ: dict[str, str] = {}
    assert not limit_spinning(environ)  # torch is imported in this process
    assert not environ
