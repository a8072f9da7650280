"""The scripts in `benchmarks` and `tools`: their configurations are valid, and their tables show the measurements."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from prologue import builtin
from prologue.config import RunConfig
from prologue.data.source import open_data
from prologue.evaluation.versions import VERSIONS
from prologue.models.tokenizer import Tokenizer
from prologue.models.weights import WEIGHTS, file_hash, model_hashes
from prologue.presets import preset
from prologue.studies.reproduce.scales import SCALES
from prologue.training.progress import Progress
from prologue.training.train import TrainRequest, train

ROOT = Path(__file__).parents[1]


def _script(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"script_{Path(path).stem}", ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ablation() -> ModuleType:
    return _script("benchmarks/ablation.py")


def test_every_change_differs_from_the_base(ablation: ModuleType) -> None:
    configs = {name: ablation.changed(name, 1) for name in ablation.CHANGES}
    assert all(isinstance(config, RunConfig) and config.seed == 1 for config in configs.values())
    # `again` is the one exception: it repeats `base` and shares no files with it.
    assert configs.pop("again") == configs["base"]
    assert len({repr(config) for config in configs.values()}) == len(configs)
    hashes = [(hash_of("base", 1), hash_of("again", 1)) for hash_of in (ablation.made_with, ablation.tokenizer_hash)]
    assert all(first != second for first, second in hashes)
    assert configs["2d"].tokenizer.prologue_tokens == 0
    images = {config.tokenizer_training.steps * config.tokenizer_training.batch for config in configs.values()}
    images |= {config.prior_training.steps * config.prior_training.batch for config in configs.values()}
    assert images == {48_000}


def test_results_of_other_settings_are_ignored(
    ablation: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ablation.results(tmp_path, 1) == []
    late, early = (
        {"change": name, "changes": ablation.CHANGES[name], "seed": 0, "figures": {},
         "made_with": ablation.made_with(name, 0)}
        for name in ("2d", "ce-3")
    )  # fmt: skip
    ablation.collect(tmp_path, [late, early])
    assert ablation.results(tmp_path, 1) == [early, late]
    # A result is recognised by its settings, even if the change had another name.
    monkeypatch.setattr(ablation, "CHANGES", {"base": ablation.CHANGES["ce-3"], "2d": {}})
    assert [each["change"] for each in ablation.results(tmp_path, 1)] == ["base", "2d"]
    monkeypatch.setattr(ablation, "SAMPLES", 100)
    assert ablation.results(tmp_path, 1) == []


@pytest.mark.slow
def test_changes_of_the_prior_share_a_tokenizer(
    ablation: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes = {name: ablation.tokenizer_hash(name, 0) for name in ablation.CHANGES}
    assert hashes["base"] == hashes["prior-dropout-0"] != hashes["few"] == hashes["few-keep-best"] != hashes["2d"]
    assert hashes["base"] != ablation.tokenizer_hash("base", 1)
    assert len({hashes[name] for name in ("embeddings-0.5", "base", "digits")}) == 3

    tiny = {"shapes_images": 64, "shapes_validation": 32, "tokenizer_steps": 12, "prior_steps": 6}
    monkeypatch.setattr(ablation, "SCALE", dataclasses.replace(SCALES["minutes"], **tiny))
    config = ablation.changed("prior-dropout-0", 3)
    data = open_data("shapes", config.data, config.tokenizer.image_size)
    alone = train(TrainRequest(config, "shapes", tmp_path / "alone", device="cpu"), Progress(), data=data)
    shared = ablation.trained_tokenizer(tmp_path, "base", 3, data)
    assert ablation.trained_tokenizer(tmp_path, "prior-dropout-0", 3, data) == shared
    request = TrainRequest(config, "shapes", tmp_path / "run", tokenizer_from=shared, device="cpu")
    run = train(request, Progress(), data=data)
    assert file_hash(run.prior_folder / WEIGHTS) == file_hash(alone.prior_folder / WEIGHTS)


def _record(change: str, seed: int, **figures: float) -> dict[str, Any]:
    return {"change": change, "seed": seed, "figures": figures}


def test_the_table_compares_within_a_seed(ablation: ModuleType) -> None:
    records = [_record("base", 0, psnr=20.0, cost=5.0), _record("base", 1, psnr=22.0, cost=5.0)]
    records += [_record("ce-3", 0, psnr=21.0, cost=4.0), _record("ce-3", 1, psnr=22.5, cost=6.0)]
    records += [_record("2d", 0, psnr=19.0)]
    _, _, base, other, plain = ablation.table(records)
    assert base.startswith("| `base` | 21.00 | – | – | 5.0 |")
    assert other.startswith("| `ce-3` | 21.75<br>+0.50 … +1.00 | – | – | 5.0<br>-1.0 … +1.0 |")
    assert plain.startswith("| `2d` | 19.00 | – | – | – |")
    assert plain.endswith("| 1 |")


def test_rows_of_other_images_have_their_own_base(ablation: ModuleType) -> None:
    records = [_record("base", seed, psnr=10.0 + seed) for seed in (0, 1)]
    records += [_record("digits", seed, psnr=20.0 + seed) for seed in (0, 1)]
    records += [_record("digits-ce-prologue-0", seed, psnr=30.0) for seed in (0, 1)]
    *_, own, other = ablation.table(records)
    assert own.startswith("| `digits` | 20.50 |")
    assert other.startswith("| `digits-ce-prologue-0` | 30.00<br>+9.00 … +10.00 |")


@pytest.fixture
def fill_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], str]:
    """Run study_page.py on a folder of results in a checkout at `tmp_path / "root"`, and return the page."""
    root, module = tmp_path / "root", _script("benchmarks/study_page.py")
    (root / "docs" / "images").mkdir(parents=True)
    (root / "benchmarks" / "results").mkdir(parents=True)
    (root / "docs" / "study.md").write_text("<!-- x -->\n<!-- end of x -->\n", encoding="utf-8")

    def fill(folder: Path) -> str:
        monkeypatch.setattr(sys, "argv", ["study_page.py", f"x={folder}", "--root", str(root)])
        module.main()
        return (root / "docs" / "study.md").read_text(encoding="utf-8")

    return fill


def test_the_page_contains_the_output_of_commands() -> None:
    filled = _script("benchmarks/study_page.py").filled
    page = "# Study\n\n<!-- a -->\n\nold\n\n<!-- end of a -->\n\nafter\n"
    assert filled(page, "a", "## New\n\ntext\n") == (
        "# Study\n\n<!-- a -->\n\n### New\n\ntext\n\n<!-- end of a -->\n\nafter\n"
    )
    with pytest.raises(SystemExit, match="one <!-- b -->"):
        filled(page, "b", "")


def test_the_page_contains_a_study_with_its_pictures(tmp_path: Path, fill_page: Callable[[Path], str]) -> None:
    study, root = tmp_path / "study", tmp_path / "root"
    (study / "pictures").mkdir(parents=True)
    (study / "results").mkdir()
    tables = "**Verdict**\n\n- said\n\n## Claims\n\n| a |\n\n## Budgets\n\n| b |\n\n## Generation\n\n| c |\n"
    (study / "tables.md").write_text(tables, encoding="utf-8")
    (study / "study.json").write_text("{}", encoding="utf-8")
    for seed in (7, 9):
        (study / "results" / f"2d-s{seed}.json").write_text(f'{{"seed": {seed}}}', encoding="utf-8")
    (study / "pictures" / "2d-s7-unguided.png").write_bytes(b"png")
    page = fill_page(study)
    picture = "![The first unguided samples of 2d, not picked, seed 7](images/study-x-2d-unguided.png)"
    link = "[All tables of this study](../benchmarks/results/study-x/tables.md)."
    shown = f"**Verdict**\n\n### Claims\n\n| a |\n\n### Generation\n\n| c |\n\n{link}\n\n### Pictures\n\n{picture}"
    assert shown in page
    assert (root / "benchmarks" / "results" / "study-x" / "tables.md").read_text(encoding="utf-8") == tables
    assert (root / "docs" / "images" / "study-x-2d-unguided.png").read_bytes() == b"png"
    kept = root / "benchmarks" / "results" / "study-x"
    assert {file.relative_to(kept).as_posix() for file in kept.rglob("*.json")} == {
        "study.json", "results/2d-s7.json", "results/2d-s9.json",
    }  # fmt: skip
    (study / "study.json").write_text("{ }", encoding="utf-8")
    with pytest.raises(SystemExit, match="keeps a study of other settings"):
        fill_page(study)
    shutil.copyfile(kept / "study.json", study / "study.json")
    # A study that continued from stored results has no pictures of its first seed; the page keeps the old ones.
    shutil.rmtree(study / "pictures")
    assert fill_page(study) == page


def test_the_page_contains_a_first_try(tmp_path: Path, fill_page: Callable[[Path], str]) -> None:
    tried, root = tmp_path / "tried", tmp_path / "root"
    (tried / "samples").mkdir(parents=True)
    (tried / "run" / "evaluations").mkdir(parents=True)
    (tried / "first-try.json").write_text("{}", encoding="utf-8")
    (tried / "first-try.md").write_text("| figure |\n", encoding="utf-8")
    (tried / "samples" / "grid.png").write_bytes(b"grid")
    (tried / "run" / "evaluations" / "memorisation-0a-closest.png").write_bytes(b"closest")
    picture = "![The first unguided samples, not picked, by class](images/study-x-samples.png)"
    assert f"| figure |\n\n{picture}" in fill_page(tried)
    assert (root / "docs" / "images" / "study-x-samples.png").read_bytes() == b"grid"
    assert (root / "docs" / "images" / "study-x-closest.png").read_bytes() == b"closest"
    assert (root / "benchmarks" / "results" / "first-try-x.json").read_text(encoding="utf-8") == "{}"


def test_the_card_of_the_builtin_model_matches_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["builtin_shapes.py"])
    maker = _script("tools/builtin_shapes.py")
    assert preset(maker.PRESET).tokenizer.variant == "prologue"
    shipped = Path(builtin.__file__).parent / "shapes"
    known = json.loads((shipped / builtin.CARD).read_text(encoding="utf-8"))
    assert (shipped / "README.md").read_text(encoding="utf-8") == "\n".join(maker.card_text(known)) + "\n"


def _interval(name: str, value: float) -> dict[str, float]:
    return {name: value, f"{name}_low": value / 2, f"{name}_high": 2 * value}


def test_the_table_of_a_first_try_shows_figures_beside_their_references() -> None:
    first_try = _script("benchmarks/first_try.py")
    seen = {"n": 40, "judge_n": 20, **_interval("rate", 0.25), **_interval("judge_rate", 0.4)}
    kid = {"kid_name": "KID-Lite0", **_interval("kid", 0.02)}
    near = {**_interval("coarse_share", 0.01), "coarse_share_expected": 0.02, **_interval("coarse_copies_share", 0.3)}
    records = {
        "reconstruction": {"n": 20, "psnr": 21.5, "notes": ["one"]},
        "likelihood": {"collapsed": False, "cost": 4.0, "diversity": 12.0, **_interval("use", 30.0)},
        "codebook": {"visual_usage": 1.0, "prologue_usage": 0.5, "notes": ["one", "two"]},
        "generation": {"classes": 8, "recognition": seen, **kid},
        "memorisation": {"n": 40, **near},
    }
    text = first_try.table(records)
    assert text.startswith("- Yes: no codebook collapses.\n- No: the asked class is seen more often")
    assert "- Yes: samples are no nearer to training images than chance allows.\n\n| figure | value |" in text
    assert "| asked class seen in samples, %, N = 40 | 25 (12.5 to 50) |\n| by chance, % | 12.5 |" in text
    assert "| class seen in held-out images by the same classifier, %, N = 20 | 40 (20 to 80) |" in text
    assert "| samples very near a training image, %, N = 40 | 1 (0.5 to 2) |" in text
    assert text.endswith("\n\n- one\n- two\n")
    assert first_try.slim({"a": [1], "notes": ["x"], "b": 2}) == {"notes": ["x"], "b": 2}


def test_icons_are_sorted_into_folders_by_group(tmp_path: Path) -> None:
    images = tmp_path / "package" / "img" / "twitter" / "64"
    images.mkdir(parents=True)
    groups = {"a.png": "Animals & Nature", "b.png": "Flags", "c.png": "Component", "d.png": "Flags", "e.png": "Flags"}
    for name in groups:
        (images / name).write_bytes(b"b" if name == "e.png" else name[:1].encode())
    emoji = [{"image": name, "category": group, "has_img_twitter": name != "d.png"} for name, group in groups.items()]
    (tmp_path / "package" / "emoji.json").write_text(json.dumps(emoji), encoding="utf-8")
    _script("benchmarks/lay_out.py").emoji(tmp_path / "package", tmp_path / "icons")
    laid = sorted(path.relative_to(tmp_path / "icons").as_posix() for path in (tmp_path / "icons").rglob("*.png"))
    assert laid == ["animals-and-nature/a.png", "flags/b.png"]


@pytest.fixture
def tiny_map(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`prologue_map.py` with a plan of one small cell at two lengths of stage 2."""
    module = _script("benchmarks/prologue_map.py")
    tiny = {
        "width": 32, "depth": 1, "prior_width": 32, "prior_depth": 1, "tokenizer_steps": 30, "prior_steps": 20,
        "prior_batch": 8, "shapes_images": 64, "shapes_validation": 64, "temperatures": (1.0, 0.9),
        "guidance_scales": (1.5,), "guided_temperatures": (1.0,), "sweep_samples": 16, "finalists": 1, "samples": 32,
        "measured_images": 32, "probe_images": 48,
    }  # fmt: skip
    monkeypatch.setattr(module, "BASE", dataclasses.replace(module.BASE, **tiny))
    monkeypatch.setattr(module, "POST_STEPS", 20)
    monkeypatch.setattr(module, "COMMITTED", Path("nowhere.json"))
    monkeypatch.setattr(module, "PLAN", tuple((module.plates(24, length, ":figures=kinds"), 0) for length in (1, 2)))
    return module


@pytest.mark.slow
def test_finished_cells_of_the_map_are_reused(
    tiny_map: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = torch.get_num_threads()
    asked: list[str] = []
    original = tiny_map.train

    def counted(request: TrainRequest, *arguments: Any, **others: Any) -> Any:
        asked.append(f"{request.out.name} {request.stage}")
        return original(request, *arguments, **others)

    monkeypatch.setattr(tiny_map, "train", counted)
    work = tmp_path / "work"
    try:
        tiny_map.main(["--work", str(work), "--only", "plates-figures=kinds-36"])
        (first,) = json.loads((work / "prologue-map.json").read_text(encoding="utf-8"))["records"]
        # What is there is taken over: the other length has the same tokenizers, and the finished cell is left alone.
        weights = {path: file_hash(path) for path in work.glob("tokenizers/*/*/tokenizer/*.safetensors")}
        tiny_map.main(["--work", str(work)])
        assert {path: file_hash(path) for path in work.glob("tokenizers/*/*/tokenizer/*.safetensors")} == weights
        assert len(weights) == 3
        done = len(asked)
        tiny_map.main(["--work", str(work)])
        assert len(asked) == done
        _earlier_form(work, first, tiny_map)
        monkeypatch.setattr(tiny_map, "evaluate_generation", lambda *args, **options: pytest.fail("measured again"))
        tiny_map.main(["--work", str(work)])
    finally:
        torch.set_num_threads(threads)
    again, longer = json.loads((work / "prologue-map.json").read_text(encoding="utf-8"))["records"]
    assert again | {"cpu_seconds": first["cpu_seconds"]} == first
    assert (first["tokens"], first["length"], longer["length"]) == (36, 1, 2)
    figures = first["figures"]
    paid = figures["cost"] + figures["visual_nats_with"]
    assert figures["nats_with"] == pytest.approx(paid, rel=1e-4)
    assert figures["gain"] == pytest.approx(figures["nats_without"] - paid, abs=1e-2)
    assert sum(figures["positions_without"]) == pytest.approx(figures["nats_without"], rel=1e-3)
    assert sum(figures["positions_with"]) == pytest.approx(figures["visual_nats_with"], rel=1e-3)
    # The blank prologue is the same code for all images, so it costs its prior almost nothing.
    (blank,) = work.glob("tokenizers/*/blank")
    tokens = Tokenizer.from_pretrained(blank / "tokenizer").encode(torch.rand(3, 3, 24, 24) * 2 - 1)
    other = Tokenizer.from_pretrained(blank.with_name("2d") / "tokenizer").encode(torch.zeros(1, 3, 24, 24))
    assert not tokens.prologue.any()
    assert (tokens.prologue.shape[1], other.prologue.shape[1]) == (6, 0)
    for arm in tiny_map.ARMS:
        assert [step for step, _ in figures[f"course_{arm}"]] == sorted(step for step, _ in figures[f"course_{arm}"])
        assert figures[f"course_{arm}"]
        assert sum(figures[f"positions_{arm}"]) > 0
        assert all(
            figures[f"{name}_{kind}_{arm}"] >= 0 for name in ("fd", "recognised") for kind in ("plain", "guided")
        )
        assert figures[f"temperature_plain_{arm}"] == 1
    assert {"figure", "figure_hue", "ground_hue", "x", "y"} == {each["factor"] for each in figures["factors"]}
    # Both priors see the same visual ids, because the two tokenizers share their visual path.
    assert longer["figures"]["rfd"] == figures["rfd"]
    rows = (work / "prologue-map.md").read_text(encoding="utf-8").splitlines()
    assert [row.split("|")[1:5] for row in rows[2:]] == [
        [" `plates:figures=kinds` ", " 36 ", f" × {length} ", " 1 "] for length in (1, 2)
    ]


def _earlier_form(work: Path, record: dict[str, Any], module: ModuleType) -> None:
    """Leave the first cell unfinished, with its measurements in one file, as earlier versions wrote them."""
    cell, seed = module.PLAN[0]
    (folder,) = (work / "cells").glob(f"{cell.name}-s{seed}-*")
    weights = {arm: model_hashes(folder / arm) for arm in module.ARMS}
    settings = module.made_with(cell, seed)
    of = {"reconstruction": ["with"], "recognition": ["with"], "factors": ["with"]}
    of |= {"with-likelihood": ["without", "with"], "blank-likelihood": ["without", "blank"]}
    records = []
    for file in (folder / "measures").glob("*.json"):
        name, stored = file.stem[:-13], json.loads(file.read_text(encoding="utf-8"))["records"][0]
        inputs = {"weights": [weights[arm] for arm in of.get(name, [name.partition("-")[0]])], "settings": settings}
        old = name.replace("-", " ") + (f" {stored['recipe']}" if name.endswith("-samples") else "")
        records.append(stored | {"name": old, "inputs": inputs | {"versions": VERSIONS}, "seconds": 1.0})
    shutil.rmtree(folder / "measures")
    (folder / "measures.json").write_text(json.dumps({"provenance": {}, "records": records}), encoding="utf-8")
    whole = json.loads((work / "prologue-map.json").read_text(encoding="utf-8"))
    whole["records"] = [each for each in whole["records"] if each != record]
    (work / "prologue-map.json").write_text(json.dumps(whole), encoding="utf-8")


def test_cells_of_other_settings_are_ignored(
    tiny_map: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell, _ = tiny_map.PLAN[0]
    record = {"cell": cell.name, "seed": 0, "made_with": tiny_map.made_with(cell, 0)}
    (tmp_path / "prologue-map.json").write_text(json.dumps({"records": [record]}), encoding="utf-8")
    assert tiny_map.results(tmp_path) == {(cell.name, 0): record}
    monkeypatch.setattr(tiny_map, "POST_STEPS", 21)
    assert tiny_map.results(tmp_path) == {}


def test_stored_results_are_still_recognised(ablation: ModuleType, tmp_path: Path) -> None:
    """A field that is added or renamed must not change the hash of the same settings."""
    module = _script("benchmarks/prologue_map.py")
    kept = json.loads(module.COMMITTED.read_text(encoding="utf-8"))["records"]
    assert set(module.results(tmp_path)) == {(each["cell"], each["seed"]) for each in kept}
    folder = ROOT / "benchmarks" / "results"
    kept = json.loads((folder / "ablation.json").read_text(encoding="utf-8"))["records"]
    assert len(ablation.results(folder, 8)) == len(kept)


def test_cells_of_the_map_have_different_names_and_hashes(capsys: pytest.CaptureFixture[str]) -> None:
    module = _script("benchmarks/prologue_map.py")
    keys = [(cell.name, seed) for cell, seed in module.PLAN]
    assert len(set(keys)) == len(keys) == len({module.made_with(cell, seed) for cell, seed in module.PLAN})
    module.main(["--list"])
    assert len(capsys.readouterr().out.splitlines()) == len(keys)
    with pytest.raises(SystemExit):
        module.main(["--work", "nowhere", "--only", "shapes-35"])
