"""`prologue train` as users and clusters run it: killed, terminated, launched twice, and given impossible things."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from prologue.cli.main import main
from prologue.errors import ConfigError
from prologue.models.weights import read_tensors
from prologue.training.run import RunFolder

pytestmark = pytest.mark.slow

STACK = {"width": 32, "depth": 1, "heads": 2}
RATES = {"lr": 1e-3, "warmup": 2, "hold": 4}
CONFIG = {
    "data": {"shapes_images": 10, "shapes_validation": 6},
    "tokenizer": {
        "image_size": [24, 24], "patch_size": 8, "encoder": STACK, "decoder": STACK, "codebook_size": 32,
        "prologue_tokens": 3, "prologue_codebook_size": 8,
    },
    "prior": {**STACK, "dropout": 0.1},
    "tokenizer_training": {
        "steps": 12, "batch": 4, "autoencoder": RATES, "prior": RATES, "discriminator": RATES,
        "prior_model": STACK, "ema_half_life": 3, "prior_ema_half_life": 3, "gan": 0.1,
        "gan_start": 3, "gan_channels": 4, "r1_every": 3, "revive_every": 4, "prologue_kmeans": [3],
    },
    "prior_training": {"steps": 12, "batch": 4, "optimizer": RATES, "ema_half_life": 3},
    "checkpoint_every": 5, "log_every": 4, "sample_every": 6,
}  # fmt: skip

KILLED = """
import os, signal, sys
import prologue.training.prior_stage as prior, prologue.training.tokenizer_stage as tokenizer
import prologue.training.tokens_stage as tokens
from prologue.cli.main import main
from prologue.errors import ConfigError

where, step, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
calls = 0

def strike(owner, name):
    inner = getattr(owner, name)
    def struck(self, *arguments):
        global calls
        calls += 1
        if calls == step:
            os.kill(os.getpid(), number)
        return inner(self, *arguments)
    setattr(owner, name, struck)

strike(*{"tokenizer": (tokenizer.TokenizerStage, "step"), "tokens": (tokens.Tokenizer, "encode"),
         "prior": (prior.PriorStage, "step")}[where])
sys.exit(main(sys.argv[4:]))
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options of a tiny run, without --out."""
    file = tmp_path_factory.mktemp("settings") / "tiny.json"
    file.write_text(json.dumps(CONFIG))
    return ["train", "--preset", "shapes-smoke", "--config", str(file), "--data", "shapes", "--device", "cpu"]


@pytest.fixture(scope="module")
def whole(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert main([*settings, "--out", str(out)]) == 0
    return out


def weights(run: Path) -> list[str]:
    files = [run / name / "model.safetensors" for name in ("tokenizer", "prior")]
    files += sorted((run / "tokens").iterdir())
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


def struck(where: str, step: int, number: int, argv: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", KILLED, where, str(step), str(number), *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_killed_in_every_stage_it_ends_with_the_same_bits(settings: list[str], whole: Path, tmp_path: Path) -> None:
    argv = [*settings, "--out", str(tmp_path / "run")]
    for where, step in (("tokenizer", 8), ("tokens", 1), ("prior", 8)):
        assert struck(where, step, signal.SIGKILL, argv).returncode == -signal.SIGKILL
        stages = RunFolder.load(tmp_path / "run").record["stages"]
        assert not stages.get(where, {}).get("finished")
    assert main(argv) == 0
    assert weights(tmp_path / "run") == weights(whole)
    steps = [(record["stage"], record["step"]) for record in RunFolder.load(tmp_path / "run").metrics()]
    assert steps == [(record["stage"], record["step"]) for record in RunFolder.load(whole).metrics()]


def test_a_finished_run_ends_with_a_picture(whole: Path) -> None:
    with Image.open(whole / "overview.png") as picture:
        assert picture.width > 4 * 128  # images of four classes, enlarged
        assert picture.height > 4 * 128  # two rows of reconstructions and two of samples


def test_terminated_it_says_how_to_go_on(settings: list[str], whole: Path, tmp_path: Path) -> None:
    argv = [*settings, "--out", str(tmp_path / "run")]
    done = struck("tokenizer", 7, signal.SIGTERM, argv)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "stopped in stage tokenizer after step 7. Run the same command again to continue" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "run" / "checkpoints" / "tokenizer" / "step-00000007").is_dir()
    assert main(argv) == 0
    assert weights(tmp_path / "run") == weights(whole)


@pytest.mark.parametrize("parts", ["1", "2"])
def test_two_processes_train_what_one_does(settings: list[str], tmp_path: Path, parts: str) -> None:
    """Without what draws per process (dropout, augmentation, batch norm), up to the order of sums."""
    plain = [
        *settings, "--precision", "fp32", "--tokenizer-training.gan", "0",
        "--prior.dropout", "0", "--tokenizer-training.steps", "6", "--prior-training.steps", "6",
        "--tokenizer-training.ce-start", "2", "--log-every", "1", "--sample-every", "3",
    ]  # fmt: skip
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "prologue"]
    accumulate = ["--tokenizer-training.accumulate", parts, "--prior-training.accumulate", parts]
    both = [sys.executable, *launch, *plain, *accumulate, "--out", str(tmp_path / "two")]
    done = subprocess.run(both, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("is finished. Next") == 1
    assert main([*plain, "--out", str(tmp_path / "one")]) == 0
    runs = [RunFolder.load(tmp_path / name) for name in ("one", "two")]
    for one, two in zip(*(run.metrics() for run in runs), strict=True):
        assert one.keys() == two.keys()
        figures = [key for key in one if key not in ("stage", "images_per_second")]
        assert [one[key] for key in figures] == pytest.approx([two[key] for key in figures], rel=1e-4, abs=1e-5)
    for name in ("tokenizer", "prior"):
        one, two = (read_tensors(run.path / name / "model.safetensors") for run in runs)
        for key in one:
            assert torch.allclose(one[key], two[key], atol=1e-5), key


def test_a_run_is_finished_once(settings: list[str], whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = weights(whole)
    capsys.readouterr()
    assert main([*settings, "--out", str(whole)]) == 0
    said = capsys.readouterr().err
    assert said.count("finished already") == 3
    assert f"Next: prologue generate {whole}" in said
    assert weights(whole) == before


def test_a_stage_alone_says_what_is_left(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*settings, "--out", str(tmp_path / "run"), "--stage", "tokenizer"]) == 0
    said = capsys.readouterr().err
    assert "The stage tokenizer of" in said
    assert "prologue generate" not in said
    assert "tokenizer 12/12" in said


def test_changed_settings_are_refused_with_the_difference(
    settings: list[str], whole: Path, refused: Callable[..., None]
) -> None:
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    again = [*settings, "--out", str(whole)]
    refused([*again, "--seed", "1"], "seed: 0 in the run, 1 now")
    refused([*again, "--tokenizer-training.autoencoder.lr", "2"], r"autoencoder\.lr: 0\.001 in the run, 2\.0 n")
    assert main([*again, "--log-every", "7"]) == 0
    assert {path for path, content in before.items() if path.read_bytes() != content} == set()


def test_impossible_things_are_refused(
    settings: list[str], tmp_path: Path, refused: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = ["--out", str(tmp_path / "run")]
    here = [*settings, *out]
    data = settings.index("--data") + 1
    for name in ("empty", "texts", "damaged", "mine"):
        (tmp_path / name).mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a")
    (tmp_path / "mine" / "thesis.txt").write_text("…")
    Image.new("RGB", (30, 30)).save(tmp_path / "damaged" / "good.png")
    (tmp_path / "damaged" / "bad.png").write_bytes((tmp_path / "damaged" / "good.png").read_bytes()[:60])

    def on(where: str) -> list[str]:
        return [*settings[:data], where, *settings[data + 1 :], *out]

    small = ["--tokenizer.image-size", "16", "16"]
    for argv, named in (
        ([*here, "--preset", "smal-32"], "unknown preset 'smal-32'.*small-32"),
        ([*here, "--tokenizer.pach-size", "4"], r"--tokenizer\.pach-size, 4 \(did you mean --tokenizer\.pat"),
        ([*here, "--stage", "prio"], "prio"),
        ([*here, "--tokenizer.patch-size", "7"], "image rows 24 is not divisible by the patch size 7: choose 21"),
        ([*here, "--prior.heads", "5"], "width 32 is not divisible by heads 5"),
        ([*here, *small], "needs images of at least 24 px, not 16: set tokenizer_training.gan to 0"),
        ([*here, "--tokenizer-training.perceptual", "vgg"], "vgg"),
        ([*here, "--tokenizer-training.perceptual", "lpips"], "'lpips' needs a weight file"),
        ([*here, "--tokenizer-training.perceptual", "lpips", "--tokenizer-training.perceptual-path", "no.safetensors"],
         "no.safetensors does not exist"),
        ([*here, "--tokenizer", str(tmp_path / "gone")], "gone"),
        ([*here, "--tokenizer", str(tmp_path / "mine")], "mine/tokenizer holds no finished model"),
        ([*here, "--config", str(tmp_path / "gone.json")], "gone.json does not exist"),
        (on(str(tmp_path / "empty")), "empty"),
        (on(str(tmp_path / "texts")), "texts"),
        (on(str(tmp_path / "nowhere")), "no folder or zip named .*nowhere"),
        (on(str(tmp_path / "damaged")), "bad.png.*skip"),
        ([*settings, "--out", str(tmp_path / "mine")], "mine exists and is not a run folder"),
        ([*settings, "--out", str(tmp_path / "texts" / "a.txt")], "a.txt is a file: give a folder"),
        ([*here, "--stage", "prior"], "stage 'prior' needs the finished stage 'tokens'"),
    ):  # fmt: skip
        refused(argv, named)
    if not torch.cuda.is_available():
        refused([*here, "--device", "cuda"], "device 'cuda' is not available")
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"]
    # None of these mistakes stands in the way of the right command.
    assert main([*here, "--stage", "tokenizer"]) == 0


def test_flags_that_a_finished_tokenizer_cannot_follow_are_refused(
    whole: Path, settings: list[str], tmp_path: Path, refused: Callable[..., None]
) -> None:
    argv = [*settings, "--out", str(tmp_path / "run"), "--tokenizer", str(whole), "--stage", "tokenizer"]
    named = r"--tokenizer\.codebook-size: the tokenizer of .* has \d+, and 999 was asked for: leave the flag out"
    refused([*argv, "--tokenizer.codebook-size", "999"], named)
    assert not (tmp_path / "run").exists()
    own = str(json.loads((whole / "tokenizer" / "config.json").read_text())["codebook_size"])
    assert main([*argv, "--tokenizer.codebook-size", own]) == 0


def test_a_training_that_would_be_cut_up_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.utils import DistributedType

    from prologue.training.train import make_accelerator

    class Launched:
        distributed_type = DistributedType.FSDP

        def __init__(self, **options: object) -> None: ...

    monkeypatch.setattr("accelerate.Accelerator", Launched)
    with pytest.raises(ConfigError, match="plain data parallelism, not FSDP"):
        make_accelerator("fp32", "cpu")


def test_extend_continues_a_finished_run(
    settings: list[str],
    whole: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    refused: Callable[..., None],
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    argv = [*settings, "--out", str(tmp_path / "run"), "--prior-training.steps", "15"]
    refused(argv, r"prior_training\.steps: 12 in the run, 15 now\nAdd --extend")
    assert main([*argv, "--extend"]) == 0
    assert "prior: continuing at step 12 of 15" in capsys.readouterr().err
    assert RunFolder.load(tmp_path / "run").metrics("prior")[-1]["step"] == 15
