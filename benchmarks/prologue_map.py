"""Where a prologue helps: priors with and without one on the same visual ids, by noise, tokens and steps of stage 2.

    python benchmarks/prologue_map.py --work DIR [--minutes M] [--only CELL ...] [--seeds N]
    python benchmarks/prologue_map.py --list

A cell is one kind of images at one size and one length of stage 2. Each seed trains a `2d` tokenizer, a prologue for
it (`prologue-post`), and three priors with the same measurements: without a prologue, with it, and `blank`, whose
prologue tokens are the same for all images. The gain of `blank` does not come from the content of a prologue. Cells
with the same images share the tokenizers. The same command continues after a kill. Each finished cell is added to
`DIR/prologue-map.json` and to the table `DIR/prologue-map.md`. The results in `benchmarks/results/prologue-map.json`
count as done.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from prologue.config import RunConfig
from prologue.data.source import embedded_name, open_data
from prologue.evaluation.classifier import kind_of
from prologue.evaluation.codes import encode_images
from prologue.evaluation.factors import known_factors
from prologue.evaluation.feature_networks import Features
from prologue.evaluation.kinds.generation import evaluate_generation
from prologue.evaluation.kinds.likelihood import evaluate_likelihood
from prologue.evaluation.kinds.probe import read_factors, read_inputs
from prologue.evaluation.kinds.reconstruction import evaluate_reconstruction, recognise_reconstructions
from prologue.evaluation.runs import Record, Split, choose_images
from prologue.evaluation.store import Store, key_of, read_ledger
from prologue.evaluation.versions import VERSIONS
from prologue.models.sequence import TokenIds
from prologue.models.tokenizer import Tokenizer
from prologue.models.weights import file_hash, model_hashes
from prologue.pipeline import Pipeline
from prologue.sampling.recipe import Recipe
from prologue.studies.reproduce.measures import KINDS, SAMPLINGS, Bench, Models, choose
from prologue.studies.reproduce.scales import SCALES, Scale, run_config
from prologue.training.loop import Stopped
from prologue.training.progress import Progress
from prologue.training.run import RunFolder
from prologue.training.train import StageName, TrainRequest, train
from prologue.utils.locks import folder_lock
from prologue.utils.measurements import provenance
from prologue.utils.rng import derive_seed
from prologue.utils.serialization import load_json, save_json, to_dict

NAME = "prologue-map"
COMMITTED = Path(__file__).parent / "results" / f"{NAME}.json"
FORMAT = 1
ARMS = ("without", "blank", "with")
_DIGITS = 5
"""Significant digits in the results."""

BASE = dataclasses.replace(
    SCALES["hours"], width=64, depth=2, prior_width=64, prior_depth=3, codebook_size=256, prologue_tokens=6,
    prologue_codebook_size=32, tokenizer_steps=4000, tokenizer_batch=8, prior_steps=2500, prior_batch=32,
    shapes_validation=2048, temperatures=(1.1, 1.0, 0.9, 0.8), guidance_scales=(1.5, 2.0, 3.0),
    guided_temperatures=(1.0, 0.9), samples=2048, measured_images=1024, probe_images=4000, checkpoint_every=1000,
)  # fmt: skip
"""The scale of all cells, without image size, codebook size and length of stage 2."""
POST_STEPS, POST_BATCH = 3000, 16
"""Training of the prologue."""
STAGE_1_DEPTH = 2
"""Blocks of the prior in stage 1. One block is too few for noisy tokens."""


@dataclass(frozen=True)
class Cell:
    """One point of the map."""

    data: str
    side: int
    """Image size in pixels."""
    length: int = 1
    """Steps of stage 2, as a multiple of the base."""
    codebook_size: int = 256

    @property
    def name(self) -> str:
        """`plates-100`, `shapes-grain=0.3-144-x2`: images, visual tokens, length."""
        tokens = (self.side // BASE.patch_size) ** 2
        return f"{self.data.replace(':', '-')}-{tokens}" + (f"-x{self.length}" if self.length > 1 else "")

    @property
    def scale(self) -> Scale:
        return dataclasses.replace(
            BASE, image_size=self.side, codebook_size=self.codebook_size, prior_steps=self.length * BASE.prior_steps
        )


def plates(side: int, length: int = 1, options: str = "") -> Cell:
    """A cell of `plates`. Their squares have one colour each, so that a small codebook is enough."""
    return Cell(f"plates{options}", side, length, codebook_size=64)


def shapes(grain: float, side: int, length: int = 1) -> Cell:
    return Cell(f"shapes:grain={grain:g}", side, length)


def _plan() -> Iterator[tuple[Cell, int]]:
    few = plates(40), shapes(0, 24), shapes(0.6, 48)
    yield from ((cell, 0) for cell in (*few, shapes(0.6, 24), plates(24), shapes(0, 48)))
    yield from ((cell, seed) for seed in (1, 2) for cell in few)
    yield from ((plates(40, length), 0) for length in (2, 4))
    yield from ((cell, 0) for cell in (shapes(0.3, 24), shapes(0.3, 48), plates(32), plates(48), plates(64)))
    yield from ((plates(40, length), seed) for seed in (1, 2) for length in (2, 4))
    yield from ((cell, seed) for seed in (1, 2) for cell in (shapes(0, 48), shapes(0.6, 24), plates(24)))
    yield from ((shapes(0.6, 48, length), 0) for length in (2, 4))
    yield from ((plates(40, options=options), 0) for options in (":noise=0", ":noise=0.3", ":figures=kinds"))
    yield from ((cell, 0) for cell in (shapes(0, 32), shapes(0.3, 32), shapes(0.6, 32)))
    yield from ((cell, 0) for cell in (shapes(0.6, 64), shapes(0, 64)))
    yield from ((plates(64), seed) for seed in (1, 2))


PLAN = tuple(_plan())
"""Cells and seeds in the order of training."""


def tokenizer_config(scale: Scale, seed: int) -> RunConfig:
    """The `2d` tokenizer of a cell and its prior without a prologue."""
    return dataclasses.replace(run_config(scale, "2d", seed), precision="fp32")


def post_config(scale: Scale, seed: int) -> RunConfig:
    """The prologue for the tokenizer."""
    longer = dataclasses.replace(scale, tokenizer_steps=POST_STEPS, tokenizer_batch=POST_BATCH)
    config = run_config(longer, "prologue-post", seed)
    depth = dataclasses.replace(config.tokenizer_training.prior_model, depth=STAGE_1_DEPTH)
    training = dataclasses.replace(config.tokenizer_training, prior_model=depth)
    return dataclasses.replace(config, tokenizer_training=training, precision="fp32")


def with_config(scale: Scale, seed: int) -> RunConfig:
    """The prior with a prologue, on a given tokenizer."""
    return dataclasses.replace(run_config(scale, "prologue", seed), precision="fp32")


def trained_with(cell: Cell, seed: int) -> str:
    """A hash of everything that a cell's models depend on."""
    configs = [make(cell.scale, seed) for make in (tokenizer_config, post_config, with_config)]
    return _hash([cell.data, *(first_form(to_dict(config)) for config in configs)])


def made_with(cell: Cell, seed: int) -> str:
    """A hash of everything that a cell's figures depend on."""
    scale = to_dict(cell.scale) | {"packed": False}  # a field of the first version
    return _hash([FORMAT, trained_with(cell, seed), scale, classifier_hash(cell.data)])


_FIRST_NAMES = {"dead_code_reset_every": "revive_every", "dead_code_reset_until": "revive_until"}


def first_form(settings: Any) -> Any:
    """Settings with the field names of the first version, so that hashes of the same settings stay the same."""
    if not isinstance(settings, dict):
        return settings
    return {_FIRST_NAMES.get(name, name): first_form(value) for name, value in settings.items()}


@cache
def classifier_hash(data: str) -> str:
    """The hash of the classifier for these images."""
    kind = kind_of(data)
    assert kind is not None
    return file_hash(kind.file)


def _hash(settings: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


class Made:
    """Trains and measures a cell with one seed in the folder `work`."""

    def __init__(self, cell: Cell, seed: int, work: Path) -> None:
        self.cell, self.seed, self.work, self.scale = cell, seed, work, cell.scale
        self.config = tokenizer_config(self.scale, seed)
        data = open_data(cell.data, self.config.data, self.config.tokenizer.image_size)
        features = Features.open(embedded_name(cell.data) or "auto", cell.data)
        self.bench = Bench(self.scale, data, features, cell.data, work / "pictures", "fp32")
        self.folder = work / "cells" / f"{cell.name}-s{seed}-{trained_with(cell, seed)}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.store = Store(self.folder / "measures")
        self.earlier = read_ledger(self.folder / "measures.json", KINDS)

    def record(self) -> Record:
        """The record of the cell in the results."""
        begin, tokenizers = time.process_time(), self._tokenizers()
        configs = dict.fromkeys(ARMS, with_config(self.scale, self.seed)) | {"without": self.config}
        runs = {arm: self._prior(configs[arm], tokenizers[arm], arm) for arm in ARMS}
        trained = time.process_time()
        models = {}
        for arm, run in runs.items():
            pipeline = Pipeline.from_pretrained(run, "cpu", "fp32")
            name = f"{self.cell.name}-s{self.seed}-{arm}"
            models[arm] = Models(pipeline.tokenizer, pipeline.prior, self.seed, model_hashes(run), name)
        figures = self._measured(models) | {f"course_{arm}": _course(run, models[arm]) for arm, run in runs.items()}
        for run in runs.values():  # tokens are large, and encoding them again is quick
            shutil.rmtree(run / "tokens", ignore_errors=True)
        # Seconds of this call only.
        seconds = {"training": round(trained - begin), "measuring": round(time.process_time() - trained)}
        return {
            "cell": self.cell.name, "data": self.cell.data, "tokens": self.config.tokenizer.visual_tokens,
            "image_size": self.cell.side, "length": self.cell.length, "seed": self.seed, "figures": figures,
            "cpu_seconds": seconds, "made_with": made_with(self.cell, self.seed),
        }  # fmt: skip

    def _tokenizers(self) -> dict[str, Path]:
        """The run of each arm's tokenizer, which does not depend on the length of stage 2."""
        first = dataclasses.replace(self.cell, length=1)
        runs = self.work / "tokenizers" / f"{first.name}-s{self.seed}-{trained_with(first, self.seed)}"
        plain, post, blank = runs / "2d", runs / "post", runs / "blank"
        self._train(tokenizer_config(first.scale, self.seed), plain, "tokenizer")
        self._train(post_config(first.scale, self.seed), post, "tokenizer", plain)
        if not (blank / "tokenizer").is_dir():
            shutil.rmtree(blank, ignore_errors=True)
            blanked(Tokenizer.from_pretrained(post / "tokenizer")).save_pretrained(blank / "tokenizer.part")
            (blank / "tokenizer.part").rename(blank / "tokenizer")
        return {"without": plain, "blank": blank, "with": post}

    def _prior(self, config: RunConfig, tokenizer: Path, arm: str) -> Path:
        out = self.folder / arm
        for stage in ("tokenizer", "tokens", "prior"):
            self._train(config, out, stage, tokenizer)
        return out

    def _train(self, config: RunConfig, out: Path, stage: StageName, given: Path | None = None) -> None:
        if (out / "prior").is_dir() and (out / "pipeline.json").is_file():
            return  # finished; its tokens may be deleted
        request = TrainRequest(config, self.cell.data, out, stage, tokenizer_from=given, device="cpu")
        train(request, Progress(), data=self.bench.data)
        shutil.rmtree(out / "checkpoints" / stage, ignore_errors=True)

    def _measured(self, models: Mapping[str, Models]) -> dict[str, Any]:
        """Figures by name. Those of an arm end in its name."""
        bench, scale, data = self.bench, self.scale, self.bench.data
        plain, blank, full = (models[arm] for arm in ARMS)
        indices = choose_images(len(data.validation), scale.measured_images, 0, NAME)
        labels = torch.from_numpy(data.validation.labels[indices])
        tokens = encode_images(full.tokenizer, data.validation, indices)
        classifier = bench.classifier
        assert classifier is not None
        found: dict[str, Any] = {}

        def get(name: str, of: Sequence[Models], make: Callable[[], Record], recipe: Recipe | None = None) -> Record:
            inputs = {"weights": [each.weights for each in of], "settings": made_with(self.cell, self.seed)}
            inputs |= {"versions": {kind: VERSIONS[kind] for kind in KINDS}}
            # Earlier versions had the recipe in the name.
            known = self.earlier.get(f"{name if recipe is None else f'{name} {recipe.to_dict()}'}-{key_of(inputs)}")
            if known is not None:
                return known.record
            inputs |= {} if recipe is None else {"recipe": recipe.to_dict()}
            return self.store.get(name.replace(" ", "-"), inputs, make).record

        reconstruction = get("reconstruction", [full], lambda: evaluate_reconstruction(
            full.tokenizer, Split("validation", data.validation), bench.features, count=scale.measured_images,
            resets_dead_codes=True,
        ))  # fmt: skip
        found |= {"psnr": reconstruction["psnr"], "rfd": reconstruction["fd"], "codes": reconstruction["visual_usage"]}
        seen = get("recognition", [full], lambda: recognise_reconstructions(
            full.tokenizer, data.validation, indices, classifier, data.class_names
        ))  # fmt: skip
        found |= {"recognised_reconstructions": seen["rate"], "recognised_real": seen["originals_rate"]}
        none = torch.zeros_like(tokens.prologue)
        for arm, each, ids in (("with", full, tokens), ("blank", blank, TokenIds(none, tokens.visual))):
            likelihood = get(f"{arm} likelihood", [plain, each], lambda each=each, ids=ids: evaluate_likelihood(
                each.prior, ids, labels, image_size=self.config.tokenizer.image_size, baseline=plain.prior,
                seed=self.seed, starts_from_data=True,
            ))  # fmt: skip
            names = ("gain", "gain_low", "gain_high") + (("cost", "diversity", "use") if arm == "with" else ())
            found |= {name if arm == "with" else f"{name}_{arm}": likelihood[name] for name in names}
            found |= {f"{name}_{arm}": likelihood[name] for name in ("nats", "visual_nats")}
            start, stop = likelihood["segments"]["visual"]
            found[f"positions_{arm}"] = _in_nats(likelihood["position_bits"][start:stop])
        found |= {"nats_without": likelihood["baseline_visual_nats"], "visual_entropy": likelihood["visual_entropy"]}
        found["positions_without"] = _in_nats(likelihood["position_baseline_bits"])
        found["factors"] = get("factors", [full], lambda: self._factors(full))["factors"]
        for arm, each in models.items():
            found |= self._sampled(arm, each, get)
        return {key: _short(value) for key, value in found.items()}

    def _sampled(self, arm: str, models: Models, get: Callable[..., Record]) -> dict[str, Any]:
        """Samples at temperature 1, and with the best recipe of each sweep."""
        bench = self.bench
        first = derive_seed(self.seed, NAME, "samples") % 2**31

        def drawn(name: str, recipe: Recipe) -> Record:
            return get(f"{arm} {name}", [models], lambda: evaluate_generation(
                models.tokenizer, models.prior, recipe, bench.data.train, bench.features, count=bench.samples,
                seed=first, class_names=bench.data.class_names, classifier=bench.classifier,
            ), recipe)  # fmt: skip

        recipes = {"plain": Recipe()}
        for kind in SAMPLINGS:
            choice = get(f"{arm} choice {kind}", [models], lambda kind=kind: choose(models, bench, kind == "guided"))
            recipes[kind] = Recipe.from_dict(choice["recipe"])
        found: dict[str, Any] = {}
        for kind, recipe in recipes.items():
            record = drawn("samples", recipe)
            found |= {f"fd_{kind}_{arm}": record["fd"], f"kid_{kind}_{arm}": record["kid"]}
            found |= {f"recognised_{kind}_{arm}": record["recognition"]["rate"]}
            found |= {f"temperature_{kind}_{arm}": recipe.temperature}
            if recipe.guidance.whole is not None:
                found |= {f"scale_{kind}_{arm}": recipe.guidance.whole.scale}
        return found

    def _factors(self, models: Models) -> Record:
        """The factors that linear classifiers predict from the prologue, and from the mean of the visual codes."""
        data, tokenizer = self.bench.data, models.tokenizer
        sides = []
        for images, count in ((data.train, self.scale.probe_images), (data.validation, self.scale.measured_images)):
            indices = choose_images(len(images), count, 0, f"{NAME} factors")
            read = read_inputs(tokenizer, images, indices)
            values = {name: read.values[name] for name in ("prologue", "visual_pooled")}
            sides.append((images, indices, read._replace(values=values)))
        (ours, known, train_side), (theirs, asked, test_side) = sides
        factors = known_factors(ours, known, theirs, asked)
        sizes = tokenizer.config.prologue_codebook_size, tokenizer.config.codebook_size
        names = ("factor", "chance", "clear", "prologue", "visual_pooled", "prologue_positions")
        return {
            "factors": [
                {name: _short(each[name]) for name in names}
                for each in read_factors(train_side, test_side, factors, sizes)
            ]
        }


@torch.no_grad()
def blanked(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with code 0 at all prologue positions: the inputs of the quantizer, and so all logits, are 0."""
    assert tokenizer.prologue_quantizer is not None
    for parameter in tokenizer.prologue_quantizer.proj.parameters():
        parameter.zero_()
    return tokenizer


def _course(run: Path, models: Models) -> list[list[float]]:
    """(step, nats of held-out images) along stage 2."""
    length = models.prior.layout.length
    records = [each for each in RunFolder.load(run).metrics("prior") if "held_out_loss" in each]
    points = {each["held_out_loss"]: each["step"] for each in reversed(records)}
    return [[step, _short(loss * length)] for loss, step in sorted(points.items(), key=lambda point: point[1])]


def _in_nats(bits: Sequence[float]) -> list[float]:
    return [value * math.log(2) for value in bits]


def _short(value: Any) -> Any:
    """Floats with few digits, also inside lists."""
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    return [_short(each) for each in value] if isinstance(value, list | tuple) else value


def results(work: Path) -> dict[tuple[str, int], Record]:
    """The finished cells with these settings, in `work` and in the checkout, by name and seed."""
    wanted = {made_with(cell, seed): (cell.name, seed) for cell, seed in PLAN}
    files = [file for file in (COMMITTED, work / f"{NAME}.json") if file.is_file()]
    records = [each for file in files for each in load_json(file)["records"]]
    return {wanted[each["made_with"]]: each for each in records if each["made_with"] in wanted}


def save_results(work: Path, records: Mapping[tuple[str, int], Record], facts: Mapping[str, Any]) -> None:
    """Write the cells, in the order of the plan, and the table."""
    order = [(cell.name, seed) for cell, seed in PLAN]
    ordered = [records[key] for key in order if key in records]
    save_json(work / f"{NAME}.json", {"format": FORMAT, "provenance": dict(facts), "records": ordered})
    (work / f"{NAME}.md").write_text("\n".join(table(ordered)) + "\n", encoding="utf-8")


def table(records: Sequence[Record]) -> Iterator[str]:
    """A Markdown table: means over seeds of the arms `without / blank / with`, and geometric means of the ratios of
    distances without and with a prologue."""
    yield "| images | tokens | stage 2 | seeds | nats without | gain blank | gain | cost | use | diversity | rFD |" + (
        " FD at T 1 | FD unguided | FD guided | closer at T 1 | unguided | guided | seen at T 1 | guided |"
    )
    yield "|---|" + "---:|" * 18
    for name in dict.fromkeys(each["cell"] for each in records):
        of_cell = [each for each in records if each["cell"] == name]
        figures = [each["figures"] for each in of_cell]
        first = of_cell[0]
        row = [f"`{first['data']}`", str(first["tokens"]), f"× {first['length']}", str(len(of_cell))]
        row += [
            _mean(figures, key, ".1f") for key in ("nats_without", "gain_blank", "gain", "cost", "use", "diversity")
        ]
        row.append(_mean(figures, "rfd", ".2f"))
        kinds = ("plain", *SAMPLINGS)
        row += [" / ".join(_mean(figures, f"fd_{kind}_{arm}", ".3g") for arm in ARMS) for kind in kinds]
        row += [_ratio(figures, kind) for kind in kinds]
        for kind in ("plain", "guided"):
            row.append(" / ".join(_mean(figures, f"recognised_{kind}_{arm}", ".0%") for arm in ARMS))
        yield "| " + " | ".join(row) + " |"


def _mean(figures: Sequence[Mapping[str, Any]], key: str, form: str) -> str:
    return f"{mean(each[key] for each in figures):{form}}"


def _ratio(figures: Sequence[Mapping[str, Any]], kind: str) -> str:
    """The ratio of distances without and with a prologue: mean, and range over seeds."""
    logs = [math.log(each[f"fd_{kind}_without"] / each[f"fd_{kind}_with"]) for each in figures]
    shown = f"{math.exp(mean(logs)):.2f}"
    return shown if len(logs) < 2 else f"{shown} ({math.exp(min(logs)):.2f} to {math.exp(max(logs)):.2f})"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder for runs and results, outside the checkout")
    parser.add_argument("--only", nargs="+", metavar="CELL", help="cells of --list; default: all")
    parser.add_argument("--seeds", type=int, help="number of seeds")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no cell after this time")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args(arguments)
    plan = [(cell, seed) for cell, seed in PLAN if seed < (options.seeds or seed + 1)]
    if options.list:
        print("\n".join(f"{cell.name} seed {seed}" for cell, seed in plan))
        return
    unknown = sorted(set(options.only or ()) - {cell.name for cell, _ in PLAN})
    if unknown or options.work is None:
        parser.error(f"unknown cell {unknown[0]}: see --list" if unknown else "--work is missing")
    torch.set_num_threads(1)
    work, until = options.work, time.monotonic() + 60 * options.minutes
    work.mkdir(parents=True, exist_ok=True)
    facts = provenance(()) | {"command": f"python benchmarks/{NAME.replace('-', '_')}.py --work DIR"}
    with folder_lock(work):
        records = results(work)
        save_results(work, records, facts)
        for cell, seed in plan:
            if (cell.name, seed) in records or (options.only and cell.name not in options.only):
                continue
            if time.monotonic() >= until:
                break
            try:
                record = Made(cell, seed, work).record()
            except Stopped as stopped:
                sys.exit(f"{stopped}. Run the same command again to continue")
            records[cell.name, seed] = record
            save_results(work, records, facts)
            shown = {key: value for key, value in record["figures"].items() if isinstance(value, float)}
            told = "  ".join(f"{key} {value:.4g}" for key, value in shown.items())
            print(f"{cell.name} s{seed}  {record['cpu_seconds']}  {told}", flush=True)


if __name__ == "__main__":
    main()
