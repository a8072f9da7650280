"""Make `builtin:shapes`, the model that comes with the package: train, choose a recipe, measure, write its card.

    python tools/builtin_shapes.py [--out runs/builtin-shapes] [--device auto]

Everything follows from the preset `builtin-shapes` and its seed. A call that is stopped continues with the same
command; the finished folder replaces `src/prologue/builtin/shapes`, and its pictures those in `docs/images`.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from prologue import builtin
from prologue.data.source import open_data
from prologue.evaluation.feature_networks import Features
from prologue.evaluation.features import ShapesExtractor
from prologue.evaluation.layout import evaluate_layout
from prologue.evaluation.memorisation import evaluate_memorisation
from prologue.evaluation.runs import Record, choose_images
from prologue.models.weights import model_hashes
from prologue.pipeline import Pipeline
from prologue.presets import preset
from prologue.sampling.recipe import Recipe
from prologue.studies.demo.ledger import Ledger
from prologue.studies.demo.measure import Subject, measure, watched
from prologue.studies.demo.pictures import resample_grid, sample_grid
from prologue.studies.demo.plan import Sizes
from prologue.studies.demo.story import stage_seconds
from prologue.studies.demo.verdict import recipe_text
from prologue.training.loop import Stopped
from prologue.training.progress import Terminal
from prologue.training.run import RunFolder
from prologue.training.train import TrainRequest, train
from prologue.utils.allocator import keep_freed_memory
from prologue.utils.measurements import plain, provenance
from prologue.utils.serialization import save_json, to_dict

PRESET = "builtin-shapes"
DATA = "shapes"
SIZES = Sizes(samples=2048, choice_samples=512, measured_images=2048, shown_rows=4, resamples=6)
LAYOUTS, PER = 256, 4
PICTURES = Path(__file__).parents[1] / "docs" / "images"


def export(run: RunFolder, folder: Path) -> Pipeline:
    """The run's models in bf16, as they will be shipped, opened again in fp32: what is measured is what ships."""
    Pipeline.from_pretrained(run.path, "cpu", "bf16").save_pretrained(folder)
    return Pipeline.from_pretrained(folder, "auto", "fp32")


def measured(
    run: RunFolder, folder: Path, pipeline: Pipeline, facts: dict[str, Any], progress: Terminal
) -> dict[str, Record]:
    """What the card states: the demo's measures with more images, and what a prologue keeps."""
    config = run.config
    data = open_data(DATA, config.data, config.tokenizer.image_size)
    # Of the shipped weights: those of another export are measured anew.
    shipped = hashlib.sha256("".join(model_hashes(folder).values()).encode()).hexdigest()[:12]
    ledger = Ledger(run.path / f"card-measures-{shipped}.json", facts)
    subject = Subject("builtin", run, pipeline, data)
    records: dict[str, Record] = dict(measure(subject, SIZES, ledger, progress))
    features = Features.open("shapes", "shapes")
    classifier = features.extractor
    assert isinstance(classifier, ShapesExtractor)
    recipe = Recipe.from_dict(records["choice"]["chosen"])
    indices = choose_images(len(data.validation), LAYOUTS, 0, "card")
    labels = torch.from_numpy(data.validation.labels[indices])
    weights = subject.weights

    def layout() -> Record:
        found, _ = evaluate_layout(
            pipeline.tokenizer, pipeline.prior, recipe, data.validation, indices, labels, features, per=PER,
            classifier=classifier, seed=config.seed, watch=watched(progress),
        )  # fmt: skip
        return found

    def memorisation() -> Record:
        found, _ = evaluate_memorisation(
            pipeline.tokenizer, pipeline.prior, recipe, data, Features(), count=SIZES.samples, seed=config.seed,
            watch=watched(progress),
        )  # fmt: skip
        return {key: value for key, value in found.items() if not key.endswith("quantiles")}

    inputs = {"weights": weights, "seed": config.seed, "recipe": recipe.to_dict()}
    records["layout"] = ledger.get("builtin/layout", {**inputs, "images": LAYOUTS, "per": PER}, layout)
    records["memorisation"] = ledger.get("builtin/memorisation", {**inputs, "samples": SIZES.samples}, memorisation)
    return records


def card(run: RunFolder, folder: Path, records: dict[str, Record], facts: dict[str, Any]) -> dict[str, Any]:
    """Everything that is known of the model."""
    config = run.config
    training = {"tokenizer": config.tokenizer_training.batch, "prior": config.prior_training.batch}
    known: dict[str, Any] = plain(
        {
            "name": f"{builtin.SCHEME}{DATA}",
            "licence": "Apache-2.0",
            "data": "the scenes that `prologue.data.embedded.shapes` draws; no other images",
            "data_fingerprint": run.record["facts"]["data_fingerprint"],
            "command": "python tools/builtin_shapes.py",
            "preset": PRESET,
            "config": to_dict(config),
            "training_seconds": {stage: stage_seconds(run.metrics(stage), batch) for stage, batch in training.items()},
            "weights": model_hashes(folder),
            "visual_tokens": config.tokenizer.visual_tokens,
            "bytes": sum(file.stat().st_size for file in folder.rglob("*.safetensors")),
            "measures": records,
            "limits": LIMITS,
            "provenance": facts,
        }
    )
    return known


LIMITS = [
    "It draws one kind of picture, the embedded shapes, at 32 × 32 pixels; it is there to try the package with.",
    "Its figures are in features of a classifier of the same shapes and compare with no published ones.",
]


def card_text(known: dict[str, Any]) -> Iterator[str]:
    """The card for readers, made from its figures."""
    measures, config, facts = known["measures"], known["config"], known["provenance"]
    layout, near = measures["layout"], measures["memorisation"]
    yield f"# {known['name']}"
    yield ""
    yield f"Made by `{known['command']}`, as all of this page from `card.json` beside it. {known['licence']}."
    yield ""
    yield f"- **Data**: {known['data']}; {config['data']['shapes_images']} of them, seed {config['seed']}."
    minutes = {stage: round(seconds / 60) for stage, seconds in known["training_seconds"].items()}
    tokenizer, prior = config["tokenizer"], config["prior"]
    yield (
        f"- **Training**: preset `{known['preset']}`, {minutes['tokenizer']} and {minutes['prior']} minutes for "
        f"tokenizer and prior, torch {facts['torch']}."
    )
    yield (
        f"- **Size**: {known['bytes'] / 1e6:.1f} MB in bf16; {tokenizer['prologue_tokens']} prologue tokens of "
        f"{tokenizer['prologue_codebook_size']} codes and {known['visual_tokens']} visual ones of "
        f"{tokenizer['codebook_size']}; prior of width {prior['width']} with {prior['depth']} blocks."
    )
    yield ""
    yield "| measure | figure | 95 % interval | N |"
    yield "|---|---|---|---|"
    for label, record, name, style, scale in (
        ("asked class recognised, guided", measures["guided"]["recognition"], "rate", ".1f", 100),
        ("asked class recognised, unguided", measures["unguided"]["recognition"], "rate", ".1f", 100),
        ("class recognised in reconstructions", measures["recognition"], "rate", ".1f", 100),
        ("PSNR of reconstructions, dB", measures["reconstruction"], "psnr", ".2f", 1),
        ("cost of the prologue, nats per image", measures["likelihood"], "cost", ".2f", 1),
        (
            "layout: distance within a prologue, relative to other prologues of its class",
            layout,
            "coarse_ratio",
            ".3f",
            1,
        ),
        ("two images of one prologue taken for different classes", layout, "verdict_within", ".3f", 1),
        ("a sample nearer to the training images than a held-out one (0.5 if alike)", near, "coarse_nearer", ".3f", 1),
    ):
        low, high = record.get(f"{name}_low"), record.get(f"{name}_high")
        interval = "" if low is None else f"{scale * low:{style}} … {scale * high:{style}}"
        unit = " %" if scale == 100 else ""
        yield f"| {label} | {scale * record[name]:{style}}{unit} | {interval} | {record['n']} |"
    yield ""
    for kind in ("guided", "unguided"):
        yield f"- {kind}: {recipe_text(measures['choice'][kind])}, chosen by {measures['choice']['measure']}."
    yield f"- diversity {measures['likelihood']['diversity']:.1f} nats, use {measures['likelihood']['use']:.1f} nats."
    yield ""
    yield "## Limits"
    yield ""
    yield from (f"- {limit}" for limit in known["limits"])


def draw(pipeline: Pipeline, run: RunFolder) -> None:
    """The README's pictures."""
    config = run.config
    data = open_data(DATA, config.data, config.tokenizer.image_size)
    grid, images = sample_grid(pipeline, pipeline.recipe, SIZES.shown_rows, config.seed)
    resampled, _ = resample_grid(pipeline, data, SIZES.resamples, config.seed, images)
    for name, picture in (("samples", grid), ("resample", resampled)):
        picture.save(PICTURES / f"{name}.png", optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/builtin-shapes"))
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    keep_freed_memory()
    progress = Terminal()
    try:
        run = train(TrainRequest(preset(PRESET), DATA, options.out, device=options.device), progress)
    except Stopped as stopped:
        sys.exit(f"{stopped}. Run the same command again to continue")
    folder = options.out / "shipped"
    pipeline = export(run, folder)
    facts = provenance(["train", "--preset", PRESET, "--data", DATA])
    records = measured(run, folder, pipeline, facts, progress)
    pipeline.manifest.save(folder)
    known = card(run, folder, records, facts)
    save_json(folder / builtin.CARD, known)
    (folder / "README.md").write_text("\n".join(card_text(known)) + "\n", encoding="utf-8")
    draw(pipeline, run)
    target = Path(builtin.__file__).parent / DATA
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target)
    print(f"{target}: {sum(file.stat().st_size for file in target.rglob('*')) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
