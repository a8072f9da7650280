"""Single changes of the small recipe, each with the same seeds.

    python benchmarks/ablation.py --out DIR [--seeds 2] [--jobs 2] [--minutes M] [CHANGE ...]
    python benchmarks/ablation.py --list

Every run trains a tokenizer and a prior on the embedded shapes (some runs: `digits`) like
`prologue reproduce --scale hours`, but with dropout in the prior, and is measured with fixed recipes. The results of
each finished run are added to `DIR/ablation.json` and to the table `DIR/ablation.md`. The same command continues.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import hashlib
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from prologue.config import RunConfig
from prologue.data.source import Data, open_data
from prologue.evaluation.codes import encode_images
from prologue.evaluation.feature_networks import Features
from prologue.evaluation.kinds.generation import evaluate_generation
from prologue.evaluation.kinds.layout import evaluate_layout
from prologue.evaluation.kinds.likelihood import evaluate_likelihood
from prologue.evaluation.kinds.reconstruction import evaluate_reconstruction, recognise_reconstructions
from prologue.evaluation.recognition import fit_judge, shipped_classifier
from prologue.evaluation.runs import Split, choose_images
from prologue.pipeline import Pipeline
from prologue.sampling.guidance import Guidance
from prologue.sampling.recipe import Recipe
from prologue.studies.reproduce.scales import FEW_IMAGES_DROPOUT, SCALES, run_config
from prologue.training.loop import Stopped
from prologue.training.progress import Progress
from prologue.training.train import TrainRequest, train
from prologue.utils.measurements import provenance
from prologue.utils.processes import end_with_parent
from prologue.utils.serialization import from_dict, load_json, save_json, to_dict

SCALE = dataclasses.replace(SCALES["hours"], checkpoint_every=100_000, prior_dropout=FEW_IMAGES_DROPOUT)
"""The scale of the study with the dropout of the paper and of the small presets."""
SAMPLES = 2048
"""Samples per recipe. The distances of other samples differ far less than those of other seeds."""
MEASURED = 1024
LAYOUTS = 64
_KEPT_SEEDS = 8
"""Number of seeds whose records are kept if fewer are requested."""
UNGUIDED = Recipe(temperature=1.1)
GUIDED = Recipe(guidance=Guidance.overall("constant", 1.5), temperature=1.1)
"""Typical choices of the sweeps of the study."""

Changes = dict[str, Any]


def ce(prologue: float, visual: float, **others: Any) -> Changes:
    """Weights of the cross-entropy. The shared pass needs equal ones."""
    return {"tokenizer_training": {"ce_prologue": prologue, "ce_visual": visual, **others}}


def stage1(**changes: Any) -> Changes:
    """A change of the tokenizer training."""
    return {"tokenizer_training": changes}


def at(*parts: float) -> list[int]:
    """Parts of stage 1 as steps."""
    return [max(1, round(part * SCALE.tokenizer_steps)) for part in parts]


def embeddings(std: float) -> Changes:
    """The initial standard deviation of the embeddings of both priors."""
    return {"prior": {"embedding_std": std}, "tokenizer_training": {"prior_model": {"embedding_std": std}}}


KEEP_BEST = SCALE.prior_steps // 20
"""Steps between the measurements that choose the best prior."""


def few(dropout: float, keep_best_every: int = 0) -> Changes:
    """A twentieth of the images, each of which is seen twenty times as often."""
    prior = {"prior": {"dropout": dropout}, "prior_training": {"keep_best_every": keep_best_every}}
    return {"data": {"shapes_images": SCALE.shapes_images // 20}, **prior}


def digits(changes: Changes) -> Changes:
    """A change for the handwritten digits, which are few images."""
    return {"prior_training": {"keep_best_every": KEEP_BEST}, **changes}


CHANGES: dict[str, Changes] = {
    "base": {},
    "again": {},
    "ce-3": ce(3.0, 3.0),
    "ce-0.3": ce(0.3, 0.3),
    "ce-0.03": ce(0.03, 0.03),
    "ce-prologue-1": ce(1.0, 0.1, shared_prior_pass=False),
    "ce-visual-1": ce(0.1, 1.0, shared_prior_pass=False),
    "ce-prologue-0": ce(0.0, 0.1, shared_prior_pass=False),
    "ce-late": stage1(ce_start=at(0.2)[0], ce_ramp=at(0.2)[0], prologue_kmeans=at(0.2, 0.3, 0.4)),
    "kmeans-never": stage1(prologue_kmeans=[]),
    "revive-never": stage1(dead_code_reset_every=0),
    "visual-dropout-0": stage1(visual_dropout=0.0),
    "visual-dropout-0.8": stage1(visual_dropout=0.8),
    "visual-dropout-late": stage1(visual_dropout_start=at(0.2)[0], visual_dropout_ramp=at(0.2)[0]),
    "tau-0.03": {"tokenizer": {"prologue_temperature": 0.03}},
    "kp-256": {"tokenizer": {"prologue_codebook_size": 256}},
    "p-16": {"tokenizer": {"prologue_tokens": 16}},
    "embeddings-0.5": embeddings(0.5),
    "beta1-0": stage1(autoencoder={"betas": [0.0, 0.99]}),
    "adversarial": stage1(gan=0.1),
    "perceptual": stage1(perceptual="lite0", perceptual_weight=0.1),
    "prior-dropout-0": {"prior": {"dropout": 0.0}},
    "few": few(0.1),
    "few-prior-dropout-0": few(0.0),
    "few-keep-best": few(0.1, keep_best_every=KEEP_BEST),
    "2d": {},
    "2d-prior-dropout-0": {"prior": {"dropout": 0.0}},
    "digits": digits({}),
    "digits-ce-prologue-0": digits(ce(0.0, 0.1, shared_prior_pass=False)),
}
"""Changes of `base`, which `again` repeats. Rows with other images compare with the first such row, and
`2d-prior-dropout-0` with `2d`."""
OTHER_IMAGES = ("few", "digits")
"""Rows whose images differ from those of `base`."""


def source(name: str) -> str:
    """The images of a change."""
    return "digits" if name.startswith("digits") else "shapes"


def changed(name: str, seed: int) -> RunConfig:
    """The configuration of a change and a seed."""
    config = run_config(SCALE, "2d" if name.startswith("2d") else "prologue", seed)
    # The last prior is measured, except where the change is to keep the best one.
    last = dataclasses.replace(config.prior_training, keep_best_every=0)
    return from_dict(RunConfig, CHANGES[name], base=dataclasses.replace(config, prior_training=last))


def tokenizer_hash(name: str, seed: int) -> str:
    """A hash of everything that a tokenizer depends on."""
    config = changed(name, seed)
    training = first_form(to_dict(config.tokenizer_training))
    settings = [first_form(to_dict(config.data)), to_dict(config.tokenizer), training, seed]
    return _hash(settings, name)


def trained_tokenizer(out: Path, name: str, seed: int, data: Data) -> Path:
    """The run with the tokenizer of this change. Changes of the prior share one."""
    path = out / "tokenizers" / tokenizer_hash(name, seed)
    if not path.is_dir():
        with tempfile.TemporaryDirectory(dir=out) as folder:
            request = TrainRequest(changed(name, seed), source(name), Path(folder) / "run", "tokenizer", device="cpu")
            run = train(request, Progress(), data=data)
            path.parent.mkdir(exist_ok=True)
            if not path.is_dir():
                run.path.rename(path)
    return path


def one(name: str, seed: int, out: Path) -> dict[str, Any]:
    """Train and measure one run. The seconds of a shared tokenizer count once."""
    torch.set_num_threads(1)
    config = changed(name, seed)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        data = open_data(source(name), config.data, config.tokenizer.image_size)
        tokenizer_run = trained_tokenizer(out, name, seed, data)
        request = TrainRequest(config, source(name), Path(folder) / "run", tokenizer_from=tokenizer_run, device="cpu")
        run = train(request, Progress(), data=data)
        trained = time.perf_counter()
        pipeline = Pipeline.from_pretrained(run.path, "cpu", "fp32")
    tokenizer, prior = pipeline.tokenizer, pipeline.prior
    features = Features.open("shapes" if source(name) == "shapes" else "auto", source(name))
    classifier = shipped_classifier(source(name), data.class_names) or fit_judge(features.extractor, data)
    indices = choose_images(len(data.validation), MEASURED, 0, "ablation")
    tokens = encode_images(tokenizer, data.validation, indices)
    labels = torch.from_numpy(data.validation.labels[indices])
    split = Split("validation", data.validation)
    reconstruction = evaluate_reconstruction(tokenizer, split, features, count=MEASURED, resets_dead_codes=True)
    likelihood = evaluate_likelihood(prior, tokens, labels, image_size=config.tokenizer.image_size, seed=seed)
    figures = {"psnr": reconstruction["psnr"], "rfd": reconstruction["fd"], "rkid": reconstruction["kid"]}
    figures |= {
        "recognised_reconstructions": recognise_reconstructions(tokenizer, data.validation, indices, classifier)["rate"]
    }
    figures |= {key: likelihood.get(key) for key in ("nats", "visual_entropy", "cost", "diversity", "use")}
    for kind, recipe in (("unguided", UNGUIDED), ("guided", GUIDED)):
        drawn = evaluate_generation(
            tokenizer, prior, recipe, data.train, features, count=SAMPLES, seed=seed,
            class_names=data.class_names, classifier=classifier,
        )  # fmt: skip
        figures |= {f"gfd_{kind}": drawn["fd"], f"gkid_{kind}": drawn["kid"]}
        figures |= {f"recognised_{kind}": drawn["recognition"]["rate"]}
    if prior.layout.has_prologue:
        rows = indices[:LAYOUTS]
        layout, _ = evaluate_layout(
            tokenizer, prior, UNGUIDED, data.validation, rows, labels[:LAYOUTS], Features(), per=4, seed=seed
        )
        figures["layout_ratio"] = layout["coarse_ratio"]
    seconds = {"training": round(trained - begin, 1), "measuring": round(time.perf_counter() - trained, 1)}
    record = {"change": name, "seed": seed, "changes": CHANGES[name], "figures": figures, "seconds": seconds}
    record["precision"] = run.config.precision
    facts = provenance(()) | {"command": f"python benchmarks/ablation.py --seeds {seed + 1} {name}"}
    return record | {"made_with": made_with(name, seed), "provenance": facts}


def one_of_many(name: str, seed: int, out: Path) -> dict[str, Any]:
    """`one` in a process of a pool. The process ends on a signal instead of waiting for more work."""
    try:
        return one(name, seed, out)
    except Stopped:
        os._exit(1)


def made_with(name: str, seed: int) -> str:
    """A hash of everything that a result depends on."""
    settings = [
        first_form(to_dict(changed(name, seed))),
        SAMPLES,
        MEASURED,
        LAYOUTS,
        UNGUIDED.to_dict(),
        GUIDED.to_dict(),
    ]
    return _hash(settings, name)


_FIRST_NAMES = {"dead_code_reset_every": "revive_every", "dead_code_reset_until": "revive_until"}


_LATER = ("file_rule", "max_pixels", "stop_after_skipped")
"""Fields of later versions, which no change has."""


def first_form(settings: Any) -> Any:
    """Settings with the fields of the first version, so that hashes of the same settings stay the same."""
    if not isinstance(settings, dict):
        return settings
    return {_FIRST_NAMES.get(name, name): first_form(each) for name, each in settings.items() if name not in _LATER}


def _hash(settings: list[Any], name: str) -> str:
    """A hash of the settings, and of images other than `shapes` and the repetition of `base`."""
    others = ["digits"] if source(name) == "digits" else ["again"] if name == "again" else []
    told = [*settings, *others]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def results(out: Path, seeds: int) -> list[dict[str, Any]]:
    """The records of `ablation.json` with these settings, under any name."""
    file = out / "ablation.json"
    found = {each["made_with"]: each for each in (load_json(file)["records"] if file.is_file() else [])}
    wanted = {(name, seed): made_with(name, seed) for name in CHANGES for seed in range(seeds)}
    return [
        found[key] | {"change": name, "changes": CHANGES[name]} for (name, _), key in wanted.items() if key in found
    ]


COLUMNS: dict[str, tuple[str, str]] = {
    "psnr": ("PSNR, dB", ".2f"),
    "rfd": ("rFD", ".3f"),
    "nats": ("nats, held-out images", ".1f"),
    "cost": ("cost", ".1f"),
    "diversity": ("diversity", ".1f"),
    "use": ("use", ".0f"),
    "gfd_unguided": (f"gFD@{SAMPLES}, unguided", ".2f"),
    "gkid_unguided": (f"gKID@{SAMPLES}, unguided", ".3f"),
    "gfd_guided": (f"gFD@{SAMPLES}, guided", ".2f"),
    "recognised_unguided": ("recognised, unguided", ".3f"),
    "recognised_guided": ("recognised, guided", ".3f"),
    "layout_ratio": ("layout", ".2f"),
}
"""Columns of the table: figure, heading and format."""


def table(records: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A Markdown table: means over seeds, and the range of the differences to the base with the same seed.

    The base of the rows after one of `OTHER_IMAGES` is that row.
    """
    found = {(each["change"], each["seed"]): each["figures"] for each in records}
    yield "| change | " + " | ".join(heading for heading, _ in COLUMNS.values()) + " | seeds |"
    yield "|---|" + "---:|" * (len(COLUMNS) + 1)
    for name in dict.fromkeys(name for name, _ in found):
        seeds = [seed for other, seed in found if other == name]
        base = next((group for group in (*OTHER_IMAGES, "2d") if name.startswith(f"{group}-")), "base")
        cells = []
        for column, (_, form) in COLUMNS.items():
            values = {seed: found[name, seed].get(column) for seed in seeds}
            known = {seed: value for seed, value in values.items() if value is not None}
            if not known:
                cells.append("–")
                continue
            cell = f"{sum(known.values()) / len(known):{form}}"
            beside = [value - found[base, seed][column] for seed, value in known.items() if (base, seed) in found]
            if name not in (base, *OTHER_IMAGES) and len(beside) > 1:
                cell += f"<br>{min(beside):+{form}} … {max(beside):+{form}}"
            cells.append(cell)
        yield f"| `{name}` | " + " | ".join(cells) + f" | {len(seeds)} |"


def collect(out: Path, records: list[dict[str, Any]]) -> None:
    """Write all records to `ablation.json` and `ablation.md`, in the order of `CHANGES`."""
    ordered = sorted(records, key=lambda each: (list(CHANGES).index(each["change"]), each["seed"]))
    save_json(out / "ablation.json", {"samples": SAMPLES, "records": ordered})
    (out / "ablation.md").write_text("\n".join(table(ordered)) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("changes", nargs="*", metavar="CHANGE", help="changes of --list; default: all")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each with one thread")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no run after this time")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    if options.list:
        for name, changes in CHANGES.items():
            print(f"{name:26} {changes or '-'}")
        return
    unknown = [name for name in options.changes if name not in CHANGES]
    if unknown or options.out is None:
        parser.error(f"unknown change {unknown[0]}: see --list" if unknown else "--out is missing")
    names = options.changes or list(CHANGES)
    until = time.monotonic() + 60 * options.minutes
    options.out.mkdir(parents=True, exist_ok=True)
    records = results(options.out, max(options.seeds, _KEPT_SEEDS))
    made = {(each["change"], each["seed"]) for each in records}
    todo = [(name, seed) for name in names for seed in range(options.seeds) if (name, seed) not in made]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(options.jobs, context, end_with_parent) as pool:
        running: dict[concurrent.futures.Future[dict[str, Any]], tuple[str, int]] = {}
        while todo or running:
            while todo and len(running) < options.jobs and time.monotonic() < until:
                name, seed = todo.pop(0)
                running[pool.submit(one_of_many, name, seed, options.out)] = (name, seed)
            if not running:
                break
            done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                name, seed = running.pop(future)
                result = future.result()
                records.append(result)
                collect(options.out, records)
                shown = "  ".join(f"{key} {value:.3g}" for key, value in result["figures"].items() if value is not None)
                print(f"{name} s{seed}  {sum(result['seconds'].values()):.0f} s  {shown}", flush=True)


if __name__ == "__main__":
    main()
