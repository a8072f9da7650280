"""Variables of launchers are read and checked; errors name them."""

from __future__ import annotations

import pytest

from prologue.errors import ConfigError
from prologue.utils.launcher import Launched, environment_named, launched


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_without_a_launcher_a_rank_means_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in ("host1", "3", ""):
        monkeypatch.setenv("RANK", rank)
        assert launched() == Launched(0, 1)
        assert launched().main
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert launched() == Launched(0, 1)


def test_a_launchers_variables_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match="RANK is not set, and the number of processes is 4: start"):
        launched()
    monkeypatch.setenv("RANK", "2")
    assert launched() == Launched(2, 4)
    assert not launched().main
    for name, value, wanted in (
        ("RANK", "host1", "from 0 to 3, not 'host1'"),
        ("RANK", "4", "from 0 to 3, not '4'"),
        ("LOCAL_RANK", "gpu0", "from 0 to 3, not 'gpu0'"),
        ("WORLD_SIZE", "two", "of at least 1, not 'two'"),
        ("WORLD_SIZE", "0", "of at least 1, not '0'"),
    ):
        with monkeypatch.context() as changed:
            changed.setenv(name, value)
            with pytest.raises(ConfigError, match=f"{name} must be a whole number {wanted}"):
                launched()


def test_mpi_numbers_its_processes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    assert launched() == Launched(1, 2)


def test_what_a_library_cannot_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from prologue.training.train import make_accelerator

    for name, value in (("LOCAL_RANK", "gpu0"), ("ACCELERATE_USE_CPU", "Maybe"), ("ACCELERATE_DEBUG_MODE", "2")):
        with monkeypatch.context() as changed:
            changed.setenv(name, value)
            with pytest.raises(ConfigError, match=f"{name}={value} cannot be read"):
                make_accelerator("fp32", "cpu")
    with monkeypatch.context() as changed:
        changed.setenv("LOCAL_RANK", "0")
        with pytest.raises(ConfigError, match=r"(RANK|MASTER_ADDR) is not: unset LOCAL_RANK"):
            make_accelerator("fp32", "cpu")
    assert make_accelerator("fp32", "cpu").is_main_process
    with pytest.raises(ValueError, match="something else"), environment_named():
        raise ValueError("something else")
