"""`prologue generate`: images from a trained run as PNG files, a labelled grid and an NPZ archive."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
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
from prologue.errors import ConfigError
from prologue.images import SampleArchive, class_grid, file_name
from prologue.pipeline import IN_TURN, Pipeline

_DEFAULT_COUNT = 16
_GRID_IMAGES = 600
"""The grid shows at most the first so many images."""


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(SamplingFlags):
    run: Annotated[Positional[str], arg(metavar="RUN")]
    """A finished run's folder, or an imported one."""
    classes: Annotated[str | None, arg(metavar="A,B,…")] = None
    """Names or ids; `null` for no class. Left out: all classes in turn."""
    count: int | None = None
    """Images in all, dealt to the classes in turn. Left out: one for each class named, else 16."""


def run(argv: list[str]) -> int:
    """Draw images and write them to `--out`."""
    options = parse(GenerateOptions, argv, "prologue generate", "Draw images from a trained run.", GUIDANCE_HELP)
    options.check()
    if options.count is not None and options.count < 1:
        raise ConfigError(f"--count must be at least 1, not {options.count}")
    pipeline = Pipeline.from_pretrained(options.run, options.device, options.dtype)
    class_ids = _deal(pipeline, options)
    folder = output_folder(options.out, options.overwrite)
    begin = time.perf_counter()
    with notes_on_stderr():
        records = _draw(pipeline, class_ids, options)
    if options.json is not None:
        extra = {"run": options.run, "device": str(pipeline.device), "dtype": str(pipeline.dtype)}
        seconds = time.perf_counter() - begin
        write_measurement(options.json, provenance(["generate", *argv], **extra, seconds=seconds), records)
    print(f"{len(records)} images, grid.png and samples.npz are in {folder}")
    return 0


def _deal(pipeline: Pipeline, options: GenerateOptions) -> list[int]:
    """The class id of each image; unknown classes are refused here, before anything is drawn or written."""
    classes = IN_TURN if options.classes is None else parse_classes(options.classes, pipeline)
    count = options.count
    if count is None and options.classes is None:
        count = _DEFAULT_COUNT
    return pipeline.deal(classes, count)


def _draw(pipeline: Pipeline, class_ids: list[int], options: GenerateOptions) -> list[dict[str, Any]]:
    """Draw and write batch by batch, so that any number of images fits the memory; one record for each image."""
    folder, sampling = options.out, options.sampling()
    records: list[dict[str, Any]] = []
    shown: list[Image.Image] = []
    tokens = []
    size = pipeline.tokenizer.config.image_size
    with SampleArchive(folder / "samples.npz", len(class_ids), size) as archive:
        for start in progress(range(0, len(class_ids), options.batch), "batches"):
            chunk = class_ids[start : start + options.batch]
            out = pipeline.generate(chunk, seed=options.seed + start, batch=options.batch, **sampling)
            if start == 0:
                clear_earlier(folder)
            archive.add(out.images)
            tokens.append(out.tokens.to("cpu"))
            shown += out.images[: _GRID_IMAGES - len(shown)]
            for offset, (image, class_id, seed) in enumerate(zip(out.images, chunk, out.seeds, strict=True)):
                name = pipeline.class_name(class_id) if pipeline.class_names else None
                file = file_name(start + offset, name, seed)
                image.save(folder / file)
                records.append({"file": file, "class": name, "class_id": class_id, "seed": seed})
        archive.finish(
            class_ids=np.array(class_ids, dtype=np.int64),
            class_names=np.array(pipeline.class_names, dtype=np.str_),
            seeds=np.array([record["seed"] for record in records], dtype=np.int64),
            prologue=np.concatenate([part.prologue.numpy() for part in tokens]),
            visual=np.concatenate([part.visual.numpy() for part in tokens]),
        )
    class_grid(shown, [record["class"] or "" for record in records[: len(shown)]]).save(folder / "grid.png")
    return records
