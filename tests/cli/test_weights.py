"""`prologue weights` with small stand-ins for the published files: found, downloaded, converted, refused."""

from __future__ import annotations

import hashlib
import pickle
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from prologue.cli import weights
from prologue.cli.main import main
from prologue.models import perceptual, published
from prologue.models.perceptual import ConvNeXtLogits, Lpips, perceptual_loss
from prologue.models.published import PUBLISHED, place
from prologue.models.weights import read_tensors
from prologue.utils.rng import torch_stream


def tiny_lpips() -> Lpips:
    return Lpips((2, 3), (1, 1))


def tiny_convnext() -> ConvNeXtLogits:
    return ConvNeXtLogits((1,), (8,), classes=5, resolution=32)


def random_state(module: nn.Module) -> dict[str, torch.Tensor]:
    generator = torch_stream(0, "weights")
    return {name: torch.rand(value.shape, generator=generator) for name, value in module.state_dict().items()}


class Standins:
    """Published files of small networks in a folder that a local server offers, and the table changed to them."""

    def __init__(self, folder: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.lpips, self.convnext = random_state(tiny_lpips()), random_state(tiny_convnext().net)
        vgg = {name: value for name, value in self.lpips.items() if name.startswith("features.")}
        vgg["classifier.0.weight"] = torch.zeros(2, 2)
        lin = {name: value for name, value in self.lpips.items() if name not in vgg}
        lin = {name.replace(".weight", ".model.1.weight"): value for name, value in lin.items()}
        contents = {"lpips": (vgg, lin), "convnext": (self.convnext,), "inception": ({"fc.weight": torch.ones(3)},)}
        self.names: dict[str, list[str]] = {}
        for network, parts in contents.items():
            sources = []
            for source, tensors in zip(PUBLISHED[network].sources, parts, strict=True):
                path = folder / source.name
                torch.save(tensors, path, _use_new_zipfile_serialization=network != "lpips")  # as VGG-16's is
                digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
                sources.append(replace(source, url=f"{address}/{source.name}", sha256=digest, package=None))
            monkeypatch.setitem(PUBLISHED, network, replace(PUBLISHED[network], sources=tuple(sources)))
            self.names[network] = [source.name for source in sources]

    def paths(self, network: str) -> list[str]:
        return [str(self.folder / name) for name in self.names[network]]


@pytest.fixture
def standins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Standins]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    (tmp_path / "served").mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "served"))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setattr(published, "cache_folder", lambda: tmp_path / "cache")
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
        monkeypatch.setattr(perceptual, "Lpips", tiny_lpips)
        monkeypatch.setattr(perceptual, "ConvNeXtLogits", tiny_convnext)
        monkeypatch.setitem(weights.MADE, "lpips", (weights.MADE["lpips"][0], tiny_lpips))
        monkeypatch.setitem(weights.MADE, "convnext", (weights.MADE["convnext"][0], lambda: tiny_convnext().net))
        yield Standins(tmp_path / "served", f"http://127.0.0.1:{server.server_port}", monkeypatch)
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("network", ["lpips", "convnext"])
def test_downloads_and_makes_what_the_training_finds(
    network: Any, standins: Standins, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["weights", network]) == 0
    assert str(place(network)) in capsys.readouterr().out
    made = read_tensors(place(network))
    wanted = getattr(standins, network)
    assert made.keys() == wanted.keys()
    assert all(torch.equal(made[name], wanted[name]) for name in wanted)
    loss = perceptual_loss(network)  # without a path
    x = torch.rand(1, 3, 32, 32)
    assert loss is not None
    assert loss(x, x).item() == 0
    for file in standins.folder.iterdir():
        file.unlink()
    assert main(["weights", network]) == 0
    assert "exists already" in capsys.readouterr().out
    place(network).write_bytes(b"cut off")
    assert main(["weights", network]) == 0  # from torch's cache, which the first call filled
    assert "making it again" in capsys.readouterr().err
    assert read_tensors(place(network)).keys() == wanted.keys()
    left = [file.name for file in tmp_path.rglob("*") if file.is_file() and file.name.endswith(("tmp", "partial"))]
    assert left == []


def test_files_are_given_by_path_under_any_name(standins: Standins, tmp_path: Path) -> None:
    first, second = standins.paths("lpips")
    renamed, out = tmp_path / "vgg16 (1).pth", tmp_path / "made" / "lpips.safetensors"
    Path(first).rename(renamed)
    assert main(["weights", "lpips", second, str(renamed), "--out", str(out)]) == 0
    assert read_tensors(out).keys() == standins.lpips.keys()
    assert not place("lpips").exists()


def test_inception_stays_the_published_file(standins: Standins, capsys: pytest.CaptureFixture[str]) -> None:
    (file,) = standins.paths("inception")
    assert main(["weights", "inception", file]) == 0
    assert place("inception").read_bytes() == Path(file).read_bytes()
    assert main(["weights", "inception"]) == 0
    assert "exists already" in capsys.readouterr().out


def test_without_a_network_the_file_to_fetch_is_named(standins: Standins, refused: Callable[..., None]) -> None:
    first, second = map(Path, standins.paths("lpips"))
    first.unlink()
    url = PUBLISHED["lpips"].sources[0].url
    run = f"prologue weights lpips {first.name}"
    refused(["weights", "lpips"], f"{first.name} cannot be downloaded", f"download {url}", run)
    refused(["weights", "lpips", str(second)], f"download {url}")
    assert not place("lpips").exists()


def test_damaged_and_other_files_are_refused(
    standins: Standins,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    refused: Callable[..., None],
) -> None:
    (file,) = map(Path, standins.paths("convnext"))
    whole = file.read_bytes()
    cut = tmp_path / file.name
    cut.write_bytes(whole[:-100])
    refused(["weights", "convnext", str(cut)], "none of the published files", "truncated", file.name)
    refused(["weights", "convnext", str(tmp_path / "gone.pth")], "gone.pth is not a file")
    file.write_bytes(whole[:-100])  # what a server may send, too
    refused(["weights", "convnext"], "cannot be downloaded", "invalid hash")
    assert not list((tmp_path / "hub").rglob("*.pth"))
    cached = tmp_path / "hub" / "checkpoints" / file.name
    cached.write_bytes(whole[:-100])
    refused(["weights", "convnext"], f"{cached} is not the published", "delete it")

    def publish(content: bytes) -> str:
        path = tmp_path / "other.pth"
        path.write_bytes(content)
        (source,) = PUBLISHED["convnext"].sources
        source = replace(source, sha256=hashlib.sha256(content).hexdigest())
        monkeypatch.setitem(PUBLISHED, "convnext", replace(PUBLISHED["convnext"], sources=(source,)))
        return str(path)

    refused(["weights", "convnext", publish(pickle.dumps(Evil(), protocol=2))], "more than tensors")
    torch.save({"features.0.0.weight": torch.zeros(1)}, tmp_path / "small.pth")
    refused(["weights", "convnext", publish((tmp_path / "small.pth").read_bytes())], "lacks")
    assert "unpickled" not in capsys.readouterr().out
    assert not place("convnext").exists()


class Evil:
    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return print, ("unpickled",)


def test_the_linear_layers_come_from_a_dependency() -> None:
    """torchmetrics holds the file that LPIPS publishes: of its network alone VGG-16 has to be fetched."""
    source = PUBLISHED["lpips"].sources[1]
    file = published.fetch(source)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == source.sha256
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in Lpips().state_dict().items() if name.startswith("lin")}
    found = {name.replace(".model.1", ""): value for name, value in published.read_published(file).items()}
    assert {name: value.shape for name, value in found.items()} == shapes
    assert all(bool((value >= 0).all()) for value in found.values())


def test_the_help_lists_what_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "--help"]) == 0
    shown = capsys.readouterr().out
    for part in ("vgg16-397923af.pth", "528 MiB", "convnext_small-0c510722.pth", "6726825d", "BSD-3-Clause"):
        assert part in shown
    assert main(["weights", "vgg"]) == 2
    assert "lpips" in capsys.readouterr().err
