"""Sampling speed of all cases and precisions, against the baseline and the limits of the machine."""

from __future__ import annotations

import statistics
from collections.abc import Callable
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
from prologue.studies.bench.work import WEIGHT_BYTES, StepWork

Record = dict[str, Any]

GUIDANCE = Guidance.split(prologue=("constant", 0.7), visual=("cosine", 3.75, 0.2))
GUIDANCE_WORDS = "split:constant:0.7,cosine:3.75:0.2"
WARM_UP_POSITIONS = 4
"""Positions in the warm-up of the baseline, which compiles nothing."""
FEW_ROWS = 4
"""Largest number of rows for which memory is the limit, not products."""

BASELINE = "baseline"


@dataclass(frozen=True)
class Case:
    """A batch size, with or without guidance."""

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
    """The options of `prologue bench sampling`."""

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
    """Bytes of the buffers for the limits. The default exceeds the caches."""


@dataclass(frozen=True)
class Timing:
    """Seconds of the runs, for tokens and decoder separately, and of the warm-up."""

    tokens: tuple[float, ...]
    decoder: tuple[float, ...]
    warm_up: float
    compiled: bool

    def seconds(self, decoder: str) -> float:
        """The median over runs, with the decoder `included` or `apart`."""
        if decoder == "apart":
            return statistics.median(self.tokens)
        return statistics.median(map(sum, zip(self.tokens, self.decoder, strict=True)))


class SamplingBench:
    """Measures a request. After each measurement, `watch` gets a line of text and `save` gets all records.

    Baseline and engine have the same weights and classes in one process. The baseline is first in one case and last in
    the next one, so that a change of the machine's speed favours neither.
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
        """Measure everything. Returns two records per case and precision: decoder included and apart."""
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
        """The records of all measurements so far. Fields that need a missing baseline are None."""
        return [
            self._record(case, precision, decoder)
            for case in self.request.cases
            for precision in self.precisions
            if (case, precision) in self.timings
            for decoder in ("included", "apart")
        ]

    def facts(self) -> Record:
        """The facts in the provenance of the records."""
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
        # A new pipeline for each case, whose warm-up contains the compilation.
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
            **self._limits(case, precision, timing),
            "warm_up_seconds": timing.warm_up,
            "compiled": timing.compiled,
            "max_logit_error": agreed.max_error,
            "mean_logit_error": agreed.mean_error,
            "top1_agreement": agreed.top1,
        }

    def _limits(self, case: Case, precision: str, timing: Timing) -> dict[str, float]:
        """Rates of the decode steps, without the decoder, and their shares of the limits."""
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


def _timed(
    draw: Callable[[], Tensor], decode: Callable[[Tensor], object], repeat: int, device: torch.device
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Seconds for the tokens and for the pictures of each run."""
    tokens, decoder = [], []
    for _ in range(repeat):
        drawn: list[Tensor] = []
        tokens.append(seconds_of(lambda drawn=drawn: drawn.append(draw()), device))  # type: ignore[misc]
        decoder.append(seconds_of(partial(decode, drawn[0]), device))
    return tuple(tokens), tuple(decoder)
