"""`prologue evaluate codebook`: use of the codebooks, and the images that have a prologue code."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Int64
from PIL import Image
from torch import Tensor
from tyro.conf import arg

from prologue.data.order import center_batch
from prologue.data.pictures import labelled_grid, thumbnails, titled, to_pil
from prologue.errors import ConfigError, EvaluationError
from prologue.evaluation.codes import CodedImages, encode_with_nearness, require_prologue
from prologue.evaluation.kinds.base import (
    HeldOutOptions,
    Kind,
    Measurement,
    Prepared,
    Row,
    Subject,
    images_sentence,
    row,
)
from prologue.evaluation.metrics.intervals import wilson_interval
from prologue.evaluation.runs import Record
from prologue.models.sequence import TokenIds
from prologue.report.figures import COLOURS, INK, add_legend, panels, picture_of, style_axes
from prologue.training.codebooks import Usage
from prologue.utils.progress import progress

_SHOWN = 16
"""Images of one code in its picture."""
_CODES, _EACH = 6, 8
"""Codes of a position in its picture, and images of each code."""
_SEGMENTS = {"prologue": 1, "visual": 0}
"""Segments with their colours."""


@dataclass(frozen=True, kw_only=True)
class CodebookOptions(HeldOutOptions):
    code: Annotated[str | None, arg(metavar="POSITION:CODE")] = None
    """Prologue position and code, both from 0, of which 16 images are shown, such as 3:17.
    Default: images of the most frequent codes at each position."""

    def asked(self) -> tuple[int, int] | None:
        """Position and code of `--code`."""
        if self.code is None:
            return None
        parts = re.fullmatch(r"(\d+):(\d+)", self.code)
        if parts is None:
            raise ConfigError(f"--code {self.code!r} cannot be read: write POSITION:CODE, such as 3:17")
        return int(parts[1]), int(parts[2])


class Codebook(Kind[CodebookOptions]):
    """Use of both codebooks on held-out images."""

    summary = "use of both codebooks, and the images that have a prologue code"
    options = CodebookOptions

    def prepare(self, options: CodebookOptions) -> Prepared:
        asked = options.asked()
        subject = Subject.open(options)
        config = subject.tokenizer.config
        size = config.prologue_codebook_size
        if asked is not None:
            require_prologue(subject.tokenizer)
            check_code(*asked, config.prologue_tokens, size)
        images = subject.split.images
        indices = subject.choose(options.count, "codebook")

        def shown(rows: Int64[Tensor, " m"]) -> list[Image.Image]:
            return thumbnails(to_pil(center_batch(images, indices[rows.numpy()]).images))

        def sheets(coded: CodedImages) -> Iterator[tuple[str, Image.Image]]:
            total = len(indices)
            for position in range(coded.tokens.prologue.shape[1]) if asked is None else ():
                codes = frequent_codes(coded.tokens, size, position, _CODES)
                rows = [
                    (f"code {code} ({count})", shown(nearest_images(coded, position, code, _EACH)))
                    for code, count in codes
                ]
                title = f"Prologue position {position}: the most frequent codes, with their numbers of {total} images"
                yield f"code-{position:02d}", position_sheet(rows, title)
            if asked is not None:
                position, code = asked
                count = int((coded.tokens.prologue[:, position] == code).sum())
                title = f"Prologue position {position}, code {code}: {count} of {total} images"
                if count:
                    found = shown(nearest_images(coded, position, code, _SHOWN))
                    yield f"code-{position:02d}-{code}", code_sheet(found, title)

        def measure() -> Measurement:
            coded = encode_with_nearness(subject.tokenizer, images, indices, batch=options.batch, watch=progress)
            record = evaluate_codebook(coded.tokens, config.codebook_size, size, split=subject.split.name)
            if asked is not None:
                record |= code_record(coded.tokens, size, *asked)
            pictures = {"usage": usage_chart(record), "entropy": entropy_chart(record), **dict(sheets(coded))}
            return Measurement(subject.noted(record), pictures)

        return Prepared(options, subject.facts(), measure)

    def rows(self, record: Record) -> Iterator[Row]:
        for name in _present(record)[::-1]:
            yield f"{name} codes in use", f"{record[f'{name}_usage']:.1%} of {record[f'{name}_codebook_size']}", ""
            yield f"  dead {name} codes", str(record[f"{name}_dead"]), ""
            yield "  perplexity", f"{record[f'{name}_perplexity']:.1f}", ""
            bits = record[f"{name}_entropy_bits"]
            yield "  entropy by position, bits: mean", f"{record[f'{name}_entropy_bits_mean']:.2f}", ""
            yield "  entropy by position, bits: least … most", f"{min(bits):.2f} … {max(bits):.2f}", ""
        if "code" in record:
            label = f"images with code {record['code']} at prologue position {record['code_position']}"
            yield row(label, record, "code_share", ".1%")

    def sentences(self, record: Record) -> Iterator[str]:
        yield images_sentence(record)
        names = _present(record)[::-1]
        if any(record[f"{name}_dead"] for name in names):
            yield (
                f"A dead code is one that none of the {record['n']} images has; up to {record['carried_at_most']:.2%} "
                "of all images may still have it (95 %)."
            )
        for name in names:
            if record["n"] < 10 * record[f"{name}_codebook_size"]:
                yield f"The entropies of the {name} positions are too low: N is below 10 images per code."
        constant = [str(at) for at, value in enumerate(record.get("prologue_entropy_bits", ())) if value == 0]
        if constant:
            yield f"Prologue position {', '.join(constant)} has the same code in all images and carries no information."
        if "code" in record:
            images, code, position = record["code_images"], record["code"], record["code_position"]
            shown = f"; the {min(images, _SHOWN)} nearest to it are shown, the nearest first" if images else ""
            yield f"{images} of {record['n']} images have code {code} at prologue position {position}{shown}."
            others = ", ".join(f"{code} ({count})" for code, count in record["code_frequent"])
            yield f"The most frequent codes there, with their numbers of images: {others}."


def evaluate_codebook(
    tokens: TokenIds, visual_size: int, prologue_size: int = 0, *, split: str = "validation"
) -> Record:
    """Use of both codebooks by `tokens`; without a prologue its figures are absent.

    For each segment: `usage` and `used` codes, `dead` codes (in no image at any position), `perplexity` over all
    positions, `entropy_bits` at each position and its mean, `used_by_position`, and `counts`, the occurrences of each
    used code, the most frequent first. `carried_at_most` bounds the share of images with a code that none of the `n`
    has (95 %). Entropies of few images are too low.
    """
    n = len(tokens)
    if not n:
        raise EvaluationError("there are no images to measure the codebooks on")
    record: Record = {"kind": "codebook", "n": n, "split": split, "views": "center"}
    record["carried_at_most"] = 1 - 0.05 ** (1 / n)
    for name, ids, size in (("visual", tokens.visual, visual_size), ("prologue", tokens.prologue, prologue_size)):
        if ids.shape[1]:
            record |= {f"{name}_{key}": value for key, value in _figures(ids, size).items()}
    return record | {"notes": []}


def _figures(ids: Int64[Tensor, "n T"], size: int) -> Record:
    usage = Usage(ids.shape[1], size, torch.device("cpu"))
    usage.add(ids)
    used = int((usage.counts.sum(0) > 0).sum())
    bits = [max(0.0, value / math.log(2)) for value in usage.entropies().tolist()]
    return {
        "tokens": ids.shape[1],
        "codebook_size": size,
        "usage": used / size,
        "used": used,
        "dead": size - used,
        "perplexity": usage.perplexity(),
        "entropy_bits": bits,
        "entropy_bits_mean": sum(bits) / len(bits),
        "most_bits": math.log2(min(size, len(ids))),
        "used_by_position": (usage.counts > 0).sum(1).tolist(),
        "counts": usage.counts.sum(0).sort(descending=True).values[:used].tolist(),
    }


def check_code(position: int, code: int, positions: int, size: int) -> None:
    """Raise `EvaluationError` for a position or a code that the prologue does not have."""
    if not 0 <= position < positions:
        raise EvaluationError(f"there is no prologue position {position}: positions are 0…{positions - 1}")
    if not 0 <= code < size:
        raise EvaluationError(f"there is no prologue code {code}: codes are 0…{size - 1}")


def code_record(tokens: TokenIds, size: int, position: int, code: int) -> Record:
    """The images with a prologue code at a position, their share, and the most frequent codes there."""
    count = int((tokens.prologue[:, position] == code).sum())
    record: Record = {"code_position": position, "code": code, "code_images": count}
    record["code_frequent"] = [list(pair) for pair in frequent_codes(tokens, size, position, 5)]
    return record | wilson_interval(count, len(tokens)).fields("code_share")


def frequent_codes(tokens: TokenIds, size: int, position: int, most: int) -> list[tuple[int, int]]:
    """At most `most` codes at a prologue position, the most frequent first, with their numbers of images."""
    counts = torch.bincount(tokens.prologue[:, position], minlength=size)
    order = torch.argsort(counts, descending=True, stable=True)[:most]
    return [(int(code), int(counts[code])) for code in order if counts[code]]


def nearest_images(coded: CodedImages, position: int, code: int, most: int) -> Int64[Tensor, " m"]:
    """Rows of at most `most` images with a code at a position, the nearest to the code first."""
    rows = (coded.tokens.prologue[:, position] == code).nonzero()[:, 0]
    return rows[torch.argsort(coded.nearness[rows, position], descending=True, stable=True)[:most]]


def usage_chart(record: Record) -> Image.Image:
    """Frequencies of the codes of each codebook, the most frequent first; dead codes are a grey band."""
    names = _present(record)
    figure, drawn = panels(len(names), (6.4, 3.1 * len(names)))
    for axes, name in zip(drawn, names, strict=True):
        counts, size = np.array(record[f"{name}_counts"]), record[f"{name}_codebook_size"]
        used, values = len(counts), 100 * counts / counts.sum()
        title = f"{name.capitalize()} codebook: {used} of {size} codes in use"
        style_axes(axes, title, "code, the most frequent first", "tokens, %")
        axes.plot(np.arange(1, used + 1), values, color=COLOURS[_SEGMENTS[name]], linewidth=2.2)
        axes.axhline(100 / size, color=INK, linestyle=":", linewidth=1.4, label="uniform use")
        axes.axvspan(used + 0.5, size + 0.5, color="#e5e7eb", label="dead codes" if used < size else None)
        axes.set_xlim(0.5, size + 0.5)
        axes.set_yscale("log")
        # Whole decades, so that the axis has at least two labels.
        decades = math.floor(math.log10(values[-1]) - 0.05), math.ceil(math.log10(values[0]) + 0.05)
        axes.set_ylim(10.0 ** decades[0], 10.0 ** decades[1])
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: "")
        add_legend(axes, loc="lower left")
    return picture_of(figure)


def entropy_chart(record: Record) -> Image.Image:
    """Bits at each position of each segment, and the maximum for this codebook and number of images."""
    names = _present(record)
    figure, drawn = panels(len(names), (6.4, 3.1 * len(names)))
    for axes, name in zip(drawn, names, strict=True):
        bits, most = record[f"{name}_entropy_bits"], record[f"{name}_most_bits"]
        places = "position" if name == "prologue" else "position, row by row"
        style_axes(axes, f"{name.capitalize()} tokens: entropy by position", places, "bits")
        axes.bar(range(len(bits)), bits, 0.8, color=COLOURS[_SEGMENTS[name]])
        axes.axhline(most, color=INK, linestyle=":", linewidth=1.4, label=f"maximum, {most:.1f} bits")
        axes.set_xlim(-0.6, len(bits) - 0.4)
        axes.set_xticks(range(0, len(bits), math.ceil(len(bits) / 17)))
        axes.set_ylim(0, 1.3 * most if most else 1)
        axes.grid(axis="x", visible=False)
        add_legend(axes, loc="upper right")
    return picture_of(figure)


def code_sheet(images: list[Image.Image], title: str, columns: int = 4) -> Image.Image:
    """The images of one code under a title."""
    rows = [images[start : start + columns] for start in range(0, len(images), columns)]
    return titled(labelled_grid(rows), title)


def position_sheet(rows: list[tuple[str, list[Image.Image]]], title: str) -> Image.Image:
    """Images of several codes of one position, one labelled row per code."""
    columns = max(len(images) for _, images in rows)
    table: list[Any] = [[*images, *[None] * (columns - len(images))] for _, images in rows]
    return titled(labelled_grid(table, row_labels=[label for label, _ in rows]), title)


def _present(record: Record) -> list[str]:
    return [name for name in _SEGMENTS if f"{name}_tokens" in record]
