"""`prologue generate` and `prologue resample` on a tiny saved model: files, grids, and refusals that lose nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prologue import Guidance, Pipeline
from prologue.cli.main import main
from prologue.sampling.manifest import Manifest
from prologue.sampling.recipe import Recipe

pytestmark = pytest.mark.slow

SPLIT = Guidance.split(("constant", 0.7), ("cosine", 3.75, 0.2))


@pytest.fixture(scope="module")
def run_folder(tiny_models, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("run")
    Pipeline(*tiny_models(), Manifest(("ring", "old star", "7"), Recipe(SPLIT))).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "my photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 20, 4), dtype=np.uint8)).save(path)
    return path


def test_generate_writes_pictures_grid_and_archive(run_folder: str, tmp_path: Path) -> None:
    out, figures = tmp_path / "out", tmp_path / "figures.json"
    argv = ["generate", run_folder, "--classes", "ring,1", "--count", "5", "--seed", "3", "--out", str(out)]
    assert main([*argv, "--device", "cpu", "--batch", "2", "--json", str(figures)]) == 0
    expected = Pipeline.from_pretrained(run_folder, device="cpu").generate(["ring", 1], count=5, seed=3, batch=2)
    names = [f"0000{i}_{'old-star' if i % 2 else 'ring'}_seed{3 + i}.png" for i in range(5)]
    assert sorted(path.name for path in out.iterdir()) == [
        *names,
        "generation.json",
        "grid.png",
        "samples.npz",
    ]
    for name, image in zip(names, expected.images, strict=True):
        with Image.open(out / name) as written:
            assert np.array_equal(np.array(written), np.array(image))
    archive = np.load(out / "samples.npz", allow_pickle=False)
    assert np.array_equal(archive["arr_0"], np.stack([np.array(image) for image in expected.images]))
    assert archive["arr_0"].shape == (5, 8, 12, 3)
    assert archive["class_ids"].tolist() == [0, 1, 0, 1, 0]
    assert archive["class_names"].tolist() == ["ring", "old star", "7"]
    assert archive["seeds"].tolist() == [3, 4, 5, 6, 7]
    assert np.array_equal(archive["visual"], expected.tokens.visual.numpy())
    assert np.array_equal(archive["prologue"], expected.tokens.prologue.numpy())
    measured = json.loads(figures.read_text())
    assert measured["records"][1] == {"file": names[1], "class": "old star", "class_id": 1, "seed": 4}
    assert measured["provenance"]["command"].startswith("prologue generate")


def test_one_image_is_not_called_images(run_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["generate", run_folder, "--count", "1", "--out", str(tmp_path)]
    assert main(argv) == main(argv) == 0
    made, found = capsys.readouterr().out.splitlines()
    assert made.startswith("1 image (PNG files and NPZ) and grid.png are in")
    assert found == f"{tmp_path} already holds this 1 image (PNG files and NPZ)"


def test_counts_and_classes_left_out(run_folder: str, tmp_path: Path) -> None:
    assert main(["generate", run_folder, "--out", str(tmp_path / "all")]) == 0
    assert np.load(tmp_path / "all" / "samples.npz")["class_ids"].tolist() == [i % 3 for i in range(16)]
    # A name wins over an id: class 2 is called "7".
    assert main(["generate", run_folder, "--classes", "7,0", "--out", str(tmp_path / "two")]) == 0
    assert np.load(tmp_path / "two" / "samples.npz")["class_ids"].tolist() == [2, 0]


def test_options_reach_the_sampler(run_folder: str, tmp_path: Path) -> None:
    flags = ["--guidance", "overall:linear:3", "--temperature", "0.8", "--prologue-temperature", "0.5"]
    flags += ["--top-k", "4", "--top-p", "0.9"]
    assert main(["generate", run_folder, "--classes", "0", "--count", "3", "--out", str(tmp_path / "a"), *flags]) == 0
    expected = Pipeline.from_pretrained(run_folder, device="cpu").sample(
        0,
        count=3,
        guidance=Guidance.overall("linear", 3),
        temperature=0.8,
        prologue_temperature=0.5,
        top_k=4,
        top_p=0.9,
    )
    assert np.array_equal(np.load(tmp_path / "a" / "samples.npz")["visual"], expected.visual.numpy())


def test_the_null_class_leaves_stored_guidance_out(
    run_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., None]
) -> None:
    assert main(["generate", run_folder, "--classes", "null", "--count", "3", "--out", str(tmp_path / "n")]) == 0
    said = capsys.readouterr().err
    assert said.count("note: ") == 1
    assert "null class" in said
    assert (tmp_path / "n" / "00000_null_seed0.png").is_file()
    refused(
        ["generate", run_folder, "--classes", "null", "--guidance", "overall:constant:2", "--out", str(tmp_path / "m")],
        "null class",
    )


def test_no_classes_no_names(tiny_models, tmp_path: Path) -> None:
    Pipeline(*tiny_models(num_classes=0)).save_pretrained(tmp_path / "run")
    assert main(["generate", str(tmp_path / "run"), "--count", "2", "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "00001_seed1.png").is_file()


def test_resample_writes_pictures_grid_and_archive(run_folder: str, picture: Path, tmp_path: Path) -> None:
    other = tmp_path / "b.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (8, 12, 3), dtype=np.uint8)).save(other)
    out = tmp_path / "out"
    argv = ["resample", run_folder, str(picture), str(other), "--classes", "ring,old star", "--count", "3"]
    assert main([*argv, "--seed", "9", "--out", str(out)]) == 0
    pipe = Pipeline.from_pretrained(run_folder, device="cpu")
    with Image.open(picture) as first, Image.open(other) as second:
        expected = pipe.resample([first, second], ["ring", "old star"], count=3, seed=9)
    names = [f"0000{i}_{'my-photo' if i < 3 else 'b'}_seed{9 + i}.png" for i in range(6)]
    assert sorted(path.name for path in out.iterdir()) == [*names, "generation.json", "grid.png", "samples.npz"]
    archive = np.load(out / "samples.npz")
    together = np.stack([np.array(image) for image in expected.images]).astype(int)
    assert np.abs(archive["arr_0"] - together).max() <= 1  # the command draws one source at a time
    assert archive["source"].tolist() == [0, 0, 0, 1, 1, 1]
    assert np.array_equal(archive["visual"], expected.tokens.visual.numpy())
    assert (archive["prologue"][:3] == archive["prologue"][0]).all()


def test_resample_fills_up_what_is_gone(
    run_folder: str,
    picture: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., None],
) -> None:
    out = tmp_path / "out"
    other = tmp_path / "b.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (8, 12, 3), dtype=np.uint8)).save(other)
    argv = ["resample", run_folder, str(picture), str(other), "--count", "2", "--out", str(out)]
    drawn, draw = [], Pipeline.resample
    monkeypatch.setattr(Pipeline, "resample", lambda *args, **options: (drawn.append(1), draw(*args, **options))[1])
    assert main(argv) == 0
    whole = {path.name: path.read_bytes() for path in out.iterdir()}
    for names, damage, times in (
        ([], b"", 0),
        (["00001_my-photo_seed1.png"], None, 0),
        (["00001_my-photo_seed1.png", "grid.png"], b"half", 0),
        (["samples.npz"], None, 2),
        (["samples.npz"], whole["samples.npz"][:-9], 2),
    ):
        for name in names:
            (out / name).unlink() if damage is None else (out / name).write_bytes(damage)
        drawn.clear()
        capsys.readouterr()
        assert main(argv) == 0
        assert ("already holds these 4 images" in capsys.readouterr().out) is not bool(names)
        assert len(drawn) == times
        assert {path.name: path.read_bytes() for path in out.iterdir()} == whole
    refused([*argv, "--seed", "1"], r"other settings \(seed: 0 → 1\).*--overwrite")
    assert main([*argv, "--seed", "1", "--overwrite"]) == 0
    assert (out / "00003_b_seed4.png").is_file()
    assert len(list(out.iterdir())) == len(whole)


def test_nothing_is_overwritten_unasked(run_folder: str, tmp_path: Path, refused: Callable[..., None]) -> None:
    out = tmp_path / "out"
    argv = ["generate", run_folder, "--classes", "ring", "--out", str(out)]
    assert main([*argv, "--count", "3"]) == 0
    (out / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    refused([*argv, "--count", "1"], r"other settings \(count: 3 → 1\).*--overwrite")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    refused([*argv[:-1], str(tmp_path / "other")], "not empty.*--overwrite")
    refused([*argv, "--count", "3", "--classes", "ring,ring"], r"classes: \['ring'\] → \['ring', 'ring'\]")
    refused([*argv, "--guidance", "overall:constant:2", "--classes", "null", "--overwrite"], "null class")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert main([*argv, "--count", "1", "--seed", "5", "--overwrite"]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "00000_ring_seed5.png",
        "generation.json",
        "grid.png",
        "notes.txt",
        "samples.npz",
    ]
    refused([*argv[:-1], str(out / "notes.txt")], "is a file")


def test_mistakes_are_named(
    run_folder: str, picture: Path, tiny_models, tmp_path: Path, refused: Callable[..., None]
) -> None:
    out = ["--out", str(tmp_path / "out")]
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(picture.read_bytes()[:200])
    plain = tmp_path / "plain"
    Pipeline(*tiny_models("2d")).save_pretrained(plain)
    for argv, named in (
        (["generate", run_folder, "--classes", "rang", *out], "'rang'.*did you mean 'ring'"),
        (["generate", run_folder, "--classes", "9", *out], "unknown class 9"),
        (["generate", run_folder, "--count", "0", *out], "--count"),
        (["generate", run_folder, "--batch", "0", *out], "--batch"),
        (["generate", run_folder, "--top-k", "0", *out], "top_k"),
        (["generate", run_folder, "--top-p", "1.5", *out], "top_p"),
        (["generate", run_folder, "--temperature", "0", *out], "temperature"),
        (["generate", run_folder, "--guidance", "cosine:3", *out], "--guidance 'cosine:3'.*overall:cosine"),
        (["generate", str(tmp_path / "nowhere"), *out], "nowhere does not exist"),
        (["resample", run_folder, *out], "no image"),
        (["resample", run_folder, str(tmp_path / "gone.png"), *out], "gone.png is not a file"),
        (["resample", run_folder, str(damaged), *out], "damaged.png cannot be read"),
        (["resample", run_folder, str(picture), "--count", "0", *out], "--count"),
        (["resample", run_folder, str(picture), "--classes", "ring,7", *out], "one class, or one per image"),
        (["resample", str(plain), str(picture), *out], "tokenizer works without"),
    ):
        refused(argv, named)
    assert not (tmp_path / "out").exists()


def test_seeds_beyond_64_bits_are_refused_before_anything_is_written(
    run_folder: str, picture: Path, tmp_path: Path, refused: Callable[..., None]
) -> None:
    out, last = tmp_path / "out", 2**63 - 1
    named = r"seeds are whole numbers from -2\*\*63 to 2\*\*63 - 1, not 9223372036854775806…9223372036854775808"
    sampling = ["--seed", str(last - 1), "--device", "cpu", "--out", str(out)]
    for argv in (
        ["generate", run_folder, "--count", "3", *sampling],
        ["generate", run_folder, "--classes", "0,1,7", *sampling],
        ["resample", run_folder, str(picture), "--count", "3", *sampling],
        ["evaluate", "generation", run_folder, "--data", "shapes", "--count", "3", "--seed", str(last - 1)],
    ):
        refused(argv, named)
    refused(["resample", run_folder, *[str(picture)] * 3, "--count", "1", *sampling], named)
    assert not out.exists()
    for argv in (["generate", run_folder, "--count", "2"], ["resample", run_folder, str(picture), "--count", "2"]):
        assert main([*argv, *sampling, "--overwrite"]) == 0
        assert np.load(out / "samples.npz")["seeds"].tolist() == [last - 1, last]
    for argv in (["train", "--preset", "shapes-smoke", "--data", "shapes"], ["reproduce"]):
        refused(
            [*argv, "--out", str(tmp_path / "run"), "--seed", str(2**63)],
            r"2\*\*63 - 1, not 9223372036854775808",
        )
    for command in ("demo", "reproduce"):
        refused([command, "--out", str(tmp_path / "run"), "--seed", "-1"], "--seed must not be negative, is -1")
    assert not (tmp_path / "run").exists()
