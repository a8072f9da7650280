"""The number of CPU threads, and how idle threads wait."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch

from prologue.utils import cpu_threads as threads
from prologue.utils.cpu_threads import cpu_threads, limit_spinning, threads_for

_COMMAND = "from prologue.cli.main import main; main(['presets'])"


def _spin_count(before: str, **environ: str) -> list[str]:
    """Run `before`, import torch, print the spin count, and return the first and the last line of the output."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    code = f"{before}\nimport os, torch\nprint(os.environ.get('GOMP_SPINCOUNT'))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True, env={**plain, **environ}
    )
    lines = done.stdout.splitlines()
    return [lines[0], lines[-1]]


def test_the_number_depends_on_the_size_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    with cpu_threads(3):
        assert threads_for(2, 160) == 1  # one guided image of builtin:shapes
        assert threads_for(32, 160) == 1
        assert threads_for(8 * 64, 128) == 3  # a training step of small-32
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        assert threads_for(2, 160) == 3


def test_the_previous_number_is_restored() -> None:
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


def test_python_threads_exclude_each_other() -> None:
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environ", "expected"),
    [({}, str(threads.SPIN_ROUNDS)), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None"), ({"GOMP_SPINCOUNT": "77"}, "77")],
)
def test_the_command_line_limits_spinning_unless_the_user_set_a_policy(environ: dict[str, str], expected: str) -> None:
    assert _spin_count(_COMMAND, **environ)[1] == expected


@pytest.mark.slow
def test_the_library_restores_the_environment() -> None:
    code = "from prologue.utils import cpu_threads as threads; old = threads.limit_spinning\n"
    code += "threads.limit_spinning = lambda: print('asked', old()) or True\nfrom prologue import Pipeline"
    assert _spin_count(code) == ["asked True", "None"]


def test_nothing_is_set_after_the_import_of_torch() -> None:
    environ: dict[str, str] = {}
    assert not limit_spinning(environ)  # torch is imported in this process
    assert not environ
