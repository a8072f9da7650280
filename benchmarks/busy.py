"""Sampling, training and tests on a busy machine, with the thread settings of the package and of torch.

    python benchmarks/busy.py [--json FILE] [--repeats 3]

Each figure is the median time of the work in its own process. A busy machine has another process on each core. The
first columns have the settings of the package: threads by the size of the work, which sleep soon when idle. The last
columns have those of torch: all cores, and idle threads spin for OpenMP's default time. The two alternate, so that a
change of the machine's speed affects both. Work is stopped after `--limit` seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
WORK = ("1 image", "16 images", "16 images, torch first", "64 images", "training step", "tests")
_OCCUPY = "import time\nend = time.time() + 3600\nwhile time.time() < end: pass"
_DEFAULT_SPIN = "300000"
"""The default of GNU's OpenMP library."""


@contextlib.contextmanager
def occupied(busy: bool) -> Iterator[None]:
    """Another process on each core while the block runs."""
    others = [subprocess.Popen([sys.executable, "-c", _OCCUPY]) for _ in range(os.cpu_count() or 1)] if busy else []
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def sampling(count: int) -> Callable[[], object]:
    """Generate images of `builtin:shapes` in Python."""
    from prologue import Pipeline

    pipe = Pipeline.from_pretrained("builtin:shapes", compile=False)
    return lambda: pipe.generate("star", count=count)


def training(folder: Path) -> Callable[[], object]:
    """Steps of the tokenizer stage of small-32, with the threads of a run."""
    from prologue.utils.cpu_threads import cpu_threads, limit_spinning

    limit_spinning()  # as the command line does, before torch is imported
    from training_step import build

    from prologue.presets import preset
    from prologue.utils.allocator import keep_freed_memory

    keep_freed_memory()
    stage = build(preset("small-32"), "fp32", True, folder)
    threads = stage.context.threads(stage.name, *stage.product)

    def steps() -> None:
        for step in range(4):
            with cpu_threads(threads):
                stage.step(step)

    return steps


def tests() -> object:
    """A part of the test suite, in one process."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/models",
        "tests/sampling/test_decode.py",
    ]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def work(name: str, repeats: int) -> float:
    """Seconds of the work in this process, after a warm-up."""
    with tempfile.TemporaryDirectory() as folder:
        if name.endswith("torch first"):
            import torch  # noqa: F401
        if name == "training step":
            call = training(Path(folder))
        else:
            call = tests if name == "tests" else sampling(int(name.split()[0]))
        if name != "tests":
            call()
        seconds = []
        for _ in range(1 if name == "tests" else repeats):
            begin = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds) / (4 if name == "training step" else 1)


def measured(name: str, ours: bool, busy: bool, repeats: int, limit: float) -> float:
    """Seconds of the work in its own process."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_", "MKL_"))}
    if not ours:
        environ |= {"OMP_NUM_THREADS": str(os.cpu_count()), "GOMP_SPINCOUNT": _DEFAULT_SPIN}
    command = [sys.executable, __file__, "--work", name, "--repeats", str(repeats)]
    with occupied(busy):
        try:
            done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True, timeout=limit)
        except subprocess.TimeoutExpired:
            return limit
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", choices=WORK, help="run this work in this process and print its seconds")
    parser.add_argument("--only", nargs="+", choices=WORK, default=WORK)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=float, default=120.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.work:
        print(work(options.work, options.repeats))
        return
    records = []
    print(f"{'seconds':24s} {'quiet':>8s} {'busy':>8s} {'busy/quiet':>11s} {'torch quiet':>12s} {'torch busy':>11s}")
    for name in options.only:
        found = {
            (ours, busy): measured(name, ours, busy, options.repeats, options.limit)
            for busy in (False, True)
            for ours in (False, True)
        }
        own, others = [[found[ours, busy] for busy in (False, True)] for ours in (True, False)]
        records.append(
            {"work": name, "quiet": own[0], "busy": own[1], "torch_quiet": others[0], "torch_busy": others[1]}
        )
        ratio = own[1] / own[0]
        print(f"{name:24s} {own[0]:8.3f} {own[1]:8.3f} {ratio:10.2f}× {others[0]:12.3f} {others[1]:11.3f}", flush=True)
    if options.json:
        provenance = {"command": "python benchmarks/busy.py", "cores": os.cpu_count(), "limit": options.limit}
        options.json.write_text(json.dumps({"provenance": provenance, "records": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
