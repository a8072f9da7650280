"""Make `builtin:shapes`, the model in the package: train, choose a recipe, measure, and write its card.

    python tools/builtin_shapes.py [--out runs/builtin-shapes] [--device auto]

Everything follows from the preset `builtin-shapes` and its seed. The same command continues. The finished folder
replaces `src/prologue/builtin/shapes`, and its pictures replace those in `docs/images`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prologue import builtin
from prologue.data.source import Data, open_data
from prologue.evaluation.codes import encode_images
from prologue.evaluation.feature_networks import Features
from prologue.evaluation.features import ShapesExtractor
from prologue.evaluation.kinds.generation import evaluate_generation
from prologue.evaluation.kinds.layout import Shown, evaluate_layout
from prologue.evaluation.kinds.likelihood import evaluate_likelihood
from prologue.evaluation.kinds.memorisation import evaluate_memorisation
from prologue.evaluation.kinds.reconstruction import evaluate_reconstruction, recognise_reconstructions
from prologue.evaluation.runs import Record, Split, choose_images
from prologue.evaluation.samples import draw_samples, samples_picture, uniform_classes
from prologue.evaluation.store import Store
from prologue.evaluation.versions import VERSIONS
from prologue.models.weights import model_hashes
from prologue.pipeline import Pipeline
from prologue.presets import preset
from prologue.sampling.guidance import Guidance
from prologue.sampling.recipe import Recipe
from prologue.studies.reproduce.pictures import resampled_picture
from prologue.studies.reproduce.worker import stage_seconds
from prologue.training.loop import Stopped
from prologue.training.progress import Terminal
from prologue.training.run import RunFolder
from prologue.training.train import TrainRequest, train
from prologue.utils.allocator import keep_freed_memory
from prologue.utils.measurements import plain, provenance
from prologue.utils.rng import derive_seed
from prologue.utils.serialization import save_json, to_dict

PRESET = "builtin-shapes"
DATA = "shapes"
SAMPLES, CHOICE_SAMPLES, IMAGES = 2048, 512, 2048
LAYOUTS, PER = 256, 4
SHOWN_ROWS, SHOWN_PER = 4, 6
PICTURES = Path(__file__).parents[1] / "docs" / "images"
RECIPES = (
    *(Recipe(temperature=temperature) for temperature in (1.0, 0.9)),
    *(
        Recipe(guidance=Guidance.overall("constant", scale), temperature=temperature)
        for scale in (1.5, 2.0, 3.0)
        for temperature in (1.0, 0.9)
    ),
)
CHOICE_RULE = (
    "the classifier's recognition rate; among recipes within one standard error of the best, the lowest KID-Shapes"
)


def export(run: RunFolder, folder: Path) -> Pipeline:
    """The models of the run in bf16, as they are shipped, opened in fp32 for the measurements."""
    Pipeline.from_pretrained(run.path, "cpu", "bf16").save_pretrained(folder)
    return Pipeline.from_pretrained(folder, "auto", "fp32")


def measured(run: RunFolder, folder: Path, pipeline: Pipeline, data: Data) -> dict[str, Record]:
    """The measurements of the card. The chosen recipe becomes that of the pipeline."""
    tokenizer, prior, seed, names = pipeline.tokenizer, pipeline.prior, run.config.seed, data.class_names
    features = Features.open("shapes", "shapes")
    classifier = features.extractor
    assert isinstance(classifier, ShapesExtractor)
    store = Store(run.path / "card-measures")
    facts = {"weights": model_hashes(folder), "seed": seed, "versions": VERSIONS}
    indices = np.arange(min(IMAGES, len(data.validation)))
    labels = torch.from_numpy(data.validation.labels[indices])

    def get(name: str, make: Callable[[], Record], **inputs: Any) -> Record:
        return store.get(name, facts | inputs, make).record

    def generation(recipe: Recipe, count: int, first: int) -> Record:
        return evaluate_generation(
            tokenizer, prior, recipe, data.train, features, count=count, seed=first, class_names=names,
            classifier=classifier,
        )  # fmt: skip

    def choose() -> Record:
        first = derive_seed(seed, "demo", "choice") % 2**31  # other samples than the measured ones
        return chosen(lambda recipe: generation(recipe, CHOICE_SAMPLES, first))

    records = {"choice": get("choice", choose, samples=CHOICE_SAMPLES, candidates=[each.to_dict() for each in RECIPES])}
    pipeline.recipe = recipe = Recipe.from_dict(records["choice"]["chosen"])
    for kind in ("guided", "unguided"):
        own = Recipe.from_dict(records["choice"][kind])
        records[kind] = get(kind, lambda own=own: generation(own, SAMPLES, seed), recipe=own.to_dict(), samples=SAMPLES)
    records["reconstruction"] = get("reconstruction", lambda: evaluate_reconstruction(
        tokenizer, Split("validation", data.validation), features, count=IMAGES, seed=seed, revives=True
    ), images=IMAGES)  # fmt: skip
    records["recognition"] = get("recognition", lambda: recognise_reconstructions(
        tokenizer, data.validation, indices, classifier, names
    ), images=IMAGES)  # fmt: skip
    records["likelihood"] = get("likelihood", lambda: evaluate_likelihood(
        prior, encode_images(tokenizer, data.validation, indices), labels, image_size=tokenizer.config.image_size,
        seed=seed, starts_from_data=True,
    ), images=IMAGES)  # fmt: skip
    rows = choose_images(len(data.validation), LAYOUTS, 0, "card")
    records["layout"] = get("layout", lambda: evaluate_layout(
        tokenizer, prior, recipe, data.validation, rows, torch.from_numpy(data.validation.labels[rows]), features,
        per=PER, classifier=classifier, seed=seed,
    )[0], recipe=recipe.to_dict(), images=LAYOUTS, per=PER)  # fmt: skip
    near = get("memorisation", lambda: evaluate_memorisation(
        tokenizer, prior, recipe, data, Features(), count=SAMPLES, seed=seed
    )[0], recipe=recipe.to_dict(), samples=SAMPLES)  # fmt: skip
    records["memorisation"] = {key: value for key, value in near.items() if not key.endswith("quantiles")}
    return records


def chosen(evaluate: Callable[[Recipe], Record]) -> Record:
    """The best recipe, and the best ones with and without guidance, by `CHOICE_RULE`."""
    tried = []
    for recipe in RECIPES:
        record = evaluate(recipe)
        figures = {"n": record["n"], "rate": record["recognition"]["rate"], "kid": record["kid"]}
        tried.append({"recipe": recipe.to_dict(), "guided": recipe.guidance.active, **figures})
    return {
        "kind": "choice",
        "measure": CHOICE_RULE,
        "candidates": tried,
        "chosen": _best(tried)["recipe"],
        "guided": _best([each for each in tried if each["guided"]])["recipe"],
        "unguided": _best([each for each in tried if not each["guided"]])["recipe"],
    }


def _best(tried: Sequence[Record]) -> Record:
    top = max(each["rate"] for each in tried)
    error = (top * (1 - top) / tried[0]["n"]) ** 0.5
    near = [each for each in tried if each["rate"] >= top - error]
    return min(near, key=lambda each: float("inf") if each["kid"] is None else float(each["kid"]))


def recipe_text(data: dict[str, Any]) -> str:
    """A recipe in words."""
    recipe = Recipe.from_dict(data)
    whole = recipe.guidance.whole
    guidance = f"guidance {whole.scale:g} ({whole.kind})" if whole is not None else "no guidance"
    return f"{guidance}, temperature {recipe.temperature:g}"


def card(run: RunFolder, folder: Path, records: dict[str, Record], facts: dict[str, Any]) -> dict[str, Any]:
    """The content of `card.json`."""
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
    """The card as Markdown."""
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


def draw(pipeline: Pipeline, run: RunFolder, data: Data) -> None:
    """Write the pictures of the README."""
    tokenizer, prior, recipe, seed = pipeline.tokenizer, pipeline.prior, pipeline.recipe, run.config.seed
    classes = uniform_classes(prior.num_classes, SHOWN_ROWS * prior.num_classes)
    images = torch.cat([each.images for each in draw_samples(tokenizer, prior, recipe, classes, seed=seed)])
    rows = np.arange(2 * prior.num_classes, 4 * prior.num_classes)  # two images of each class
    labels = torch.from_numpy(data.validation.labels[rows])
    _, shown = evaluate_layout(
        tokenizer, prior, recipe, data.validation, rows, labels, Features(), per=SHOWN_PER, seed=seed
    )
    shown = Shown(*(part[: prior.num_classes] for part in shown))
    pictures = {
        "samples": samples_picture(images, data.class_names),
        "resample": resampled_picture(shown, data.class_names),
    }
    for name, picture in pictures.items():
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
    data = open_data(DATA, run.config.data, run.config.tokenizer.image_size)
    records = measured(run, folder, pipeline, data)
    pipeline.manifest.save(folder)
    known = card(run, folder, records, facts)
    save_json(folder / builtin.CARD, known)
    (folder / "README.md").write_text("\n".join(card_text(known)) + "\n", encoding="utf-8")
    draw(pipeline, run, data)
    target = Path(builtin.__file__).parent / DATA
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target)
    print(f"{target}: {sum(file.stat().st_size for file in target.rglob('*')) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
