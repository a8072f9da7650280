"""`prologue evaluate probe`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64

from prologue.cli._options import parse
from prologue.cli.kinds.base import (
    SPLIT_WORDS,
    HeldOutOptions,
    Measurement,
    Prepared,
    Row,
    checked,
    facts,
    row,
    with_notes,
)
from prologue.data.source import ImageSet
from prologue.errors import ConfigError, EvaluationError
from prologue.evaluation.factors import known_factors
from prologue.evaluation.probe import check_classes, evaluate_probe, first_tokens, read_inputs
from prologue.evaluation.runs import Record, RunImages, RunInfo, choose_images
from prologue.models.precision import pick_dtype
from prologue.report.figures_probe import INPUT_NAMES, accuracy_chart, factor_map, probed
from prologue.utils.device import pick_device
from prologue.utils.progress import progress


@dataclass(frozen=True, kw_only=True)
class ProbeOptions(HeldOutOptions):
    train_count: int = 10_000
    """So many training images, at random, to fit the probes to; all where there are not more."""
    tokens: int | None = None
    """So many first visual tokens. Left out: as many as the prologue has, without a prologue 16."""


@dataclass(frozen=True)
class Sides:
    """The images that a probe is fitted to, and those that it is judged on."""

    train: ImageSet
    train_indices: Int64[np.ndarray, " n"]
    test: ImageSet
    test_indices: Int64[np.ndarray, " m"]
    split: str
    notes: tuple[str, ...] = ()


def prepare(argv: Sequence[str]) -> Prepared:
    prog = "prologue evaluate probe"
    description = "Measure what a linear classifier reads from frozen codes: prologue, visual tokens, pixels."
    options = checked(parse(ProbeOptions, argv, prog, description))
    if options.train_count < 5:
        raise ConfigError(f"--train-count must be at least 5, not {options.train_count}")
    info = RunInfo.load(options.run, options.checkpoint)
    device = pick_device(options.device)
    tokenizer = info.source.tokenizer().to(device, pick_dtype(options.dtype, device))
    first_tokens(tokenizer.config, options.tokens)
    opened = options.open_data(info, tokenizer.config.image_size)
    sides = _sides(opened, options)
    labels = sides.train.labels[sides.train_indices], sides.test.labels[sides.test_indices]
    check_classes(*labels, opened.data.class_names)

    def measure() -> Measurement:
        shared: dict[str, Any] = {"seed": options.seed, "batch": options.batch, "watch": progress}
        shared["tokens"] = options.tokens
        train = read_inputs(tokenizer, sides.train, sides.train_indices, what="training images", **shared)
        test = read_inputs(tokenizer, sides.test, sides.test_indices, what="tested images", **shared)
        factors = known_factors(sides.train, sides.train_indices, sides.test, sides.test_indices)
        record = evaluate_probe(
            train,
            test,
            opened.data.class_names,
            image_size=tokenizer.config.image_size,
            factors=factors,
            codebook_sizes=(tokenizer.config.prologue_codebook_size, tokenizer.config.codebook_size),
            split=sides.split,
            seed=options.seed,
            watch=progress,
        )
        pictures = {"accuracy": accuracy_chart(record)} | ({"factors": factor_map(record)} if factors else {})
        return Measurement(with_notes(record, (*opened.notes, *sides.notes)), pictures)

    return Prepared(options, facts(info, options, opened, device), measure)


def _sides(opened: RunImages, options: ProbeOptions) -> Sides:
    """Training images against held-out ones; where none are held out, or of others, a fifth is kept apart."""
    data = opened.data
    if opened.own and len(data.validation):
        train = choose_images(len(data.train), options.train_count, options.seed, "probe train")
        test = choose_images(len(data.validation), options.count, options.seed, "probe")
        return Sides(data.train, train, data.validation, test, "validation")
    split = opened.measured()
    total = len(split.images)
    count = min(options.count or max(1, total // 5), total)
    if total - count < 5:
        raise EvaluationError(f"{total} {SPLIT_WORDS[split.name]} images leave {total - count} to fit a probe to")
    test = choose_images(total, count, options.seed, "probe")
    rest = np.setdiff1d(np.arange(total), test)
    train = rest[choose_images(len(rest), options.train_count, options.seed, "probe train")]
    note = (
        "no images are held out: the probes are judged on training images that they were not fitted to, "
        "but that the tokenizer has seen"
    )
    return Sides(split.images, train, split.images, test, split.name, (note,) if opened.own else ())


def rows(record: Record) -> Iterator[Row]:
    yield "most frequent class", f"{record['chance']:.1%}", ""
    names = probed(record)
    for name in names:
        label = f"{INPUT_NAMES[name]} ({record[f'{name}_dimension']} numbers)"
        yield row(f"{label}, top-1", record, f"{name}_top1", ".1%")
        if f"{name}_top5" in record:
            yield row("  top-5", record, f"{name}_top5", ".1%")
        yield row("  shuffled labels", record, f"{name}_control", ".1%")
    for name in names[1:] if "prologue" in names else ():
        yield row(f"prologue minus {INPUT_NAMES[name]}, top-1", record, f"difference_{name}", "+.1%")
    for factor in record["factors"]:
        first, *others = [name for name in names if name in ("prologue", "visual_first", "visual_pooled")]
        yield row(f"{factor['factor']}: {INPUT_NAMES[first]} (chance {factor['chance']:.1%})", factor, first, ".1%")
        for name in others:
            yield row(f"  {INPUT_NAMES[name]}", factor, name, ".1%")


def sentences(record: Record) -> Iterator[str]:
    grid = "x".join(map(str, record["pixel_grid"]))
    yield (
        f"N = {record['n']} {SPLIT_WORDS[record['split']]} images of {record['classes']} classes; linear probes on "
        f"frozen codes of {record['n_train']} training images, pixels at {grid}. The most frequent class is "
        f"{record['chance']:.1%}."
    )
    names = probed(record)
    for name in names[1:] if "prologue" in names else ():
        yield _compared(record, name)
    yield _controlled(record)
    if "prologue" in names:
        yield from _factor_sentences(record)


def _compared(record: Record, name: str) -> str:
    low, high = record[f"difference_{name}_low"], record[f"difference_{name}_high"]
    other = INPUT_NAMES[name]
    if low is None or low <= 0 <= high:
        return f"Prologue and {other} are not distinguishable at this N in how well they tell the class."
    more, near, far = ("better", low, high) if low > 0 else ("worse", -high, -low)
    return f"The prologue tells the class {more} than {other}, by {100 * near:.1f} to {100 * far:.1f} points."


def _controlled(record: Record) -> str:
    off = [INPUT_NAMES[name] for name in probed(record) if not record[f"{name}_control_at_chance"]]
    if not off:
        return f"Probes fitted to shuffled labels ({record['shuffles']} shuffles) are at chance for every input."
    return (
        f"Probes fitted to shuffled labels are not at chance for {', '.join(off)}. That happens by luck in one "
        "evaluation of twenty: measure with another --seed before trusting the figures."
    )


def _factor_sentences(record: Record) -> Iterator[str]:
    """What the groups know of each factor, and where in the prologue it is, as far as the tests allow."""
    for factor in record["factors"]:
        name, chance = factor["factor"], factor["chance"]
        if factor["prologue_low"] <= chance:
            yield f"{name}: the prologue does not tell it above chance ({chance:.1%})."
            continue
        rates = factor["prologue_positions"]
        best = max(range(len(rates)), key=rates.__getitem__)
        where = (
            f"; of its single positions {best} tells most ({rates[best]:.1%})"
            if rates[best] > factor["clear"]
            else "; no single position tells it above chance"
        )
        yield (
            f"{name}: {factor['prologue']:.1%} from the prologue, {factor['visual_first']:.1%} from the first visual "
            f"tokens, chance {chance:.1%}{where}."
        )
