"""`prologue evaluate reconstruction`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prologue.commands._options import parse
from prologue.commands._sampling import progress
from prologue.commands.kinds.base import (
    FeaturesOption,
    HeldOutOptions,
    Measurement,
    Prepared,
    Row,
    checked,
    facts,
    images_sentence,
    row,
    training_of,
    with_notes,
)
from prologue.commands.kinds.distances import distance_rows, distance_sentences
from prologue.device import pick_device, pick_dtype
from prologue.evaluation.reconstruction import evaluate_reconstruction
from prologue.evaluation.runs import Features, Record, RunInfo, measured_split
from prologue.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class ReconstructionOptions(HeldOutOptions):
    features: FeaturesOption = "auto"


def prepare(argv: Sequence[str]) -> Prepared:
    prog, description = "prologue evaluate reconstruction", "Measure what a tokenizer keeps of held-out images."
    options = checked(parse(ReconstructionOptions, argv, prog, description))
    info = RunInfo.load(options.run)
    device = pick_device(options.device)
    features = Features.open(options.features, info.data_name(options.data), device, info.manifest.trained_on)
    tokenizer = Tokenizer.from_pretrained(options.run / "tokenizer").to(device, pick_dtype(options.dtype, device))
    source, data, notes = info.open_data(options.data, tokenizer.config.image_size)

    def measure() -> Measurement:
        record = evaluate_reconstruction(
            tokenizer,
            measured_split(data),
            features,
            count=options.count,
            batch=options.batch,
            seed=options.seed,
            revives=training_of(info).tokenizer_training.revive_every > 0,
            watch=progress,
        )
        return Measurement(with_notes(record, notes))

    return Prepared(options, facts(info, options, source, data.fingerprint, device) | features.facts(), measure)


def rows(record: Record) -> Iterator[Row]:
    yield row("PSNR, dB", record, "psnr", ".2f")
    yield row("SSIM", record, "ssim", ".4f")
    yield from distance_rows(record)
    size = record["visual_codebook_size"]
    yield "visual codes in use", f"{record['visual_usage']:.1%} of {size}", ""
    yield "perplexity of the visual codes", f"{record['visual_perplexity']:.1f}", ""


def sentences(record: Record) -> Iterator[str]:
    yield images_sentence(record)
    yield from distance_sentences(record)
