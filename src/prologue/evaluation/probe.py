"""What a linear classifier reads from frozen codes: the class of an image, and of embedded ones each known factor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor

from prologue.config import TokenizerConfig
from prologue.data.source import ImageSet
from prologue.errors import EvaluationError
from prologue.evaluation.codes import prologue_vectors, visual_vectors
from prologue.evaluation.metrics.intervals import mean_interval, wilson_interval
from prologue.evaluation.metrics.linear import LinearClassifier, fit_linear
from prologue.evaluation.runs import ProgressCallback, Record, center_crops, evaluating, unwatched
from prologue.models.sequence import TokenIds
from prologue.models.tokenizer import Tokenizer, to_model_range
from prologue.utils.rng import derive_seed, torch_stream

INPUTS = ("prologue", "visual_first", "visual_pooled", "pixels", "random_encoder")
"""What is probed: all prologue tokens, as many first visual tokens, the mean of all visual tokens, the image resized
to the nearest dimension, and the prologue of the same tokenizer with weights drawn anew. Without a prologue there are
the three in the middle."""
FIRST_TOKENS = 16
"""First visual tokens that are probed of a tokenizer without a prologue: the paper's comparison."""
SHUFFLES = 8
_T_95 = 2.364624
_T_99 = 3.499483
"""Student's t for 95 % and 99 % intervals of the mean of 8 values. Controls are tested at 1 % each, 5 % together."""
_TOP = 5


class ProbeInputs(NamedTuple):
    """What is probed of `n` images, by name; their tokens and class ids, on the CPU.

    The values lie where the probes are fitted: on a CUDA device of the tokenizer, else on the CPU (float64).
    """

    values: dict[str, Float32[Tensor, "n d"]]
    tokens: TokenIds
    labels: Int64[Tensor, " n"]


class Probe(NamedTuple):
    """A fitted probe on the tested images: which it names right, which within its five likeliest."""

    right: Bool[Tensor, " n"]
    within: Bool[Tensor, " n"]
    l2: float


@dataclass(frozen=True)
class Factor:
    """A quantity with few values, of the train and of the test images."""

    name: str
    values: int
    train: Int64[Tensor, " n"]
    test: Int64[Tensor, " m"]


def pixel_grid(image_size: tuple[int, int], dimension: int) -> tuple[int, int]:
    """Rows and columns of an image in its own proportions whose number of values is nearest to `dimension`."""
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
    """Everything that is probed, of the center crops of the images at `indices`.

    `tokens` are the first visual tokens; left out, as many as the prologue has, without one `FIRST_TOKENS`. More than
    there are is an `EvaluationError`.
    """
    config = tokenizer.config
    first = next(tokenizer.parameters())
    count = first_tokens(config, tokens)
    random = Tokenizer(config, seed=derive_seed(seed, "evaluation", "random encoder")).to(first.device, first.dtype)
    grid = pixel_grid(config.image_size, count * config.code_dim)
    parts: dict[str, list[Tensor]] = {name: [] for name in (INPUTS if config.prologue_tokens else INPUTS[1:4])}
    ids = []
    with evaluating(tokenizer, random):
        for pictures in center_crops(images, indices, batch=batch, watch=watch, what=what):
            given = to_model_range(pictures.to(first.device))
            own = tokenizer.encode(given).to("cpu")
            ids.append(own)
            visual = visual_vectors(tokenizer, own.visual)
            parts["visual_first"].append(visual[:, :count].flatten(1))
            parts["visual_pooled"].append(visual.mean(1))
            parts["pixels"].append(_shrunk(pictures, grid))
            if config.prologue_tokens:
                parts["prologue"].append(prologue_vectors(tokenizer, own.prologue).flatten(1))
                parts["random_encoder"].append(prologue_vectors(random, random.encode(given).prologue).flatten(1))
    place = first.device if first.device.type == "cuda" else "cpu"
    values = {name: torch.cat(part).to(place) for name, part in parts.items()}
    return ProbeInputs(values, TokenIds.cat(ids), torch.from_numpy(images.labels[indices].astype(np.int64)))


def first_tokens(config: TokenizerConfig, asked: int | None) -> int:
    """How many first visual tokens are probed; more than there are is an `EvaluationError`."""
    if asked is None:
        return min(config.prologue_tokens or FIRST_TOKENS, config.visual_tokens)
    if not 1 <= asked <= config.visual_tokens:
        raise EvaluationError(f"{asked} first visual tokens cannot be probed: an image has {config.visual_tokens}")
    return asked


def _shrunk(pictures: UInt8[Tensor, "b 3 H W"], grid: tuple[int, int]) -> Float32[Tensor, "b d"]:
    return F.adaptive_avg_pool2d(pictures.float() / 255, grid).flatten(1)


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
    """Fit on `train`, judge on `test`: for each of `INPUTS` top-1 and, of more than five classes, top-5.

    Rates have Wilson intervals over the tested images, for the fitted probe. Differences to the prologue, where there
    is one, are paired image by image. `control` is the accuracy of probes fitted to shuffled labels, its interval over
    8 shuffles; its chance is how often predictions of their frequencies would be right by luck. `factors` are read
    too, from all inputs, and from each single position through a table of its codes; `codebook_sizes` (prologue,
    visual) is needed for that. Raises `EvaluationError` where a class is missing on either side.
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
        probe = _probe(train.values[name], train.labels, test.values[name], test.labels, classes, seed)
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
    return record | {"seed": seed, "notes": _constant_notes(test)}


def _constant_notes(test: ProbeInputs) -> list[str]:
    prologue, random = (
        name in test.values and bool((test.values[name] == test.values[name][0]).all())
        for name in ("prologue", "random_encoder")
    )
    notes = ["every image has the same prologue codes, so they can tell nothing"] if prologue else []
    return notes + (["the random encoder gives every image the same codes, so they can tell nothing"] if random else [])


def check_classes(train: Int64[Tensor, " n"], test: Int64[Tensor, " m"], class_names: Sequence[str]) -> None:
    """Refuse classes that a probe could not learn or that it is not asked about."""
    if len(class_names) < 2:
        raise EvaluationError(
            f"a probe tells classes apart, and these images have {len(class_names)}: "
            "give images of two classes or more with --data WHERE"
        )
    for labels, side, flag in ((train, "train", "--train-count"), (test, "test", "--count")):
        missing = [name for index, name in enumerate(class_names) if not bool((labels == index).any())]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise EvaluationError(
                f"none of the {len(labels)} images on the {side} side of the probe shows "
                f"{', '.join(map(repr, missing[:3]))}{more}: give a larger {flag}, or images of all classes"
            )


def _probe(x: Tensor, y: Tensor, test_x: Tensor, test_y: Tensor, classes: int, seed: int) -> Probe:
    fitted = fit_linear(x, y, classes, seed=seed)
    ranked = _scores(fitted, test_x).topk(min(_TOP, classes), dim=1).indices.cpu()
    hits = ranked == test_y[:, None]
    return Probe(hits[:, 0], hits.any(1), fitted.l2)


def _scores(fitted: LinearClassifier, x: Tensor) -> Tensor:
    return torch.cat([fitted(part) for part in torch.split(x, 4096)])


def shuffled_control(train: ProbeInputs, test: ProbeInputs, name: str, classes: int, l2: float, seed: int) -> Record:
    """Accuracy of probes fitted to shuffled labels, which know nothing: mean over shuffles, interval, its chance.

    The interval is over shuffles, not over images: images of the same codes are right or wrong together.
    """
    shares = torch.bincount(test.labels, minlength=classes).double() / len(test.labels)
    lucky, beyond = [], []
    for shuffle in range(SHUFFLES):
        order = torch.randperm(
            len(train.labels), generator=torch_stream(seed, "evaluation", "shuffled labels", shuffle)
        )
        fitted = fit_linear(train.values[name], train.labels[order], classes, strengths=(l2,))
        named = _scores(fitted, test.values[name]).argmax(1).cpu()
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

    Chance is how often the most frequent train value is right. `clear` is the least rate that is above chance at 5 %
    over all positions and factors together.
    """
    out = []
    cells = max(1, len(factors) * (train.tokens.prologue.shape[1] + train.tokens.visual.shape[1]))
    for index in watch(range(len(factors)), "factor probes"):
        factor = factors[index]
        n = len(factor.test)
        chance = float((factor.test == int(torch.bincount(factor.train).argmax())).double().mean())
        record: Record = {"factor": factor.name, "values": factor.values, "chance": chance}
        record["clear"] = chance + _one_sided(0.05 / cells) * math.sqrt(chance * (1 - chance) / n)
        for name in train.values:
            probe = _probe(train.values[name], factor.train, test.values[name], factor.test, factor.values, seed)
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
    """How often each single position's code tells the value: each code names its most frequent one in train.

    A code that train does not show, or shows with several values as often, leans on the values' frequencies.
    """
    overall = torch.bincount(train_y, minlength=values).double() / len(train_y)
    rates = []
    for position in range(train_ids.shape[1]):
        cells = torch.bincount(train_ids[:, position] * values + train_y, minlength=size * values)
        names = (cells.view(size, values).double() + 0.5 * overall).argmax(1)
        rates.append(float((names[test_ids[:, position]] == test_y).double().mean()))
    return rates


def _one_sided(level: float) -> float:
    """The standard normal's quantile above which `level` of it lies."""
    from statistics import NormalDist

    return NormalDist().inv_cdf(1 - level)
