"""`prologue evaluate codebook`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from jaxtyping import Int64
from PIL import Image
from torch import Tensor
from tyro.conf import arg

from prologue.cli._options import parse
from prologue.cli.kinds.base import (
    HeldOutOptions,
    Measurement,
    Prepared,
    Row,
    checked,
    facts,
    images_sentence,
    row,
    with_notes,
)
from prologue.data.order import center_batch
from prologue.data.pictures import thumbnails, to_pil
from prologue.data.source import ImageSet
from prologue.errors import ConfigError
from prologue.evaluation.codebook import check_code, code_record, evaluate_codebook, frequent_codes, nearest_images
from prologue.evaluation.codes import CodedImages, encode_with_nearness, require_prologue
from prologue.evaluation.runs import Record, RunInfo, choose_images
from prologue.models.precision import pick_dtype
from prologue.report.figures_codes import code_sheet, entropy_chart, position_sheet, usage_chart
from prologue.utils.device import pick_device
from prologue.utils.progress import progress

_SHOWN = 16
_CODES, _EACH = 6, 8
"""Codes of a position on its sheet, and images of each."""


@dataclass(frozen=True, kw_only=True)
class CodebookOptions(HeldOutOptions):
    code: Annotated[str | None, arg(metavar="POSITION:CODE")] = None
    """Show 16 images that carry this prologue code at this position (both counted from 0), such as 3:17.
    Left out: images of the most frequent codes at each position."""

    def asked(self) -> tuple[int, int] | None:
        """The position and the code of `--code`."""
        if self.code is None:
            return None
        parts = re.fullmatch(r"(\d+):(\d+)", self.code)
        if parts is None:
            raise ConfigError(f"--code {self.code!r} cannot be read: write POSITION:CODE, such as 3:17")
        return int(parts[1]), int(parts[2])


def prepare(argv: Sequence[str]) -> Prepared:
    prog, description = "prologue evaluate codebook", "Measure how the codebooks are used, and show images of codes."
    options = checked(parse(CodebookOptions, argv, prog, description))
    asked = options.asked()
    info = RunInfo.load(options.run, options.checkpoint)
    device = pick_device(options.device)
    tokenizer = info.source.tokenizer().to(device, pick_dtype(options.dtype, device))
    config = tokenizer.config
    if asked is not None:
        require_prologue(tokenizer)
        check_code(*asked, config.prologue_tokens, config.prologue_codebook_size)
    opened = options.open_data(info, config.image_size)
    split = opened.measured()
    indices = choose_images(len(split.images), options.count, options.seed, "codebook")

    def measure() -> Measurement:
        coded = encode_with_nearness(tokenizer, split.images, indices, batch=options.batch, watch=progress)
        sizes = config.codebook_size, config.prologue_codebook_size
        record = evaluate_codebook(coded.tokens, *sizes, split=split.name)
        if asked is not None:
            record |= code_record(coded.tokens, config.prologue_codebook_size, *asked)
        shown = _Shown(coded, split.images, indices)
        pictures = {"usage": usage_chart(record), "entropy": entropy_chart(record)}
        pictures |= shown.of_code(*asked) if asked is not None else shown.of_positions(config.prologue_codebook_size)
        return Measurement(with_notes(record, (*split.notes, *opened.notes)), pictures)

    return Prepared(options, facts(info, options, opened, device), measure)


@dataclass(frozen=True)
class _Shown:
    """The measured images, to be shown by their codes."""

    coded: CodedImages
    images: ImageSet
    indices: Int64[np.ndarray, " n"]

    def of_code(self, position: int, code: int) -> dict[str, Image.Image]:
        """The nearest images of one code; none where no image carries it."""
        carried = int((self.coded.tokens.prologue[:, position] == code).sum())
        if not carried:
            return {}
        rows = nearest_images(self.coded, position, code, _SHOWN)
        title = f"Prologue position {position}, code {code}: carried by {carried} of {len(self.indices)} images"
        return {f"code-{position:02d}-{code}": code_sheet(self._pictures(rows), title)}

    def of_positions(self, size: int) -> dict[str, Image.Image]:
        """A sheet for each prologue position."""
        sheets = {}
        for position in range(self.coded.tokens.prologue.shape[1]):
            rows = [
                (f"code {code} ({carried})", self._pictures(nearest_images(self.coded, position, code, _EACH)))
                for code, carried in frequent_codes(self.coded.tokens, size, position, _CODES)
            ]
            total = len(self.indices)
            title = f"Prologue position {position}: its most frequent codes, and how many of {total} images carry them"
            sheets[f"code-{position:02d}"] = position_sheet(rows, title)
        return sheets

    def _pictures(self, rows: Int64[Tensor, " m"]) -> list[Image.Image]:
        return thumbnails(to_pil(center_batch(self.images, self.indices[rows.numpy()]).images))


def rows(record: Record) -> Iterator[Row]:
    for name in ("visual", "prologue"):
        if f"{name}_tokens" not in record:
            continue
        size = record[f"{name}_codebook_size"]
        yield f"{name} codes in use", f"{record[f'{name}_usage']:.1%} of {size}", ""
        yield f"  dead {name} codes", str(record[f"{name}_dead"]), ""
        yield "  perplexity", f"{record[f'{name}_perplexity']:.1f}", ""
        bits = record[f"{name}_entropy_bits"]
        yield "  entropy by position, bits: mean", f"{record[f'{name}_entropy_bits_mean']:.2f}", ""
        yield "  entropy by position, bits: least … most", f"{min(bits):.2f} … {max(bits):.2f}", ""
    if "code" in record:
        label = f"images with code {record['code']} at prologue position {record['code_position']}"
        yield row(label, record, "code_share", ".1%")


def sentences(record: Record) -> Iterator[str]:
    yield images_sentence(record)
    if any(record.get(f"{name}_dead") for name in ("visual", "prologue")):
        yield (
            f"A code is dead where none of the {record['n']} images carries it; "
            f"up to {record['carried_at_most']:.2%} of all images may still carry it (95 %)."
        )
    for name in ("visual", "prologue"):
        if f"{name}_tokens" in record and record["n"] < 10 * record[f"{name}_codebook_size"]:
            yield f"The entropies of the {name} positions come out too low: N is below 10 images a code."
    if "prologue_tokens" in record:
        bits = record["prologue_entropy_bits"]
        constant = [str(position) for position, value in enumerate(bits) if value == 0]
        if constant:
            yield f"Prologue position {', '.join(constant)}: the same code in all images, so it carries nothing."
    if "code" in record:
        shown = min(record["code_images"], _SHOWN)
        yield (
            f"{record['code_images']} of {record['n']} images carry code {record['code']} at prologue position "
            f"{record['code_position']}" + (f"; {shown} are shown, the nearest to it first." if shown else ".")
        )
        others = ", ".join(f"{code} ({carried})" for code, carried in record["code_frequent"])
        yield f"Most frequent there, with the images that carry them: {others}."
