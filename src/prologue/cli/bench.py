"""`prologue bench sampling`: how fast images are drawn, against a baseline and the limits of this machine."""

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

from prologue.cli._options import parse
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
    best_of,
)
from prologue.utils.device import pick_device
from prologue.utils.files import is_stream
from prologue.utils.measurements import export_measurement, provenance, write_measurement
from prologue.utils.options import DeviceOption, JsonOption, SeedOption

WIDE = 240
"""Columns of the table where it is not cut: a terminal wraps it, a file keeps it whole."""

_USAGE = """usage: prologue bench sampling [OPTIONS]

Measure speed; `prologue bench sampling --help` lists the options."""


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    prior: Annotated[str, arg(metavar="PRIOR")] = "b"
    """s, b, l, xl, or a preset for its prior."""
    tokenizer: Annotated[str, arg(metavar="TOKENIZER")] = "base"
    """base, large, or a preset for its tokenizer."""
    cases: Annotated[str, arg(metavar="CASES")] = "guided:1,guided:16,unguided:32"
    """Guidance and images at once of each case, separated by commas."""
    precisions: Annotated[str, arg(metavar="PRECISIONS")] = "fp32,int8,auto"
    """Of fp32, bf16, int8 and auto, which is what this device samples with if not told otherwise."""
    compile: Literal["auto", "on", "off"] = "on"
    """Compile the decode step, in the warm-up; auto decides from the amount of work, which a case is little of."""
    repeat: int = 3
    """Runs of each case and precision after its warm-up; the median counts."""
    baseline_repeat: int = 1
    """The same of the baseline."""
    seed: SeedOption = 0
    device: DeviceOption = "auto"
    json: JsonOption = None


def run(argv: list[str]) -> int:
    """Measure, print the table, and write it where `--json` says, after every measurement."""
    if argv[:1] in (["-h"], ["--help"]):
        print(_USAGE)
        return 0
    if argv[:1] != ["sampling"]:
        given = f", not {argv[0]!r}" if argv else ""
        raise ConfigError(f"say what to measure: prologue bench sampling [OPTIONS]{given}")
    description = "Measure how fast images are drawn, against an in-process baseline and the limits of this machine."
    options = parse(SamplingOptions, argv[1:], "prologue bench sampling", description)
    request = _request(options)
    source = provenance(["bench", *argv])

    def save(records: list[Record]) -> None:
        if options.json is not None and not is_stream(options.json):
            with suppress(OSError):  # said at the end, when the figures are printed
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
    """The options, checked."""
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
    """What has to be known to read the table."""
    where = machine(request.device)
    yield (
        f"{where['device']}: {where['device_name']}, {where['threads']} threads, torch {torch_version}, prior "
        f"{request.prior}, tokenizer {request.tokenizer}, random weights of seed {request.seed}, "
        f"guidance {GUIDANCE_WORDS}, temperature 1."
    )
    yield (
        f"Median of {request.repeat} runs after a whole one to warm up, whose seconds (compilation among them) stand "
        f"apart; the baseline's of {request.baseline_repeat} after {WARM_UP_POSITIONS} positions and one picture."
    )
    yield (
        "Decoder included: tokens and 8-bit pictures, on both sides; apart: tokens alone. Rates and shares of the "
        "limit are of the decode steps in both."
    )
    rates = ", ".join(f"{rate / 1e9:.0f} ({name})" for name, rate in facts["gemm_flops_per_second"].items())
    yield f"Limits: {facts['memory_bytes_per_second'] / 1e9:.1f} GB/s; products, GFLOP/s: {rates}."


def _table(records: list[Record]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    headings = (
        "case, precision, decoder, images/s, tokens/s, seconds, baseline, ratio, GB/s, of limit, GFLOP/s, of limit, "
        "limit share, target, reached, warm-up s, compiled, top-1"
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
    yield _aim(record["target"], record["target_share"])
    yield {None: "", True: "yes", False: "no"}[record["reached"]]
    yield f"{record['warm_up_seconds']:.3g}"
    yield "yes" if record["compiled"] else "no"
    yield "" if record["top1_agreement"] is None else f"{record['top1_agreement']:.1%}"


def _aim(ratio: float | None, share: float | None) -> str:
    """`≥ 6× or 70%`."""
    parts = [] if ratio is None else [f"{ratio:g}×"]
    return "≥ " + " or ".join([*parts, f"{share:.0%}"]) if share is not None else ""


def _conclusions(records: list[Record]) -> Iterator[str]:
    """Below the table: the best precision of each case that has an aim for it, and the agreement of the others."""
    for record, ratio, reached in best_of(records):
        case = Case(record["batch"], record["guided"]).name
        yield (
            f"{case}, best precision: {record['precision']}, {record['ratio']:.2f}× (target {ratio:g}×, or 70% of the "
            f"limit; {record['limit_share']:.0%}): {'reached' if reached else 'not reached'}."
        )
    agreed = {record["precision"]: record for record in records if record["top1_agreement"] is not None}
    for precision, record in agreed.items():
        yield (
            f"{precision} against fp32, teacher-forced on random ids: logit error at most "
            f"{record['max_logit_error']:.2g}, {record['mean_logit_error']:.2g} on average; the same best id at "
            f"{record['top1_agreement']:.1%} of the positions."
        )
