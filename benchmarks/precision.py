"""Samples of a trained run in other number formats: distances to its fp32 samples, and agreement with them.

    python benchmarks/precision.py RUN [--count 2048] [--batch 64] [--precisions bf16,int8] [--features auto] [--json F]

Every format draws the same classes with the same seeds. The floor is fp32 with other seeds: a format whose distance is
not above it makes samples that cannot be told from those of fp32 by it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prologue.bulk.plan import Plan
from prologue.evaluation.distances import Distances
from prologue.evaluation.feature_networks import Features
from prologue.evaluation.runs import RunInfo
from prologue.pipeline import Pipeline
from prologue.studies.bench.models import agreement
from prologue.utils.device import pick_device
from prologue.utils.measurements import provenance, write_measurement

OTHER_SEEDS = 10**6


def samples(pipeline: Pipeline, count: int, batch: int, seed: int) -> tuple[Tensor, Tensor]:
    """Visual ids (N, n) and uint8 images (N, 3, H, W) of samples with the stored recipe and the classes in turn."""
    plan, class_ids = Plan(count, batch, count), pipeline.deal(count=count)
    ids, images = [], []
    for chunk in range(plan.chunks):
        numbers = plan.images(chunk)
        tokens, pixels = pipeline.chunk([class_ids[i] for i in numbers], [seed + i for i in numbers], batch)
        ids.append(tokens.visual.cpu())
        images.append(pixels)
    return torch.cat(ids), torch.cat(images)


def compare(features: Features, reference: Tensor, images: Tensor) -> dict[str, Any]:
    """Fréchet distance and kernel distance of two sets of images."""
    distances = Distances(features)
    for part in torch.split(reference, 256):
        distances.add_reference(part)
    for part in torch.split(images, 256):
        distances.add_measured(part)
    found = distances.record(0)
    return {name: found[name] for name in ("fd_name", "fd", "kid_name", "kid", "kid_low", "kid_high")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--count", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--precisions", default="bf16,int8")
    parser.add_argument("--features", default="auto")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device, info = pick_device("auto"), RunInfo.load(options.run)
    features = Features.open(options.features, info.data_name(None), device)
    exact = Pipeline.from_pretrained(options.run, device, "fp32", compile=False)
    ids, reference = samples(exact, options.count, options.batch, 0)
    floor = samples(exact, options.count, options.batch, OTHER_SEEDS)[1]
    records = [{"precision": "fp32", "seeds": "others", **compare(features, reference, floor)}]
    print(records[0])
    for precision in options.precisions.split(","):
        pipeline = Pipeline.from_pretrained(options.run, device, precision, compile=False)
        drawn, images = samples(pipeline, options.count, options.batch, 0)
        near = agreement(exact.prior, pipeline.prior, seed=0, sequences=32)
        record = {"precision": precision, "seeds": "the same", **compare(features, reference, images)}
        record |= {"max_logit_error": near.max_error, "mean_logit_error": near.mean_error, "top1_agreement": near.top1}
        record |= {"same_images": float((drawn == ids).all(1).double().mean())}
        records.append(record)
        print(record)
    if options.json is not None:
        facts = {"run_weights": info.weights, **features.facts(), "count": options.count, "device": str(device)}
        origin = provenance([], **facts) | {"command": f"python benchmarks/precision.py RUN --count {options.count}"}
        write_measurement(options.json, origin, records)


if __name__ == "__main__":
    main()
