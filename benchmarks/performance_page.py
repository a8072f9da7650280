"""Write the results of `prologue bench sampling --json FILE` and of benchmarks/precision.py into docs/performance.md.

    python benchmarks/performance_page.py benchmarks/results/sampling-cpu.json benchmarks/results/precision.json

Everything below the marker in the page is replaced.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
MARKER = "<!-- figures -->"


def table(heading: list[str], rows: list[list[str]]) -> Iterator[str]:
    """A Markdown table."""
    yield "| " + " | ".join(heading) + " |"
    yield "|" + "---|" * len(heading)
    yield from ("| " + " | ".join(row) + " |" for row in rows)


def sampling(file: Path) -> Iterator[str]:
    """Speed of all cases and precisions, with machine and models."""
    whole = json.loads(file.read_text(encoding="utf-8"))
    facts, records = whole["provenance"], whole["records"]
    yield (
        f"{facts['device'].upper()}: {facts['device_name']}, {facts['threads']} threads, torch {facts['torch']}; prior "
        f"{facts['prior']}, tokenizer {facts['tokenizer']}, random weights; guided means {facts['guidance']}. "
        f"Median of {facts['repeat']} compiled runs after a warm-up of a whole run; "
        f"of the baseline {facts['baseline_repeat']}. Measured limits: "
        f"{facts['memory_bytes_per_second'] / 1e9:.1f} GB/s; "
        + ", ".join(f"{rate / 1e9:.0f} GFLOP/s at {name}" for name, rate in facts["gemm_flops_per_second"].items())
        + f". `{facts['command'].partition(' --json')[0]}`, {facts['time'][:10]}."
    )
    yield ""
    columns = "case, precision, decoder, images/s, tokens/s, seconds, baseline, ratio, GB/s (share), GFLOP/s (share), "
    columns += "warm-up"
    rows = [[*_case(record), *_rates(record)] for record in records]
    yield from table(columns.split(", "), rows)


def _case(record: dict[str, Any]) -> Iterator[str]:
    yield f"{'guided' if record['guided'] else 'unguided'}, batch {record['batch']}"
    yield record["precision"]
    yield record["decoder"]
    yield f"{record['images_per_second']:.3g}"
    yield f"{record['tokens_per_second']:.0f}"
    yield f"{record['seconds']:.3g} s"
    yield f"{record['baseline_seconds']:.3g} s"
    yield f"{record['ratio']:.2f}×"


def _rates(record: dict[str, Any]) -> Iterator[str]:
    yield f"{record['gigabytes_per_second']:.1f} ({record['bandwidth_share']:.0%})"
    yield f"{record['flops_per_second'] / 1e9:.0f} ({record['gemm_share']:.0%})"
    yield f"{record['warm_up_seconds']:.0f} s"


def logits(file: Path) -> Iterator[str]:
    """Teacher-forced agreement with random weights."""
    records = json.loads(file.read_text(encoding="utf-8"))["records"]
    found = {record["precision"]: record for record in records if record["top1_agreement"] is not None}
    for precision, record in found.items():
        yield (
            f"Teacher-forced on random ids, {precision} against fp32: logit error at most "
            f"{record['max_logit_error']:.2g}, {record['mean_logit_error']:.2g} on average. The most likely id is the "
            f"same at {record['top1_agreement']:.1%} of the positions."
        )


def precision(file: Path) -> Iterator[str]:
    """Distances between samples in each format and in fp32."""
    whole = json.loads(file.read_text(encoding="utf-8"))
    facts, records = whole["provenance"], whole["records"]
    yield (
        f"A trained `shapes` run: {facts['count']} samples of its stored recipe in each format against its fp32 "
        f"samples with the same classes and seeds. The first row is fp32 with other seeds (`{facts['command']}`, "
        f"{facts['time'][:10]})."
    )
    yield ""
    names = (records[0]["fd_name"], records[0]["kid_name"])
    heading = ["format", "seeds", *names, "same image", "top-1", "logit error, mean", "most"]
    rows = []
    for record in records:
        agreed = ["", "", "", ""]
        if "top1_agreement" in record:
            agreed = [f"{record['same_images']:.1%}", f"{record['top1_agreement']:.2%}"]
            agreed += [f"{record['mean_logit_error']:.2g}", f"{record['max_logit_error']:.2g}"]
        kid = f"{record['kid']:.3g} ({record['kid_low']:.3g} … {record['kid_high']:.3g})"
        rows.append([record["precision"], record["seeds"], f"{record['fd']:.3g}", kid, *agreed])
    yield from table(heading, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sampling", type=Path)
    parser.add_argument("precision", type=Path)
    options = parser.parse_args()
    head = PAGE.read_text(encoding="utf-8").partition(MARKER)[0]
    lines = [*sampling(options.sampling), "", *logits(options.sampling), "", *precision(options.precision)]
    PAGE.write_text(head + MARKER + "\n" + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
