"""`prologue evaluate attention`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from PIL import Image

from prologue.cli._options import parse
from prologue.cli.kinds.base import (
    HeldOutOptions,
    Measurement,
    NoFigure,
    Prepared,
    Row,
    checked,
    facts,
    images_sentence,
    row,
    with_notes,
)
from prologue.errors import EvaluationError
from prologue.evaluation.attention import evaluate_attention
from prologue.evaluation.likelihood import encode_images, true_classes
from prologue.evaluation.runs import Record, RunInfo, choose_images
from prologue.pipeline import Pipeline
from prologue.report.figures_maps import grid_maps, heat_map
from prologue.utils.progress import progress


@dataclass(frozen=True, kw_only=True)
class AttentionOptions(HeldOutOptions):
    count: int | None = 256
    """So many of the held-out images, at random."""
    batch: Annotated[int, NoFigure()] = 16
    """Images computed at once: bounds the memory."""


def prepare(argv: Sequence[str]) -> Prepared:
    prog, description = "prologue evaluate attention", "Measure how visual positions look at the prologue."
    options = checked(parse(AttentionOptions, argv, prog, description))
    info = RunInfo.load(options.run, options.checkpoint)
    pipeline = Pipeline.from_pretrained(info.source, options.device, options.dtype)
    if not pipeline.prior.layout.has_prologue:
        raise EvaluationError(f"{options.run} has no prologue to look at: give a run whose prior has prologue tokens")
    opened = options.open_data(info, pipeline.tokenizer.config.image_size)
    split = opened.measured()
    indices = choose_images(len(split.images), options.count, options.seed, "attention")
    class_ids, said = true_classes(
        split.images.labels[indices], opened.data.class_names, pipeline.class_names, pipeline.prior.num_classes
    )

    def measure() -> Measurement:
        tokens = encode_images(pipeline.tokenizer, split.images, indices, batch=options.batch, watch=progress)
        record = evaluate_attention(
            pipeline.prior, tokens, class_ids, split=split.name, batch=options.batch, watch=progress
        )
        record = with_notes(record, (*split.notes, *opened.notes, *said))
        return Measurement(record, _pictures(record, pipeline.tokenizer.config.grid))

    return Prepared(options, facts(info, options, opened, pipeline.device), measure)


def _pictures(record: Record, grid: tuple[int, int]) -> Mapping[str, Image.Image]:
    heads = 100 * np.array(record["head_mass"])
    by_position = np.array(record["by_position"]) / np.array(record["uniform_by_position"])
    names = [f"position {number}" for number in range(len(by_position))]
    return {
        "heads": heat_map("Attention of visual positions on the prologue", "head", "block", heads, "% of attention"),
        "positions": grid_maps(
            "Attention on each prologue position, over the image",
            names,
            by_position.reshape(-1, *grid),
            "attention / uniform attention",
        ),
    }


def rows(record: Record) -> Iterator[Row]:
    for name, label in (("mass", "prologue"), ("bos", "BOS"), ("eos", "EOS"), ("visual", "visual, itself included")):
        yield row(f"attention on {label}", record, name, ".1%")
        yield f"  if all were looked at alike: {label}", f"{record[f'{name}_uniform']:.1%}", ""
        if f"{name}_ratio" in record:
            yield row("  ratio", record, f"{name}_ratio", ".2f")
    for part in record["by_prologue_position"]:
        yield row(f"prologue position {part['position']}, ratio to uniform", part, "ratio", ".2f")
    strongest = record["strongest"]
    label = f"most on the prologue: block {strongest['block']}, head {strongest['head']}"
    yield row(label, strongest, "mass", ".1%")


def sentences(record: Record) -> Iterator[str]:
    yield images_sentence(record)
    yield (
        "Shares of the attention of the positions that predict visual tokens, teacher-forced; means over these, "
        f"{record['blocks']} blocks and {record['heads']} heads, intervals over images. A position looks at BOS, the "
        "prologue, EOS, earlier visual tokens and itself; uniform attention is that which looks at all of them alike."
    )
    ratio, low, high = (record[f"mass_ratio{end}"] for end in ("", "_low", "_high"))
    if low is None or low <= 1 <= high:
        yield f"The prologue gets {ratio:.2f} times uniform attention, not distinguishable from 1 at this N."
    else:
        yield f"The prologue gets {'more' if ratio > 1 else 'less'} than uniform attention: {ratio:.2f} times as much."
    yield "Attention says where is looked, not what is made of it: see use and gain in `prologue evaluate likelihood`."
