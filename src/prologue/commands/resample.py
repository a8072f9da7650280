"""`prologue resample`: new images with the prologue of given ones."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from PIL import Image
from tyro.conf import Positional, arg

from prologue.commands._options import parse, provenance, write_measurement
from prologue.commands._sampling import (
    GUIDANCE_HELP,
    SamplingFlags,
    clear_earlier,
    notes_on_stderr,
    output_folder,
    parse_classes,
    progress,
)
from prologue.errors import ConfigError, SamplingError
from prologue.images import SampleArchive, file_name, fit, labelled_grid, open_image, to_pil
from prologue.pipeline import Pipeline
from prologue.sequence import TokenIds

_GRID_ROWS = 16
_GRID_SAMPLES = 8


@dataclass(frozen=True, kw_only=True)
class ResampleOptions(SamplingFlags):
    run: Annotated[Positional[str], arg(metavar="RUN")]
    """A finished run's folder, an imported one, or builtin:NAME, whose tokenizer has a prologue."""
    images: Annotated[Positional[tuple[Path, ...]], arg(metavar="IMAGE…")]
    """Image files of any size; they are covered and center-cropped to the model's."""
    classes: Annotated[str | None, arg(metavar="A,B,…")] = None
    """One class for all, or one for each image. Left out: the null class."""
    count: int = 4
    """New images for each given one."""


def run(argv: list[str]) -> int:
    """Draw new images with the prologues of the given ones and write them to `--out`."""
    description = "Keep an image's prologue and draw its visual tokens again: same layout, new details."
    options = parse(ResampleOptions, argv, "prologue resample", description, GUIDANCE_HELP)
    options.check()
    if options.count < 1:
        raise ConfigError(f"--count must be at least 1, not {options.count}")
    if not options.images:
        raise ConfigError("no image was given: `prologue resample RUN IMAGE… --out DIR`")
    pipeline = options.open(options.run)
    pipeline.check_resamples()
    originals = _read(options.images, pipeline)
    class_ids = _classes(pipeline, options.classes, len(originals))
    folder = output_folder(options.out, options.overwrite)
    begin = time.perf_counter()
    with notes_on_stderr():
        records = _draw(pipeline, originals, class_ids, options)
    if options.json is not None:
        extra = {"run": options.run, "device": str(pipeline.device), "dtype": pipeline.prior.precision}
        extra |= pipeline.source.facts if pipeline.source is not None else {}
        seconds = time.perf_counter() - begin
        write_measurement(options.json, provenance(["resample", *argv], **extra, seconds=seconds), records)
    print(f"{len(records)} images, grid.png and samples.npz are in {folder}")
    return 0


def _read(paths: tuple[Path, ...], pipeline: Pipeline) -> list[Image.Image]:
    """The pictures as the model sees them."""
    size, background = pipeline.tokenizer.config.image_size, pipeline.manifest.background
    return to_pil(torch.stack([fit(open_image(path, background), size) for path in paths]))


def _classes(pipeline: Pipeline, text: str | None, images: int) -> list[int]:
    """The class id of each given image."""
    ids = [pipeline.class_id(value) for value in (parse_classes(text, pipeline) if text is not None else [None])]
    if len(ids) not in (1, images):
        raise SamplingError(f"{images} images take one class, or one each, not {len(ids)}")
    return ids * images if len(ids) == 1 else ids


def _draw(
    pipeline: Pipeline, originals: list[Image.Image], class_ids: list[int], options: ResampleOptions
) -> list[dict[str, Any]]:
    """Draw and write image by image of the given ones; one record for each new image."""
    folder, count, labels = options.out, options.count, _labels(options.images)
    sources = pipeline.encode(originals, options.batch)
    reconstructions = pipeline.decode(sources.visual[:_GRID_ROWS], options.batch)
    records: list[dict[str, Any]] = []
    parts: list[TokenIds] = []
    rows: list[list[Image.Image]] = []
    with SampleArchive(folder / "samples.npz", len(originals) * count, pipeline.tokenizer.config.image_size) as archive:
        for index in progress(range(len(originals)), "images"):
            first = index * count
            out = pipeline.resample(
                sources[index : index + 1],
                class_ids[index],
                count,
                seed=options.seed + first,
                batch=options.batch,
                **options.sampling(),
            )
            if index == 0:
                clear_earlier(folder)
            archive.add(out.images)
            parts.append(out.tokens.to("cpu"))
            if index < _GRID_ROWS:
                rows.append([originals[index], reconstructions[index], *out.images[:_GRID_SAMPLES]])
            for offset, (image, seed) in enumerate(zip(out.images, out.seeds, strict=True)):
                file = file_name(first + offset, labels[index], seed)
                image.save(folder / file)
                name = pipeline.class_name(class_ids[index])
                source = str(options.images[index])
                records.append(
                    {"file": file, "source": source, "class": name, "class_id": class_ids[index], "seed": seed}
                )
        archive.finish(
            class_ids=np.repeat(np.array(class_ids, dtype=np.int64), count),
            class_names=np.array(pipeline.class_names, dtype=np.str_),
            seeds=np.array([record["seed"] for record in records], dtype=np.int64),
            source=np.repeat(np.arange(len(originals)), count),
            prologue=np.concatenate([part.prologue.numpy() for part in parts]),
            visual=np.concatenate([part.visual.numpy() for part in parts]),
        )
    samples = [f"sample {index + 1}" for index in range(min(count, _GRID_SAMPLES))]
    labelled_grid(rows, ["original", "reconstruction", *samples], labels[: len(rows)]).save(folder / "grid.png")
    return records


def _labels(paths: tuple[Path, ...]) -> list[str]:
    """File names without ending, with the folder's name where two would be the same."""
    stems = Counter(path.stem for path in paths)
    return [path.stem if stems[path.stem] == 1 else f"{path.parent.name} {path.stem}".strip() for path in paths]
