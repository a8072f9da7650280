"""`prologue resample`: draw new images with the prologue tokens of given images."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from PIL import Image
from tyro.conf import Positional, arg

from prologue.bulk.output import GRID, Output
from prologue.cli._sampling import SamplingFlags, notes_on_stderr, parse_classes
from prologue.cli.options import parse
from prologue.data.names import counted
from prologue.data.pictures import (
    SampleArchive,
    file_name,
    fit,
    is_whole_archive,
    is_whole_png,
    labelled_grid,
    open_image,
    read_images,
    save_png,
    to_pil,
)
from prologue.errors import ConfigError, SamplingError
from prologue.models.sequence import TokenIds
from prologue.pipeline import Generated, Pipeline
from prologue.sampling.flags import GUIDANCE_HELP
from prologue.utils.locks import folder_lock
from prologue.utils.measurements import export_measurement
from prologue.utils.options import LOCATION
from prologue.utils.progress import progress
from prologue.utils.rng import check_seeds

ARCHIVE = "samples.npz"
_GRID_ROWS = 16
_GRID_SAMPLES = 8


@dataclass(frozen=True, kw_only=True)
class ResampleOptions(SamplingFlags):
    run: Annotated[Positional[str], arg(metavar="RUN"), LOCATION]
    """Folder of a run or an imported model with a prologue, or builtin:NAME."""
    images: Annotated[Positional[tuple[Path, ...]], arg(metavar="IMAGE…", help_behavior_hint="(required)")]
    """Image files of any size; they are resized and center-cropped to the model's size."""
    classes: Annotated[str | None, arg(metavar="A,B,…", help_behavior_hint="(default: null class)")] = None
    """One class name or id for all images, or one per image."""
    count: int = 4
    """New images per given image."""


def run(argv: list[str]) -> int:
    """Draw new images with the prologues of the given images, and write the missing ones to `--out`."""
    description = "Keep an image's prologue tokens and draw its visual tokens again: same layout, new details."
    options = parse(ResampleOptions, argv, "prologue resample", description, GUIDANCE_HELP)
    options.check()
    if options.count < 1:
        raise ConfigError(f"--count must be at least 1, not {options.count}")
    if not options.images:
        raise ConfigError("no image was given: `prologue resample RUN IMAGE… --out DIR`")
    check_seeds(options.seed, options.count * len(options.images))
    pipeline = options.open(options.run)
    pipeline.check_resamples()
    originals = _read(options.images, pipeline)
    class_ids = _classes(pipeline, options.classes, len(originals))
    folder, begin = options.out, time.perf_counter()
    with notes_on_stderr(), folder_lock(folder):
        records, drew = _fill(pipeline, originals, class_ids, options)
    seconds = time.perf_counter() - begin
    images = counted(len(records), "image")
    made = f"{images}, {GRID} and {ARCHIVE} are in {folder}"
    print(made if drew else f"{folder} already holds {'this' if len(records) == 1 else 'these'} {images}")
    origin = options.origin(["resample", *argv], options.run, pipeline, seconds)
    export_measurement(options.json, origin, records, f"of the images in {folder}")
    return 0


def _read(paths: tuple[Path, ...], pipeline: Pipeline) -> list[Image.Image]:
    """Read the images as the model sees them."""
    size, background = pipeline.tokenizer.config.image_size, pipeline.manifest.background
    return to_pil(torch.stack([fit(open_image(path, background), size) for path in paths]))


def _classes(pipeline: Pipeline, text: str | None, images: int) -> list[int]:
    """Return the class id of each given image."""
    ids = [pipeline.class_id(value) for value in (parse_classes(text, pipeline) if text is not None else [None])]
    if len(ids) not in (1, images):
        raise SamplingError(f"{images} images take one class, or one per image, not {len(ids)}")
    return ids * images if len(ids) == 1 else ids


def _fill(
    pipeline: Pipeline, originals: list[Image.Image], class_ids: list[int], options: ResampleOptions
) -> tuple[list[dict[str, Any]], bool]:
    """Write missing files; return a record per new image, and whether any file was missing.

    A complete archive gives the images without drawing. If it is missing, all images are drawn.
    """
    output, count, labels = Output(options.out), options.count, _labels(options.images)
    size, archive = pipeline.tokenizer.config.image_size, options.out / ARCHIVE
    request = options.request(
        pipeline,
        command="resample",
        images=[hashlib.sha256(image.tobytes()).hexdigest() for image in originals],
        labels=labels,
        classes=class_ids,
        count=count,
    )
    state = output.state(request, options.overwrite)
    records: list[dict[str, Any]] = []
    for index in range(len(originals) * count):
        source, seed = index // count, options.seed + index
        class_id = class_ids[source]
        about = {"class": pipeline.class_name(class_id), "class_id": class_id, "seed": seed}
        file = file_name(index, labels[source], seed)
        records.append({"file": file, "source": str(options.images[source]), **about})
    drawn = state is not None and is_whole_archive(archive, len(records), size)
    there = [drawn and is_whole_png(options.out / record["file"]) for record in records]
    if all(there) and output.has_grid():
        return records, False
    sources = pipeline.encode(originals, options.batch)
    reconstructions = pipeline.decode(sources.visual[:_GRID_ROWS], options.batch)
    begun = {"batch": options.batch, "compiled": pipeline.compile is True, "threads": pipeline.threads(options.batch)}
    start = state is None
    state = {"request": request, **begun} if state is None else state
    if drawn:
        images: Iterator[Image.Image] = read_images(archive, len(records))
    else:
        images = _draw(pipeline, sources, class_ids, options, output, state if start else None)
    rows: list[list[Image.Image]] = []
    for index, image in enumerate(images):
        source, offset = divmod(index, count)
        if not there[index]:
            save_png(options.out / records[index]["file"], image, durable=False)
        if source < _GRID_ROWS and offset == 0:
            rows.append([originals[source], reconstructions[source]])
        if source < _GRID_ROWS and offset < _GRID_SAMPLES:
            rows[-1].append(image)
    samples = [f"sample {index + 1}" for index in range(min(count, _GRID_SAMPLES))]
    save_png(
        options.out / GRID,
        labelled_grid(rows, ["original", "reconstruction", *samples], labels[: len(rows)]),
    )
    output.finish(state)
    return records, True


def _draw(
    pipeline: Pipeline,
    sources: TokenIds,
    class_ids: list[int],
    options: ResampleOptions,
    output: Output,
    state: Mapping[str, Any] | None,
) -> Iterator[Image.Image]:
    """Draw the new images of each given image, and write the archive.

    With a `state`, the folder is cleared after the first images are drawn.
    """
    count = options.count

    def resampled(index: int) -> Generated:
        seed, of = options.seed + index * count, sources[index : index + 1]
        return pipeline.resample(of, class_ids[index], count, seed=seed, batch=options.batch, **options.sampling())

    steps = iter(progress(range(len(class_ids)), "images"))
    first = resampled(next(steps))
    if state is not None:
        output.start(state)
    parts: list[TokenIds] = []
    size = pipeline.tokenizer.config.image_size
    with SampleArchive(options.out / ARCHIVE, len(class_ids) * count, size) as archive:
        for out in chain([first], map(resampled, steps)):
            archive.add(out.images)
            parts.append(out.tokens.to("cpu"))
            yield from out.images
        archive.finish(
            class_ids=np.repeat(np.array(class_ids, dtype=np.int64), count),
            class_names=np.array(pipeline.class_names, dtype=np.str_),
            seeds=np.arange(options.seed, options.seed + len(class_ids) * count, dtype=np.int64),
            source=np.repeat(np.arange(len(class_ids)), count),
            prologue=np.concatenate([part.prologue.numpy() for part in parts]),
            visual=np.concatenate([part.visual.numpy() for part in parts]),
        )


def _labels(paths: tuple[Path, ...]) -> list[str]:
    """File names without suffix; equal names get the name of their folder."""
    stems = Counter(path.stem for path in paths)
    return [path.stem if stems[path.stem] == 1 else f"{path.parent.name} {path.stem}".strip() for path in paths]
