"""`prologue bench sampling`: sampling speed against a baseline and the limits of this machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table
from tyro.conf import arg

from prologue.cli.options import parse
from prologue.errors import ConfigError
from prologue.studies.bench.machine import machine
from prologue.studies.bench.models import PRECISIONS, prior_options, tokenizer_config
from prologue.studies.bench.sampling import (
    GUIDANCE_WORDS,
    WARM_UP_POSITIONS,
    Case,
    Record,
    Request,
    SamplingBench,
)
from prologue.utils.device import pick_device
from prologue.utils.files import is_stream
from prologue.utils.measurements import export_measurement, provenance, write_measurement
from prologue.utils.options import DeviceOption, JsonOption, SeedOption

WIDE = 240
"""Columns of the table, enough for all of its columns."""

_USAGE = """usage: prologue bench sampling [OPTIONS]

Measure speed; `prologue bench sampling --help` lists the options."""


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    prior: Annotated[str, arg(metavar="PRIOR")] = "b"
    """Prior: s, b, l, xl, or a preset."""
    tokenizer: Annotated[str, arg(metavar="TOKENIZER")] = "base"
    """Tokenizer: base, large, or a preset."""
    cases: Annotated[str, arg(metavar="CASES")] = "guided:1,guided:16,unguided:32"
    """Cases, separated by commas: guidance and batch size."""
    precisions: Annotated[str, arg(metavar="PRECISIONS")] = "fp32,int8,auto"
    """Precisions, separated by commas: fp32, bf16, int8, or auto, the default of this device."""
    compile: Literal["auto", "on", "off"] = "on"
    """Whether to compile the decode step in the warm-up. auto decides by the amount of work."""
    repeat: int = 3
    """Runs of each case and precision after the warm-up. The result is their median."""
    baseline_repeat: int = 1
    """Runs of the baseline."""
    seed: SeedOption = 0
    device: DeviceOption = "auto"
    json: JsonOption = None


def run(argv: list[str]) -> int:
    """Measure and print the table. The file of `--json` is written after every measurement."""
    if argv[:1] in (["-h"], ["--help"]):
        print(_USAGE)
        return 0
    if argv[:1] != ["sampling"]:
        given = f", not {argv[0]!r}" if argv else ""
        raise ConfigError(f"say what to measure: prologue bench sampling [OPTIONS]{given}")
    description = "Measure the sampling speed against a baseline in the same process and the limits of this machine."
    options = parse(SamplingOptions, argv[1:], "prologue bench sampling", description)
    request = _request(options)
    source = provenance(["bench", *argv])

    def save(records: list[Record]) -> None:
        if options.json is not None and not is_stream(options.json):
            with suppress(OSError):  # reported at the end, by export_measurement
                write_measurement(options.json, source | bench.facts(), records)

    bench = SamplingBench(request, watch=lambda line: print(line, file=sys.stderr, flush=True), save=save)
    records = bench.run()
    for line in _header(request, bench.facts(), str(source["torch"])):
        print(line)
    Console(width=WIDE).print(_table(records))
    for line in _conclusions(records):
        print(line)
    export_measurement(options.json, source | bench.facts(), records)
    return 0


def _request(options: SamplingOptions) -> Request:
    """The checked options."""
    for name in ("repeat", "baseline_repeat"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(options, name)}")
    tokenizer_config(options.tokenizer)
    prior_options(options.prior)
    precisions = tuple(part.strip() for part in options.precisions.split(","))
    for precision in precisions:
        if precision not in PRECISIONS:
            raise ConfigError(f"--precisions: unknown precision {precision!r}: choose among {', '.join(PRECISIONS)}")
    return Request(
        prior=options.prior,
        tokenizer=options.tokenizer,
        cases=tuple(dict.fromkeys(_case(part.strip()) for part in options.cases.split(","))),
        precisions=precisions,
        device=pick_device(options.device),
        compile={"auto": "auto", "on": True, "off": False}[options.compile],  # type: ignore[arg-type]
        repeat=options.repeat,
        baseline_repeat=options.baseline_repeat,
        seed=options.seed,
    )


def _case(text: str) -> Case:
    kind, _, batch = text.partition(":")
    if kind not in ("guided", "unguided") or not batch.isdecimal() or int(batch) < 1:
        raise ConfigError(f"--cases: {text!r} is not guided:N or unguided:N with N images of at least 1")
    return Case(int(batch), kind == "guided")


def _header(request: Request, facts: dict[str, Any], torch_version: str) -> Iterator[str]:
    """The lines above the table: machine, models, and the meaning of the columns."""
    where = machine(request.device)
    yield (
        f"{where['device']}: {where['device_name']}, {where['threads']} threads, torch {torch_version}, prior "
        f"{request.prior}, tokenizer {request.tokenizer}, random weights of seed {request.seed}, "
        f"guidance {GUIDANCE_WORDS}, temperature 1."
    )
    yield (
        f"Seconds are the median of {request.repeat} runs after a warm-up of a whole run with compilation. The "
        f"baseline has {request.baseline_repeat} runs after a warm-up of {WARM_UP_POSITIONS} positions and one picture."
    )
    yield (
        "Decoder included: tokens and 8-bit pictures, also of the baseline. Decoder apart: tokens only. Rates and "
        "shares of the limits are those of the decode steps in both."
    )
    rates = ", ".join(f"{rate / 1e9:.0f} ({name})" for name, rate in facts["gemm_flops_per_second"].items())
    yield f"Limits: {facts['memory_bytes_per_second'] / 1e9:.1f} GB/s; products, GFLOP/s: {rates}."


def _table(records: list[Record]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    headings = (
        "case, precision, decoder, images/s, tokens/s, seconds, baseline, ratio, GB/s, of limit, GFLOP/s, of limit, "
        "limit share, warm-up s, compiled, top-1"
    )
    for number, heading in enumerate(headings.split(", ")):
        table.add_column(heading, no_wrap=True, justify="left" if number < 3 else "right")
    for record in records:
        table.add_row(*_row(record))
    return table


def _row(record: Record) -> Iterator[str]:
    yield Case(record["batch"], record["guided"]).name
    yield record["precision"]
    yield record["decoder"]
    yield f"{record['images_per_second']:.3g}"
    yield f"{record['tokens_per_second']:.0f}"
    yield f"{record['seconds']:.3g}"
    yield "" if record["baseline_seconds"] is None else f"{record['baseline_seconds']:.3g}"
    yield "" if record["ratio"] is None else f"{record['ratio']:.2f}×"
    yield f"{record['gigabytes_per_second']:.3g}"
    yield f"{record['bandwidth_share']:.0%}"
    yield f"{record['flops_per_second'] / 1e9:.3g}"
    yield f"{record['gemm_share']:.0%}"
    yield f"{record['limit_share']:.0%}"
    yield f"{record['warm_up_seconds']:.3g}"
    yield "yes" if record["compiled"] else "no"
    yield "" if record["top1_agreement"] is None else f"{record['top1_agreement']:.1%}"


def _conclusions(records: list[Record]) -> Iterator[str]:
    """The lines below the table: the agreement of each precision with fp32."""
    agreed = {record["precision"]: record for record in records if record["top1_agreement"] is not None}
    for precision, record in agreed.items():
        yield (
            f"{precision} against fp32, teacher-forced on random ids: logit error at most "
            f"{record['max_logit_error']:.2g}, {record['mean_logit_error']:.2g} on average. The most likely id is the "
            f"same at {record['top1_agreement']:.1%} of the positions."
        )
