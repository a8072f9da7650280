"""`prologue evaluate probe`: what a linear classifier predicts from frozen codes: the class, and known factors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import NormalDist
from textwrap import fill
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float32, Int64
from PIL import Image
from torch import Tensor

from prologue.config import TokenizerConfig
from prologue.data.source import ImageSet
from prologue.errors import ConfigError, EvaluationError
from prologue.evaluation.codes import prologue_vectors, visual_vectors
from prologue.evaluation.factors import Factor, known_factors
from prologue.evaluation.kinds.base import (
    SPLIT_WORDS,
    HeldOutOptions,
    Kind,
    Measurement,
    Prepared,
    Row,
    Subject,
    row,
    with_notes,
)
from prologue.evaluation.metrics.intervals import mean_interval, wilson_interval
from prologue.evaluation.metrics.linear import fit_linear
from prologue.evaluation.runs import (
    ProgressCallback,
    Record,
    RunImages,
    center_crops,
    choose_images,
    evaluating,
    unwatched,
)
from prologue.models.sequence import TokenIds
from prologue.models.tokenizer import Tokenizer, to_model_range
from prologue.report.figures import (
    COLOURS,
    INK,
    add_legend,
    colour_bar,
    draw_map,
    error_bars,
    panels,
    picture_of,
    style_axes,
)
from prologue.utils.progress import progress
from prologue.utils.rng import derive_seed, torch_stream

INPUTS = {
    "prologue": "prologue",
    "visual_first": "first visual tokens",
    "visual_pooled": "mean of all visual tokens",
    "pixels": "pixels",
    "random_encoder": "a random encoder's prologue",
}
"""The inputs of probes with their labels. As many first visual tokens as prologue tokens are taken, and the image is
resized to about the same number of values. Without a prologue there are only the three in the middle."""
FIRST_TOKENS = 16
"""First visual tokens of a tokenizer without a prologue, as in the paper."""
SHUFFLES = 8
_T_95 = 2.364624
_T_99 = 3.499483
"""Student's t for 95 % and 99 % intervals of the mean of 8 values. Each of the 5 controls is tested at 1 %."""
_TOP = 5


@dataclass(frozen=True, kw_only=True)
class ProbeOptions(HeldOutOptions):
    train_count: int = 10_000
    """Largest number of training images, chosen at random, to fit the probes to."""
    tokens: int | None = None
    """Number of first visual tokens. Default: the number of prologue tokens, or 16 without a prologue."""

    def check(self) -> None:
        super().check()
        if self.train_count < 5:
            raise ConfigError(f"--train-count must be at least 5, not {self.train_count}")


@dataclass(frozen=True)
class Sides:
    """The images that a probe is fitted to, and those that it is tested on."""

    train: ImageSet
    train_indices: Int64[np.ndarray, " n"]
    test: ImageSet
    test_indices: Int64[np.ndarray, " m"]
    split: str
    notes: tuple[str, ...] = ()


class Probe(Kind[ProbeOptions]):
    """Linear probes on frozen codes, beside visual tokens, pixels and a random encoder."""

    summary = "what a linear classifier predicts from frozen codes, compared with visual tokens and pixels"
    options = ProbeOptions

    def prepare(self, options: ProbeOptions) -> Prepared:
        subject = Subject.open(options)
        tokenizer, config, names = subject.tokenizer, subject.tokenizer.config, subject.images.data.class_names
        first_tokens(config, options.tokens)
        sides = _sides(subject.images, options)
        check_classes(sides.train.labels[sides.train_indices], sides.test.labels[sides.test_indices], names)

        def measure() -> Measurement:
            shared: dict[str, Any] = {"seed": options.seed, "batch": options.batch, "watch": progress}
            shared["tokens"] = options.tokens
            train = read_inputs(tokenizer, sides.train, sides.train_indices, what="training images", **shared)
            test = read_inputs(tokenizer, sides.test, sides.test_indices, what="tested images", **shared)
            factors = known_factors(sides.train, sides.train_indices, sides.test, sides.test_indices)
            record = evaluate_probe(
                train,
                test,
                names,
                image_size=config.image_size,
                factors=factors,
                codebook_sizes=(config.prologue_codebook_size, config.codebook_size),
                split=sides.split,
                seed=options.seed,
                watch=progress,
            )
            pictures = {"accuracy": accuracy_chart(record)} | ({"factors": factor_map(record)} if factors else {})
            return Measurement(with_notes(record, (*subject.images.notes, *sides.notes)), pictures)

        return Prepared(options, subject.facts(), measure)

    def rows(self, record: Record) -> Iterator[Row]:
        yield "most frequent class", f"{record['chance']:.1%}", ""
        names = _probed(record)
        for name in names:
            label = f"{INPUTS[name]} ({record[f'{name}_dimension']} numbers)"
            yield row(f"{label}, top-1", record, f"{name}_top1", ".1%")
            if f"{name}_top5" in record:
                yield row("  top-5", record, f"{name}_top5", ".1%")
            yield row("  shuffled labels", record, f"{name}_control", ".1%")
        for name in names[1:] if "prologue" in names else ():
            yield row(f"prologue minus {INPUTS[name]}, top-1", record, f"difference_{name}", "+.1%")
        for factor in record["factors"]:
            first, *others = [name for name in names if name in ("prologue", "visual_first", "visual_pooled")]
            yield row(f"{factor['factor']}: {INPUTS[first]} (chance {factor['chance']:.1%})", factor, first, ".1%")
            for name in others:
                yield row(f"  {INPUTS[name]}", factor, name, ".1%")

    def sentences(self, record: Record) -> Iterator[str]:
        grid = "x".join(map(str, record["pixel_grid"]))
        yield (
            f"N = {record['n']} {SPLIT_WORDS[record['split']]} images of {record['classes']} classes. The linear "
            f"probes are fitted to frozen codes of {record['n_train']} training images, or to pixels at {grid}. "
            f"{record['chance']:.1%} of the images have the most frequent class."
        )
        names = _probed(record)
        for name in names[1:] if "prologue" in names else ():
            yield _compared(record, name)
        off = [INPUTS[name] for name in names if not record[f"{name}_control_at_chance"]]
        if off:
            yield (
                f"Probes fitted to shuffled labels are not at chance for {', '.join(off)}. That happens in one "
                "evaluation of twenty: measure with another --seed before you trust the figures."
            )
        else:
            yield f"Probes fitted to shuffled labels ({record['shuffles']} shuffles) are at chance for every input."
        for factor in record["factors"] if "prologue" in names else ():
            yield _factor_sentence(factor)


def _probed(record: Record) -> list[str]:
    """The inputs in the record."""
    return [name for name in INPUTS if f"{name}_dimension" in record]


def _compared(record: Record, name: str) -> str:
    low, high = record[f"difference_{name}_low"], record[f"difference_{name}_high"]
    other = INPUTS[name]
    if low is None or low <= 0 <= high:
        return f"Prologue and {other} are not distinguishable at this N in predicting the class."
    more, near, far = ("better", low, high) if low > 0 else ("worse", -high, -low)
    return f"The prologue predicts the class {more} than {other}, by {100 * near:.1f} to {100 * far:.1f} points."


def _factor_sentence(factor: Record) -> str:
    """How well the prologue predicts a factor, and at which single position."""
    name, chance, rates = factor["factor"], factor["chance"], factor["prologue_positions"]
    if factor["prologue_low"] <= chance:
        return f"{name}: the prologue does not predict it above chance ({chance:.1%})."
    best = max(range(len(rates)), key=rates.__getitem__)
    where = "no single position is above chance"
    if rates[best] > factor["clear"]:
        where = f"position {best} is the best single one ({rates[best]:.1%})"
    return (
        f"{name}: {factor['prologue']:.1%} from the prologue, {factor['visual_first']:.1%} from the first visual "
        f"tokens, chance {chance:.1%}; {where}."
    )


def _sides(opened: RunImages, options: ProbeOptions) -> Sides:
    """Training and held-out images; without held-out images, and for other data, a fifth is set aside for the test."""
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
        "no images are held out: the probes are tested on training images that they were not fitted to, "
        "but that the tokenizer has seen"
    )
    return Sides(split.images, train, split.images, test, split.name, (note,) if opened.own else ())


class ProbeInputs(NamedTuple):
    """The inputs of `n` images by name, their tokens and class ids, on the CPU.

    The values are on the device on which probes are fitted: the CUDA device of the tokenizer, else the CPU (float64).
    """

    values: dict[str, Float32[Tensor, "n d"]]
    tokens: TokenIds
    labels: Int64[Tensor, " n"]


class Fit(NamedTuple):
    """A fitted probe on the test images: the correct ones, and those correct within the five most likely classes."""

    right: Bool[Tensor, " n"]
    within: Bool[Tensor, " n"]
    l2: float


def pixel_grid(image_size: tuple[int, int], dimension: int) -> tuple[int, int]:
    """Rows and columns of a resized image of about the same proportions with about `dimension` values."""
    rows, columns = image_size
    scale = math.sqrt(dimension / (3 * rows * columns))
    tall, wide = ({min(max(1, part(side * scale)), side) for part in (math.floor, math.ceil)} for side in image_size)
    return min(product(tall, wide), key=lambda size: (abs(3 * size[0] * size[1] - dimension), size))


def read_inputs(
    tokenizer: Tokenizer,
    images: ImageSet,
    indices: Int64[np.ndarray, " n"],
    *,
    tokens: int | None = None,
    seed: int = 0,
    batch: int = 64,
    watch: ProgressCallback = unwatched,
    what: str = "encoding",
) -> ProbeInputs:
    """All inputs of the center crops of the images at `indices`; `tokens` as in `first_tokens`."""
    config = tokenizer.config
    first = next(tokenizer.parameters())
    count = first_tokens(config, tokens)
    random = Tokenizer(config, seed=derive_seed(seed, "evaluation", "random encoder")).to(first.device, first.dtype)
    grid = pixel_grid(config.image_size, count * config.code_dim)
    names = [*INPUTS] if config.prologue_tokens else [*INPUTS][1:4]
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    ids = []
    with evaluating(tokenizer, random):
        for pictures in center_crops(images, indices, batch=batch, watch=watch, what=what):
            given = to_model_range(pictures.to(first.device))
            own = tokenizer.encode(given).to("cpu")
            ids.append(own)
            visual = visual_vectors(tokenizer, own.visual)
            parts["visual_first"].append(visual[:, :count].flatten(1))
            parts["visual_pooled"].append(visual.mean(1))
            parts["pixels"].append(F.adaptive_avg_pool2d(pictures.float() / 255, grid).flatten(1))
            if config.prologue_tokens:
                parts["prologue"].append(prologue_vectors(tokenizer, own.prologue).flatten(1))
                parts["random_encoder"].append(prologue_vectors(random, random.encode(given).prologue).flatten(1))
    place = first.device if first.device.type == "cuda" else "cpu"
    values = {name: torch.cat(part).to(place) for name, part in parts.items()}
    return ProbeInputs(values, TokenIds.cat(ids), torch.from_numpy(images.labels[indices].astype(np.int64)))


def first_tokens(config: TokenizerConfig, asked: int | None) -> int:
    """The number of first visual tokens, `asked` or the default; too many are an `EvaluationError`."""
    if asked is None:
        return min(config.prologue_tokens or FIRST_TOKENS, config.visual_tokens)
    if not 1 <= asked <= config.visual_tokens:
        raise EvaluationError(f"{asked} first visual tokens cannot be probed: an image has {config.visual_tokens}")
    return asked


def evaluate_probe(
    train: ProbeInputs,
    test: ProbeInputs,
    class_names: Sequence[str],
    *,
    image_size: tuple[int, int],
    factors: Sequence[Factor] = (),
    codebook_sizes: tuple[int, int] = (0, 0),
    split: str = "validation",
    seed: int = 0,
    watch: ProgressCallback = unwatched,
) -> Record:
    """Fit on `train`, test on `test`: top-1 of each of `INPUTS` and, with more than five classes, top-5.

    Rates have Wilson intervals over the test images, for the fitted probe. Differences to the prologue are paired by
    image. `control` is `shuffled_control`. `factors` are predicted from all inputs, and from each single position by a
    table of its codes, which needs `codebook_sizes` (prologue, visual). A class that is missing on one side is an
    `EvaluationError`.
    """
    check_classes(train.labels, test.labels, class_names)
    classes, n = len(class_names), len(test.labels)
    record: Record = {"kind": "probe", "n": n, "n_train": len(train.labels), "split": split, "views": "center"}
    record |= {"classes": classes, "chance": float(torch.bincount(test.labels).max()) / n}
    record |= {"pixel_grid": list(pixel_grid(image_size, train.values["visual_first"].shape[1])), "shuffles": SHUFFLES}
    right = {}
    names = [name for name in INPUTS if name in train.values]
    for index in watch(range(len(names)), "class probes"):
        name = names[index]
        probe = _fit(train.values[name], train.labels, test.values[name], test.labels, classes, seed)
        right[name] = probe.right
        record |= {f"{name}_dimension": train.values[name].shape[1], f"{name}_l2": probe.l2}
        record |= wilson_interval(int(probe.right.sum()), n).fields(f"{name}_top1")
        if classes > _TOP:
            record |= wilson_interval(int(probe.within.sum()), n).fields(f"{name}_top5")
        record |= shuffled_control(train, test, name, classes, probe.l2, seed)
    for name in names[1:] if "prologue" in right else ():
        paired = right["prologue"].double() - right[name].double()
        record |= mean_interval(paired).fields(f"difference_{name}")
    record["factors"] = read_factors(train, test, factors, codebook_sizes, seed=seed, watch=watch)
    constant = [
        f"{what} gives every image the same codes, which carry no information"
        for name, what in (("prologue", "the prologue"), ("random_encoder", "the random encoder"))
        if name in test.values and bool((test.values[name] == test.values[name][0]).all())
    ]
    return record | {"seed": seed, "notes": constant}


def check_classes(
    train: Int64[Tensor, " n"] | Int64[np.ndarray, " n"],
    test: Int64[Tensor, " m"] | Int64[np.ndarray, " m"],
    class_names: Sequence[str],
) -> None:
    """Raise `EvaluationError` for fewer than two classes, and for a class that is missing on one side."""
    if len(class_names) < 2:
        raise EvaluationError(
            f"a probe needs images of at least two classes, and these have {len(class_names)}: "
            "give images of two classes or more with --data WHERE"
        )
    for labels, side, flag in ((train, "train", "--train-count"), (test, "test", "--count")):
        missing = [name for index, name in enumerate(class_names) if not bool((labels == index).any())]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise EvaluationError(
                f"none of the {len(labels)} images on the {side} side of the probe has the class "
                f"{', '.join(map(repr, missing[:3]))}{more}: give a larger {flag}, or images of all classes"
            )


def _fit(x: Tensor, y: Tensor, test_x: Tensor, test_y: Tensor, classes: int, seed: int) -> Fit:
    fitted = fit_linear(x, y, classes, seed=seed)
    ranked = fitted.scores(test_x).topk(min(_TOP, classes), dim=1).indices.cpu()
    hits = ranked == test_y[:, None]
    return Fit(hits[:, 0], hits.any(1), fitted.l2)


def shuffled_control(train: ProbeInputs, test: ProbeInputs, name: str, classes: int, l2: float, seed: int) -> Record:
    """Accuracy of probes fitted to shuffled labels: mean over shuffles, interval, and its chance.

    Chance is the expected accuracy of random predictions with the same class frequencies. The interval is over
    shuffles instead of images, because images with the same codes are correct or wrong together.
    """
    shares = torch.bincount(test.labels, minlength=classes).double() / len(test.labels)
    lucky, beyond = [], []
    for shuffle in range(SHUFFLES):
        stream = torch_stream(seed, "evaluation", "shuffled labels", shuffle)
        order = torch.randperm(len(train.labels), generator=stream)
        fitted = fit_linear(train.values[name], train.labels[order], classes, strengths=(l2,))
        named = fitted.scores(test.values[name]).argmax(1).cpu()
        expected = float((torch.bincount(named, minlength=classes).double() / len(named)) @ shares)
        lucky.append(expected)
        beyond.append(float((named == test.labels).double().mean()) - expected)
    off = torch.tensor(beyond, dtype=torch.float64)
    chance, mean = sum(lucky) / SHUFFLES, float(off.mean())
    reach = _T_95 * float(off.std()) / SHUFFLES**0.5
    key = f"{name}_control"
    record: Record = {key: chance + mean, f"{key}_low": chance + mean - reach, f"{key}_high": chance + mean + reach}
    return record | {f"{key}_chance": chance, f"{key}_at_chance": abs(mean) <= _T_99 / _T_95 * reach + 1e-9}


def read_factors(
    train: ProbeInputs,
    test: ProbeInputs,
    factors: Sequence[Factor],
    codebook_sizes: tuple[int, int],
    *,
    seed: int = 0,
    watch: ProgressCallback = unwatched,
) -> list[Record]:
    """For each factor: chance, each input's top-1 with its Wilson interval, and the rate at each single position.

    Chance is the rate of the most frequent train value. `clear` is the smallest rate above chance at 5 % over all
    positions and factors together.
    """
    out = []
    cells = max(1, len(factors) * (train.tokens.prologue.shape[1] + train.tokens.visual.shape[1]))
    quantile = NormalDist().inv_cdf(1 - 0.05 / cells)
    for index in watch(range(len(factors)), "factor probes"):
        factor = factors[index]
        n = len(factor.test)
        chance = float((factor.test == int(torch.bincount(factor.train).argmax())).double().mean())
        record: Record = {"factor": factor.name, "values": factor.values, "chance": chance}
        record["clear"] = chance + quantile * math.sqrt(chance * (1 - chance) / n)
        for name in train.values:
            probe = _fit(train.values[name], factor.train, test.values[name], factor.test, factor.values, seed)
            record |= wilson_interval(int(probe.right.sum()), n).fields(name)
        for segment, size in zip(("prologue", "visual"), codebook_sizes, strict=True):
            known, asked = getattr(train.tokens, segment), getattr(test.tokens, segment)
            record[f"{segment}_positions"] = table_rates(known, factor.train, asked, factor.test, size, factor.values)
        out.append(record)
    return out


def table_rates(
    train_ids: Int64[Tensor, "n T"],
    train_y: Int64[Tensor, " n"],
    test_ids: Int64[Tensor, "m T"],
    test_y: Int64[Tensor, " m"],
    size: int,
    values: int,
) -> list[float]:
    """The rate of each single position, with a table that predicts the most frequent train value of each code.

    Ties, and codes that are not in train, take the value that is most frequent overall.
    """
    overall = torch.bincount(train_y, minlength=values).double() / len(train_y)
    rates = []
    for position in range(train_ids.shape[1]):
        cells = torch.bincount(train_ids[:, position] * values + train_y, minlength=size * values)
        names = (cells.view(size, values).double() + 0.5 * overall).argmax(1)
        rates.append(float((names[test_ids[:, position]] == test_y).double().mean()))
    return rates


def accuracy_chart(record: Record) -> Image.Image:
    """Top-1 of each input, its shuffled control, and the most frequent class as chance."""
    figure, (axes,) = panels()
    style_axes(axes, "Class predicted by a linear probe", "top-1 accuracy, % (95 % interval)")
    names = _probed(record)[::-1]
    places = np.arange(len(names))
    for shift, suffix, colour, label in ((0.19, "top1", 0, "true labels"), (-0.19, "control", 4, "shuffled labels")):
        value, low, high = ([100 * record[f"{n}_{suffix}{end}"] for n in names] for end in ("", "_low", "_high"))
        bars: dict[str, Any] = {"color": COLOURS[colour], "label": label, "error_kw": {"ecolor": INK}}
        axes.barh(places + shift, value, 0.36, xerr=error_bars(value, low, high), **bars)
    axes.axvline(100 * record["chance"], color=INK, linestyle=":", linewidth=1.4, label="most frequent class")
    axes.set_yticks(places, [fill(INPUTS[name], 16) for name in names])
    axes.set_xlim(0, 100)
    axes.grid(axis="y", visible=False)
    add_legend(axes, loc="upper center", bbox_to_anchor=(0.4, -0.2), ncols=3, fontsize=9)
    return picture_of(figure)


def factor_map(record: Record) -> Image.Image:
    """How far above chance each factor is predicted, from whole inputs and from single positions of each segment."""
    factors, inputs = record["factors"], _probed(record)
    tables = {"Factors predicted from whole inputs": [[_skill(f, f[name]) for name in inputs] for f in factors]}
    for segment in ("prologue", "visual"):
        if factors[0][f"{segment}_positions"]:
            rates = [[_skill(f, rate) for rate in f[f"{segment}_positions"]] for f in factors]
            tables[f"Factors predicted from one {segment} token"] = rates
    tall = 0.26 * len(factors)
    figure, drawn = panels(len(tables), (6.8, len(tables) * (tall + 1.4)), heights=[tall] * len(tables))
    for axes, (title, values) in zip(drawn, tables.items(), strict=True):
        shown = draw_map(axes, np.array(values), 100, ".0f")
        axes.set_title(title, loc="left", color=INK, fontsize=12)
        axes.set_yticks(range(len(factors)), [factor["factor"] for factor in factors])
        count = len(values[0])
        axes.set_xticks(range(0, count, max(1, count // 16)))
        if axes is drawn[0]:
            axes.set_xticks(range(count), [fill(INPUTS[name], 14) for name in inputs])
        else:
            axes.set_xlabel("position, row by row" if "visual" in title else "position", color=INK)
    label = "accuracy, % of the way from chance to perfect"
    colour_bar(figure, shown, drawn, label, location="bottom", shrink=0.8, aspect=40)
    return picture_of(figure)


def _skill(factor: Record, rate: float) -> float:
    """Part of the way from chance to perfect, in percent; rates below chance count as 0."""
    room = 1 - factor["chance"]
    return 100 * max(0.0, (rate - factor["chance"]) / room) if room > 0 else 0.0
