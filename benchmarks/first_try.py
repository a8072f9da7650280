"""A test of the small recipe on images that it was not tuned on.

    python benchmarks/first_try.py FOLDER --out DIR [--preset small-32] [--device auto]

FOLDER has a subfolder of icons for each class, such as the emoji of benchmarks/lay_out.py. The same command continues.
The figures are written to `DIR/first-try.json`, the table to `DIR/first-try.md`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MEASURES: dict[str, tuple[str, ...]] = {
    "reconstruction": (),
    "likelihood": (),
    "codebook": (),
    "generation": ("--judge",),
    "memorisation": (),
}
"""Kinds of `prologue evaluate`, with their flags."""


def prologue(*arguments: str | Path) -> None:
    """Run a command of the package."""
    subprocess.run([sys.executable, "-m", "prologue", *map(str, arguments)], check=True)


def measure(images: Path, out: Path, preset: str, device: str) -> dict[str, Any]:
    """Train and measure. Returns the measurements by kind."""
    run = out / "run"
    device_flags = ("--device", device)
    prologue("train", "--data", images, "--preset", preset, "--out", run, *device_flags)
    found = {}
    for kind, flags in MEASURES.items():
        file = out / f"{kind}.json"
        prologue("evaluate", kind, run, *flags, "--json", file, *device_flags)
        found[kind] = json.loads(file.read_text(encoding="utf-8"))
    prologue("generate", run, "--out", out / "samples", "--count", "64", "--overwrite", *device_flags)
    return found


def rate(record: dict[str, Any], name: str, factor: float = 100.0) -> str:
    """A figure with its interval, times `factor`."""
    value, low, high = (factor * record[f"{name}{end}"] for end in ("", "_low", "_high"))
    return f"{value:.3g} ({low:.3g} to {high:.3g})"


def lines(records: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """The rows of the table: figures, and values to compare them with."""
    decoded, generation, likelihood = records["reconstruction"], records["generation"], records["likelihood"]
    codebook, memory = records["codebook"], records["memorisation"]
    seen = generation["recognition"]
    yield f"reconstruction, PSNR in dB, N = {decoded['n']}", f"{decoded['psnr']:.2f}"
    yield "visual codes in use, %", f"{100 * codebook['visual_usage']:.1f}"
    yield "prologue codes in use, %", f"{100 * codebook['prologue_usage']:.1f}"
    yield "cost of the prologue, nats per image", f"{likelihood['cost']:.2f}"
    yield "diversity, nats per image; below 0.1 is a collapse", f"{likelihood['diversity']:.1f}"
    yield "use, nats per image; below 0.1 is a collapse", rate(likelihood, "use", 1.0)
    yield f"{generation['kid_name']} of samples to training images", rate(generation, "kid", 1.0)
    yield f"asked class seen in samples, %, N = {seen['n']}", rate(seen, "rate")
    yield "by chance, %", f"{100 / generation['classes']:.1f}"
    yield f"class seen in held-out images by the same classifier, %, N = {seen['judge_n']}", rate(seen, "judge_rate")
    yield f"samples very near a training image, %, N = {memory['n']}", rate(memory, "coarse_share")
    yield "the same if they were like held-out images, %", f"{100 * memory['coarse_share_expected']:.2f}"
    yield "the same of copies, %", rate(memory, "coarse_copies_share")


def answers(records: dict[str, dict[str, Any]]) -> Iterator[tuple[str, bool]]:
    """The requirements, and whether they are met."""
    seen, memory = records["generation"]["recognition"], records["memorisation"]
    half_used = records["codebook"]["visual_usage"] > 0.5
    yield "no codebook collapses", half_used and not records["likelihood"]["collapsed"]
    yield "the asked class is seen more often than by chance", seen["rate_low"] > 1 / records["generation"]["classes"]
    yield (
        "samples are no nearer to training images than chance allows",
        (memory["coarse_share_low"] <= memory["coarse_share_expected"]),
    )


def table(records: dict[str, dict[str, Any]]) -> str:
    """The answers, the figures and the notes, as Markdown."""
    answered = "".join(f"- {'Yes' if answer else 'No'}: {question}.\n" for question, answer in answers(records))
    rows = "\n".join(f"| {name} | {value} |" for name, value in lines(records))
    notes = dict.fromkeys(note for record in records.values() for note in record.get("notes", ()))
    said = "".join(f"\n- {note}" for note in notes)
    return f"{answered}\n| figure | value |\n|---|---:|\n{rows}\n" + (f"\n{said.strip()}\n" if said else "")


def slim(record: dict[str, Any]) -> dict[str, Any]:
    """The record without lists, as the repository keeps it."""
    return {key: value for key, value in record.items() if not isinstance(value, list) or key == "notes"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with a subfolder of images for each class")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--preset", default="small-32")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    found = measure(options.folder, options.out, options.preset, options.device)
    records = {kind: slim(whole["records"][0]) for kind, whole in found.items()}
    facts = {kind: whole["provenance"] for kind, whole in found.items()}
    whole = {"preset": options.preset, "records": records, "provenance": facts}
    (options.out / "first-try.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    (options.out / "first-try.md").write_text(table(records), encoding="utf-8")


if __name__ == "__main__":
    main()
