"""Sampling speed: every case and precision against the baseline and against the limits of the machine."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from prologue.pipeline import Pipeline
from prologue.sampling.guidance import Guidance
from prologue.studies.bench.baseline import baseline_images, baseline_sequences
from prologue.studies.bench.limits import compute_types, gemm_rate, memory_bandwidth, seconds_of
from prologue.studies.bench.machine import machine
from prologue.studies.bench.models import Agreement, Compile, Models, agreement, converted, random_models, resolve
from prologue.studies.bench.targets import BEST, FEW_ROWS, target
from prologue.studies.bench.work import WEIGHT_BYTES, StepWork

Record = dict[str, Any]

GUIDANCE = Guidance.split(prologue=("constant", 0.7), visual=("cosine", 3.75, 0.2))
GUIDANCE_WORDS = "split:constant:0.7,cosine:3.75:0.2"
WARM_UP_POSITIONS = 4
"""Positions of the baseline's warm-up: it compiles nothing, and a whole loop of it takes long."""

BASELINE = "baseline"


@dataclass(frozen=True)
class Case:
    """So many images at once, with or without guidance."""

    batch: int
    guided: bool

    @property
    def name(self) -> str:
        return f"{'guided' if self.guided else 'unguided'}:{self.batch}"

    @property
    def rows(self) -> int:
        return self.batch * (2 if self.guided else 1)

    @property
    def guidance(self) -> Guidance:
        return GUIDANCE if self.guided else Guidance.none()


@dataclass(frozen=True)
class Request:
    """What to measure; the names are those of the command's options."""

    prior: str
    tokenizer: str
    cases: tuple[Case, ...]
    precisions: tuple[str, ...]
    device: torch.device
    compile: Compile = "auto"
    repeat: int = 3
    baseline_repeat: int = 1
    seed: int = 0
    limit_size: int | None = None
    """Bytes of the buffers that the limits are measured with; left out: beyond the caches."""


@dataclass(frozen=True)
class Timing:
    """Seconds of the repeated runs, tokens and decoder apart, and of the warm-up before them."""

    tokens: tuple[float, ...]
    decoder: tuple[float, ...]
    warm_up: float
    compiled: bool

    def seconds(self, decoder: str) -> float:
        """The median run, with the decoder `included` or `apart`."""
        if decoder == "apart":
            return statistics.median(self.tokens)
        return statistics.median(map(sum, zip(self.tokens, self.decoder, strict=True)))


class SamplingBench:
    """Measures a request. `watch` hears of each measurement in a line, `save` gets the records after each.

    Baseline and engine work on the same weights and classes in one process. In every other case the baseline comes
    last, so that a machine that slows down or speeds up favours neither.
    """

    def __init__(
        self,
        request: Request,
        watch: Callable[[str], None],
        save: Callable[[list[Record]], None] = lambda records: None,
    ) -> None:
        self.request = request
        self.watch = watch
        self.save = save
        self.precisions = tuple(dict.fromkeys(resolve(name, request.device) for name in request.precisions))
        self.models = random_models(request.prior, request.tokenizer, request.seed)
        for model in self.models:
            model.to(request.device)
        self.work = StepWork.of(self.models[1].config)
        self.converted: dict[str, Models] = {}
        self.agreements: dict[str, Agreement] = {}
        self.timings: dict[tuple[Case, str], Timing] = {}
        self.bandwidth = 0.0
        self.gemm_rates: dict[tuple[int, torch.dtype], float] = {}

    def run(self) -> list[Record]:
        """Measure everything, and return two records for each case and precision: decoder included and apart."""
        request = self.request
        self.bandwidth = memory_bandwidth(request.device, request.limit_size)
        self.watch(f"memory: {self.bandwidth / 1e9:.1f} GB/s")
        for number, case in enumerate(request.cases):
            order = [BASELINE, *self.precisions]
            for name in order if number % 2 == 0 else reversed(order):
                self.timings[case, name] = self._baseline(case) if name == BASELINE else self._engine(case, name)
                self.save(self.records())
                self.watch(self._line(case, name))
        return self.records()

    def records(self) -> list[Record]:
        """Of all that is measured so far; what a missing baseline would tell is None."""
        return [
            self._record(case, precision, decoder)
            for case in self.request.cases
            for precision in self.precisions
            if (case, precision) in self.timings
            for decoder in ("included", "apart")
        ]

    def facts(self) -> Record:
        """What the provenance of the records states."""
        request = self.request
        rates = {
            f"{rows} rows, {str(dtype).removeprefix('torch.')}": rate for (rows, dtype), rate in self.gemm_rates.items()
        }
        return {
            **machine(request.device),
            "prior": request.prior,
            "tokenizer": request.tokenizer,
            "weights": "random",
            "seed": request.seed,
            "guidance": GUIDANCE_WORDS,
            "temperature": 1.0,
            "compile": request.compile,
            "repeat": request.repeat,
            "baseline_repeat": request.baseline_repeat,
            "baseline_seconds": {
                case.name: timing.seconds("included")
                for (case, name), timing in self.timings.items()
                if name == BASELINE
            },
            "memory_bytes_per_second": self.bandwidth,
            "gemm_flops_per_second": rates,
        }

    def _classes(self, case: Case) -> list[int]:
        return [37 * index % self.models[1].num_classes for index in range(case.batch)]

    def _baseline(self, case: Case) -> Timing:
        request, (tokenizer, prior) = self.request, self.models
        classes = torch.tensor(self._classes(case), device=request.device)

        def draw(positions: int | None = None) -> Int[Tensor, "B N"]:
            ids = baseline_sequences(prior, classes, case.guidance, request.seed, positions=positions)
            return ids[:, prior.layout.visual_start :]

        visual = torch.zeros(1, prior.layout.visual_tokens, dtype=torch.int64, device=request.device)
        warm_up = seconds_of(lambda: (draw(WARM_UP_POSITIONS), baseline_images(tokenizer, visual)), request.device)
        tokens, decoder = _timed(
            draw, lambda ids: baseline_images(tokenizer, ids), request.baseline_repeat, request.device
        )
        return Timing(tokens, decoder, warm_up, compiled=False)

    def _engine(self, case: Case, precision: str) -> Timing:
        request = self.request
        if precision not in self.converted:
            self.converted[precision] = converted(self.models, precision, request.device)
            if precision != "fp32":
                other = self.converted[precision][1]
                self.agreements[precision] = agreement(self.models[1], other, request.seed)
        # A new pipeline for each case: what it compiles shows in this warm-up, and is let go of with it.
        pipeline, classes = Pipeline(*self.converted[precision], compile=request.compile), self._classes(case)
        compiled: list[str] = []
        pipeline.on_compile = lambda what, seconds: compiled.append(what)

        def draw() -> Int[Tensor, "B N"]:
            tokens = pipeline.sample(classes, seed=request.seed, batch=case.batch, guidance=case.guidance)
            return tokens.visual

        def decode(visual: Int[Tensor, "B N"]) -> object:
            return pipeline.decode(visual, case.batch)

        warm_up = seconds_of(lambda: decode(draw()), request.device)
        tokens, decoder = _timed(draw, decode, request.repeat, request.device)
        for dtype in compute_types(precision, request.device):
            if (case.rows, dtype) not in self.gemm_rates:
                config = self.models[1].config
                self.gemm_rates[case.rows, dtype] = gemm_rate(
                    config, case.rows, dtype, request.device, request.limit_size
                )
        return Timing(tokens, decoder, warm_up, bool(compiled))

    def _record(self, case: Case, precision: str, decoder: str) -> Record:
        request, timing, baseline = self.request, self.timings[case, precision], self.timings.get((case, BASELINE))
        seconds = timing.seconds(decoder)
        baseline_seconds = None if baseline is None else baseline.seconds(decoder)
        ratio = None if baseline_seconds is None else baseline_seconds / seconds
        limits = self._limits(case, precision, timing)
        aim = target(request.prior, request.tokenizer, request.device.type, precision, (case.batch, case.guided))
        if decoder == "apart":  # the aims stand for whole images
            aim = None
        agreed = self.agreements.get(precision, Agreement(None, None, None))
        return {
            "prior": request.prior,
            "tokenizer": request.tokenizer,
            "decoder": decoder,
            "device": request.device.type,
            "precision": precision,
            "batch": case.batch,
            "guided": case.guided,
            "seconds": seconds,
            "images_per_second": case.batch / seconds,
            "tokens_per_second": case.rows * self.models[1].layout.length / seconds,
            "baseline_seconds": baseline_seconds,
            "ratio": ratio,
            **limits,
            "target": None if aim is None else aim.ratio,
            "target_share": None if aim is None else aim.limit_share,
            "reached": None if aim is None else aim.reached(ratio, limits["limit_share"]),
            "warm_up_seconds": timing.warm_up,
            "compiled": timing.compiled,
            "max_logit_error": agreed.max_error,
            "mean_logit_error": agreed.mean_error,
            "top1_agreement": agreed.top1,
        }

    def _limits(self, case: Case, precision: str, timing: Timing) -> dict[str, float]:
        """Rates of the decode steps and their share of the machine's, the decoder never counted."""
        step = timing.seconds("apart") / self.work.steps
        cache_bytes = self.converted[precision][1].class_embedding.weight.dtype.itemsize
        bandwidth = self.work.bytes_read(case.rows, WEIGHT_BYTES[precision], cache_bytes) / step
        flops = self.work.flops(case.rows) / step
        types = compute_types(precision, self.request.device)
        shares = bandwidth / self.bandwidth, flops / max(self.gemm_rates[case.rows, dtype] for dtype in types)
        return {
            "gigabytes_per_second": bandwidth / 1e9,
            "bandwidth_share": shares[0],
            "flops_per_second": flops,
            "gemm_share": shares[1],
            "limit_share": shares[0] if case.rows <= FEW_ROWS else shares[1],
        }

    def _line(self, case: Case, name: str) -> str:
        timing, baseline = self.timings[case, name], self.timings.get((case, BASELINE))
        line = f"{case.name} {name}: {timing.seconds('included'):.3g} s, warm-up {timing.warm_up:.3g} s"
        if name != BASELINE and baseline is not None:
            line += f", {baseline.seconds('included') / timing.seconds('included'):.2f} times the baseline's speed"
        return line


def best_of(records: list[Record]) -> Iterator[tuple[Record, float, bool]]:
    """For each case that has an aim for the best precision: its fastest record, the aim and whether it is reached."""
    whole = [record for record in records if record["decoder"] == "included" and record["ratio"] is not None]
    for shape in dict.fromkeys((record["batch"], record["guided"]) for record in whole):
        rows = [record for record in whole if (record["batch"], record["guided"]) == shape]
        fastest = min(rows, key=lambda record: record["seconds"])
        aim = target(fastest["prior"], fastest["tokenizer"], fastest["device"], BEST, shape)
        if aim is not None and aim.ratio is not None:
            yield fastest, aim.ratio, bool(aim.reached(fastest["ratio"], fastest["limit_share"]))


def _timed(
    draw: Callable[[], Tensor], decode: Callable[[Tensor], object], repeat: int, device: torch.device
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Seconds of each run's tokens and of its pictures."""
    tokens, decoder = [], []
    for _ in range(repeat):
        visual, seconds = _timed_result(draw, device)
        tokens.append(seconds)
        decoder.append(seconds_of(partial(decode, visual), device))
    return tuple(tokens), tuple(decoder)


def _timed_result(draw: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, float]:
    drawn: list[Tensor] = []
    seconds = seconds_of(lambda: drawn.append(draw()), device)
    return drawn[0], seconds
