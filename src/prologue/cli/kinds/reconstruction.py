"""`prologue evaluate reconstruction`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from prologue.cli._options import parse
from prologue.cli.kinds.base import (
    HeldOutOptions,
    Measurement,
    Prepared,
    Row,
    StatedBy,
    checked,
    facts,
    images_sentence,
    row,
    training_of,
    with_notes,
)
from prologue.cli.kinds.distances import (
    DistanceOptions,
    distance_rows,
    distance_sentences,
    reference_facts,
    reference_notes,
)
from prologue.errors import ConfigError
from prologue.evaluation.reconstruction import evaluate_reconstruction
from prologue.evaluation.runs import Record, RunInfo
from prologue.models.perceptual import perceptual_loss
from prologue.models.precision import pick_dtype
from prologue.models.published import place
from prologue.models.weights import file_hash
from prologue.utils.processes import Processes
from prologue.utils.progress import progress

_LPIPS_SIDE = 16


@dataclass(frozen=True, kw_only=True)
class ReconstructionOptions(DistanceOptions, HeldOutOptions):
    lpips: Annotated[Literal["auto", "off"] | Path, arg(metavar="auto|off|FILE"), StatedBy("lpips_hash")] = "auto"
    """Weights of LPIPS with VGG-16, as the training takes them: also measure LPIPS. auto does where
    `prologue weights lpips` has made them and images are large enough."""

    def lpips_file(self, image_size: tuple[int, int]) -> Path | None:
        """The weights that were asked for, or are there."""
        small = min(image_size) < _LPIPS_SIDE
        if isinstance(self.lpips, Path):
            if small:
                raise ConfigError(f"LPIPS compares images of at least {_LPIPS_SIDE} px: leave --lpips out")
            return self.lpips
        made = place("lpips")
        return made if self.lpips == "auto" and not small and made.is_file() else None


def prepare(argv: Sequence[str]) -> Prepared:
    prog, description = "prologue evaluate reconstruction", "Measure what a tokenizer keeps of held-out images."
    options = checked(parse(ReconstructionOptions, argv, prog, description))
    info = RunInfo.load(options.run, options.checkpoint)
    processes = Processes.join(options.device)
    device = processes.device
    features = options.open_features(info, device, info.manifest.trained_on)
    tokenizer = info.source.tokenizer().to(device, pick_dtype(options.dtype, device))
    opened = options.open_data(info, tokenizer.config.image_size)
    split = opened.measured()
    asked = "train" if split.name == "train" else "validation"
    statistics = options.open_reference(features, tokenizer.config.image_size, asked)
    notes = (*opened.notes, *reference_notes(statistics, opened.data.fingerprint))
    file = options.lpips_file(tokenizer.config.image_size)
    lpips = None if file is None else perceptual_loss("lpips", file)

    def measure() -> Measurement:
        record = evaluate_reconstruction(
            tokenizer,
            split,
            features,
            count=options.count,
            batch=options.batch,
            seed=options.seed,
            revives=training_of(info).tokenizer_training.dead_code_reset_every > 0,
            watch=progress,
            statistics=statistics,
            lpips=None if lpips is None else lpips.to(device),
            processes=processes,
        )
        return Measurement(with_notes(record, notes))

    origin = facts(info, options, opened, device) | features.facts()
    origin |= reference_facts(statistics)
    origin |= {"lpips_hash": None if file is None else file_hash(file)}
    return Prepared(options, origin, measure)


def rows(record: Record) -> Iterator[Row]:
    yield row("PSNR, dB", record, "psnr", ".2f")
    yield row("SSIM", record, "ssim", ".4f")
    if record.get("lpips") is not None:
        yield row(record["lpips_name"], record, "lpips", ".4f")
    yield from distance_rows(record)
    size = record["visual_codebook_size"]
    yield "visual codes in use", f"{record['visual_usage']:.1%} of {size}", ""
    yield "perplexity of the visual codes", f"{record['visual_perplexity']:.1f}", ""


def sentences(record: Record) -> Iterator[str]:
    yield images_sentence(record)
    if record.get("reference") is not None:
        number = "" if record["n_reference"] is None else f", of N = {record['n_reference']} images"
        yield f"Distances are to {record['reference']}{number}."
    yield from distance_sentences(record)
