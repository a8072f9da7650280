"""Distances against images, files of statistics and files of images; names, notes, and two processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import prologue
from prologue.errors import EvaluationError
from prologue.evaluation import distances as module
from prologue.evaluation.distances import Distances, gather_statistics, measure_name, moments_of, statistics_of
from prologue.evaluation.feature_networks import Features
from prologue.evaluation.features import ClassifierExtractor
from prologue.evaluation.metrics.frechet import GaussianStatistics, frechet_from_moments
from prologue.evaluation.metrics.kid import kernel_distance
from prologue.evaluation.metrics.precision_recall import precision_recall
from prologue.evaluation.reference import open_reference
from prologue.evaluation.runs import Record
from prologue.utils.processes import ALONE, Processes
from prologue.utils.rng import torch_stream

SAMPLES = torch.randint(0, 200, (9, 3, 4, 6), dtype=torch.uint8, generator=torch_stream(0, "samples"))
REAL = torch.randint(50, 256, (7, 3, 4, 6), dtype=torch.uint8, generator=torch_stream(1, "real"))


class Corners(ClassifierExtractor):
    """Two pixels as features, and their brightest channel as the class."""

    name, dimension, hash = "Corners", 6, "abc"

    def __init__(self) -> None:
        super().__init__(torch.nn.Identity(), "cpu")

    def _outputs(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = pixels[:, :, 0, :2].flatten(1) / 255
        return features, features[:, :3]


def measured(reference: object = None, real: torch.Tensor | None = REAL, batch: int = 4) -> Distances:
    distances = Distances(Features(Corners(), None), reference, of_samples=True)
    for part in SAMPLES.split(batch):
        distances.add_measured(part)
    for part in () if real is None else real.split(batch):
        distances.add_reference(part)
    distances.add_reference_file(batch)
    return distances


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_all_figures_whatever_the_batch(batch: int) -> None:
    record = measured(batch=batch).record(3)
    samples, real = Corners()(SAMPLES), Corners()(REAL)
    assert record["fd"] == pytest.approx(frechet_from_moments(*moments_of(samples), *moments_of(real)))
    assert record["kid"] == pytest.approx(kernel_distance(samples, real, seed=3).value)
    both = precision_recall(samples, real)
    assert (record["precision"], record["recall"]) == (both.precision.value, both.recall.value)
    assert record["is_low"] < record["is"] < record["is_high"]
    names = [record[name] for name in ("fd_name", "fd_label", "kid_name", "is_name", "precision_name", "recall_name")]
    assert names == ["FD-Corners", "FD-Corners@9", "KID-Corners", "IS-Corners", "precision-Corners", "recall-Corners"]
    assert measure_name("FD", None) is None


def test_the_number_leaves_the_name_at_fifty_thousand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PUBLISHED", 9)
    assert measured().record(0)["fd_label"] == "FD-Corners"


def test_statistics_alone_have_a_frechet_distance(tmp_path: Path) -> None:
    path, moments = tmp_path / "train.npz", moments_of(Corners()(REAL))
    np.savez(path, mu=moments.mean.numpy(), sigma=moments.covariance.numpy())
    distances = measured(open_reference(path, "corners", "train"), real=None)
    record = distances.record(0)
    assert record["fd"] == pytest.approx(measured().record(0)["fd"])
    assert (record["kid"], record["precision"], record["recall"], record["leads"]) == (None, None, None, "fd")
    assert "precision and recall compare images" in distances.notes[0]
    assert record["is"] is not None


def test_images_in_the_file_take_the_place_of_others(tmp_path: Path) -> None:
    path, expected = tmp_path / "train.npz", measured().record(0)
    np.savez(path, REAL.permute(0, 2, 3, 1).numpy())
    assert measured(open_reference(path, split="train"), real=None, batch=3).record(0) == pytest.approx(expected)
    # Statistics in the same file, of more images than it holds, are those of the Fréchet distance.
    np.savez(path, REAL.permute(0, 2, 3, 1).numpy(), mu=np.zeros(6), sigma=np.eye(6))
    both = measured(open_reference(path, "Corners", "train"), real=None).record(0)
    assert both["kid"] == pytest.approx(expected["kid"])
    moments = moments_of(Corners()(SAMPLES))
    zero, eye = torch.zeros(6).double(), torch.eye(6).double()
    assert both["fd"] == pytest.approx(frechet_from_moments(*moments, zero, eye))


def test_too_few_for_k_and_broken_features() -> None:
    distances = measured(real=REAL[:3])
    record = distances.record(0)
    assert record["kid"] is not None
    assert record["precision"] is None
    assert "at least 4 images a side, not 3" in distances.notes[0]

    class Broken(Corners):
        def _outputs(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            features, logits = super()._outputs(pixels)
            return features / 0 * 0, logits

    with pytest.raises(EvaluationError, match="features Corners of the measured images hold NaN"):
        Distances(Features(Broken(), None), of_samples=True).add_measured(SAMPLES)


class Pictures:
    size = (4, 6)
    labels = np.zeros(len(REAL), dtype=np.int64)

    def center_view(self, index: int) -> np.ndarray:
        return REAL[index].numpy()


def test_statistics_stream() -> None:
    statistics = statistics_of(Pictures(), np.arange(7), Corners(), batch=3)
    expected = moments_of(Corners()(REAL))
    torch.testing.assert_close(statistics.covariance, expected.covariance)
    again = GaussianStatistics.from_state(statistics.state())
    assert (again.count, again.dimension) == (7, 6)
    assert torch.equal(again.covariance, statistics.covariance)
    assert torch.equal(gather_statistics(again, ALONE).mean, statistics.mean)


def test_shares_are_runs_of_whole_batches() -> None:
    steps = range(0, 50, 7)
    for world in (1, 2, 3, 5, 11):
        parts = [list(Processes(rank, world).share(steps)) for rank in range(world)]
        assert [step for part in parts for step in part] == list(steps)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def in_a_process() -> Record:
    """What one of several processes measures: its share of the samples and of the real images."""
    processes = Processes.join("cpu")
    distances = Distances(Features(Corners(), None), of_samples=True, processes=processes)
    for start in processes.share(range(0, len(SAMPLES), 4)):
        distances.add_measured(SAMPLES[start : start + 4])
    for _ in processes.share(range(0, 4, 4)):  # one batch, so that one of the processes has none
        distances.add_reference(REAL[:4])
    statistics = statistics_of(Pictures(), np.arange(7), Corners(), batch=3, processes=processes)
    trace = float(statistics.covariance.trace())
    return distances.record(0) | {"trace": round(trace, 12), "rank": processes.rank, "world": processes.world}


@pytest.mark.slow
def test_two_processes_give_the_figures_of_one() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = f"""
import importlib.util, json
spec = importlib.util.spec_from_file_location("measured", {__file__!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(json.dumps(module.in_a_process()))
"""
    launched = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    path = os.pathsep.join([str(Path(prologue.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=os.environ | launched | {"RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    main, other = (json.loads(process.communicate(timeout=120)[0].splitlines()[-1]) for process in running)
    alone = in_a_process()
    assert (main.pop("rank"), main.pop("world"), other["rank"], other["world"]) == (0, 2, 1, 2)
    assert main == {name: value for name, value in alone.items() if name not in ("rank", "world")}
    assert (other["fd"], other["fd_label"], other["trace"]) == (None, main["fd_label"], main["trace"])
