"""The cost of feature extraction relative to the network alone.

    python benchmarks/features.py [--features lite0] [--size 256] [--images 64] [--rounds 7] [--device cpu]

The bare network is given uint8 images that are on its device already, in pieces of the extractor's size, and its
outputs stay there. Both take turns, round by round; the ratio is the median over rounds of bare by extractor time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from prologue.evaluation import features as module
from prologue.evaluation.feature_networks import open_features
from prologue.evaluation.features import ClassifierExtractor
from prologue.utils.device import pick_device
from prologue.utils.rng import torch_stream


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", default="lite0", choices=("lite0", "shapes", "inception"))
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--images", type=int, default=64, help="batch size")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = pick_device(options.device)
    extractor, _ = open_features(options.features, "shapes", device)
    assert isinstance(extractor, ClassifierExtractor)
    generator = torch_stream(0, "benchmark")
    shape = (options.images, 3, options.size, options.size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    there = images.to(device).split(module._CPU_CHUNK if device.type == "cpu" else options.images)
    # The network alone, without transfers, copies and checks.
    bare = torch.inference_mode()(lambda: [extractor._outputs(part) for part in there])
    times: dict[str, list[float]] = {"bare": [], "extractor": []}
    for turn in range(options.rounds + 1):
        for name, run in (("bare", bare), ("extractor", lambda: extractor(images))):
            seconds = _seconds(run, device)
            if turn:  # the first warms up
                times[name].append(seconds)
    ratio = statistics.median(b / e for b, e in zip(times["bare"], times["extractor"], strict=True))
    speed = options.images / statistics.median(times["extractor"])
    print(f"{options.features} on {device.type}: {ratio:.1%} of the bare network's speed, {speed:.1f} images/s")
    if options.json is not None:
        record = vars(options) | {"json": None, "device": device.type, "ratio": ratio, "images_per_second": speed}
        options.json.write_text(json.dumps({"provenance": {"torch": torch.__version__}, "records": [record]}, indent=1))


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    begin = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - begin


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
