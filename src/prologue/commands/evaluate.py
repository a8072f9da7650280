"""`prologue evaluate`: reconstruction, generation or likelihood of a run, in numbers that state what they are of."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
from tyro.conf import Positional, arg

from prologue.commands._figures import show
from prologue.commands._options import DeviceOption, JsonOption, SeedOption, parse, provenance, write_measurement
from prologue.commands._sampling import GUIDANCE_HELP, SamplingFlags, progress
from prologue.config import RunConfig
from prologue.data.shapes import CLASS_NAMES
from prologue.device import pick_device, pick_dtype
from prologue.errors import ConfigError, EvaluationError
from prologue.evaluation.features import ShapesExtractor
from prologue.evaluation.generation import evaluate_generation, possible_recipe
from prologue.evaluation.likelihood import encode_images, evaluate_likelihood, true_classes
from prologue.evaluation.reconstruction import evaluate_reconstruction
from prologue.evaluation.runs import Features, Record, RunInfo, choose_images, measured_split
from prologue.pipeline import Pipeline, SamplingOptions
from prologue.prior import Prior
from prologue.tokenizer import Tokenizer
from prologue.weights import WEIGHTS, file_hash

_DEFAULT_SAMPLES = 2048


@dataclass(frozen=True, kw_only=True)
class _Options:
    """What every kind takes."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """A run's folder, or an imported one."""
    data: Annotated[str | None, arg(metavar="WHERE")] = None
    """Images to measure on, as `prologue train` takes them. Left out: those of the training."""
    seed: SeedOption = 0
    batch: int = 64
    """Images computed at once: bounds the memory."""
    device: DeviceOption = "auto"
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Number format of the models."""
    json: JsonOption = None


@dataclass(frozen=True, kw_only=True)
class _HeldOutOptions(_Options):
    count: int | None = None
    """So many of the held-out images, at random. Left out: all."""


OptionsT = TypeVar("OptionsT", bound=_Options)
FeaturesOption = Annotated[
    Literal["auto", "lite0", "shapes"],
    arg(
        help="Features of the distances: lite0 (extra [lite0]), or shapes, the classifier of the embedded shapes; "
        "auto takes lite0 where it is installed."
    ),
]


@dataclass(frozen=True, kw_only=True)
class ReconstructionOptions(_HeldOutOptions):
    features: FeaturesOption = "auto"


@dataclass(frozen=True, kw_only=True)
class LikelihoodOptions(_HeldOutOptions):
    baseline: Annotated[Path | None, arg(metavar="RUN")] = None
    """A prior without prologue on the same tokenizer's visual ids, for the gain:
    `prologue train --tokenizer RUN --prior.prologue false`."""


@dataclass(frozen=True, kw_only=True)
class GenerationOptions(_Options):
    features: FeaturesOption = "auto"
    count: int = _DEFAULT_SAMPLES
    """Samples, dealt to the classes in turn; from 10000 on the Fréchet distance is more than indicative."""
    guidance: Annotated[str | None, arg(metavar="GUIDANCE")] = None
    """How strongly to lean on the class; the forms are listed below."""
    temperature: float | None = None
    """Divides the logits."""
    prologue_temperature: float | None = None
    """The same for prologue tokens alone."""
    top_k: int | Literal["off"] | None = None
    """Draw among this many most likely ids; `off` drops a stored limit."""
    top_p: float | Literal["off"] | None = None
    """Draw among the most likely ids that hold this mass; `off` drops a stored limit."""

    def sampling(self) -> SamplingOptions:
        """The sampling options that were given, checked."""
        names = ("guidance", "temperature", "prologue_temperature", "top_k", "top_p")
        flags = SamplingFlags(out=Path(), **{name: getattr(self, name) for name in names})
        flags.check()
        return flags.sampling()


def run(argv: list[str]) -> int:
    """Measure one kind of thing, print it, and write it where `--json` says."""
    if argv[:1] in (["-h"], ["--help"]):
        print(_usage())
        return 0
    measure = _kind(argv[0] if argv else None)
    record, facts, options = measure(argv[1:])
    if options.json is not None:
        write_measurement(options.json, provenance(["evaluate", *argv], **facts), [record])
    show(record, str(options.run))
    return 0


def _usage() -> str:
    kinds = "\n".join(f"  {name:<16}{summary}" for name, (_, summary) in KINDS.items())
    return (
        "usage: prologue evaluate KIND RUN [OPTIONS]\n\nMeasure a run.\n\n"
        f"kinds:\n{kinds}\n\n`prologue evaluate KIND --help` lists the options of a kind."
    )


def _kind(name: str | None) -> Measure:
    if name in KINDS:
        return KINDS[name][0]
    listed = ", ".join(KINDS)
    if name is None or name.startswith("-"):
        raise ConfigError(f"say first what to measure: prologue evaluate KIND RUN, where KIND is one of {listed}")
    near = get_close_matches(name, KINDS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(f"unknown kind of evaluation {name!r}: {hint}kinds are {listed}")


def _reconstruction(argv: list[str]) -> Measured:
    prog, description = "prologue evaluate reconstruction", "Measure what a tokenizer keeps of held-out images."
    options = _checked(parse(ReconstructionOptions, argv, prog, description))
    info = RunInfo.load(options.run)
    device = pick_device(options.device)
    features = Features.open(options.features, info.data_name(options.data), device, info.manifest.trained_on)
    tokenizer = Tokenizer.from_pretrained(options.run / "tokenizer").to(device, pick_dtype(options.dtype, device))
    source, data, notes = info.open_data(options.data, tokenizer.config.image_size)
    begin = time.perf_counter()
    record = evaluate_reconstruction(
        tokenizer,
        measured_split(data),
        features,
        count=options.count,
        batch=options.batch,
        seed=options.seed,
        revives=_training(info).tokenizer_training.revive_every > 0,
        watch=progress,
    )
    return _with_notes(record, notes), _facts(info, options, source, data.fingerprint, device, begin), options


def _generation(argv: list[str]) -> Measured:
    prog, description = "prologue evaluate generation", "Measure samples against training images."
    options = _checked(parse(GenerationOptions, argv, prog, description, GUIDANCE_HELP))
    sampling = options.sampling()
    info = RunInfo.load(options.run)
    pipeline = Pipeline.from_pretrained(options.run, options.device, options.dtype)
    features = Features.open(
        options.features, info.data_name(options.data), pipeline.device, pipeline.manifest.trained_on
    )
    source, data, notes = info.open_data(options.data, pipeline.tokenizer.config.image_size)
    stored = possible_recipe(pipeline.recipe, pipeline.prior)
    if stored != pipeline.recipe and "guidance" not in sampling:
        notes = (*notes, "the stored guidance leans on a class, and this run has none, so it is left out")
    knows = source == "shapes" and pipeline.class_names == CLASS_NAMES
    begin = time.perf_counter()
    record = evaluate_generation(
        pipeline.tokenizer,
        pipeline.prior,
        stored.replace(**sampling),
        data.train,
        features,
        count=options.count,
        seed=options.seed,
        batch=options.batch,
        class_names=pipeline.class_names,
        classifier=ShapesExtractor(pipeline.device) if knows else None,
        watch=progress,
    )
    facts = _facts(info, options, source, data.fingerprint, pipeline.device, begin)
    return _with_notes(record, notes), facts, options


def _likelihood(argv: list[str]) -> Measured:
    prog, description = "prologue evaluate likelihood", "Measure what a prior pays for the tokens of held-out images."
    options = _checked(parse(LikelihoodOptions, argv, prog, description))
    info = RunInfo.load(options.run)
    pipeline = Pipeline.from_pretrained(options.run, options.device, options.dtype)
    baseline = None if options.baseline is None else _baseline(options, pipeline)
    source, data, notes = info.open_data(options.data, pipeline.tokenizer.config.image_size)
    split = measured_split(data)
    indices = choose_images(len(split.images), options.count, options.seed, "likelihood")
    labels = split.images.labels[indices]
    class_ids, said = true_classes(labels, data.class_names, pipeline.class_names, pipeline.prior.num_classes)
    begin = time.perf_counter()
    tokens = encode_images(pipeline.tokenizer, split.images, indices, batch=options.batch, watch=progress)
    record = evaluate_likelihood(
        pipeline.prior,
        tokens,
        class_ids,
        image_size=pipeline.tokenizer.config.image_size,
        split=split.name,
        baseline=baseline,
        seed=options.seed,
        batch=options.batch,
        starts_from_data=bool(_training(info).tokenizer_training.prologue_kmeans),
        watch=progress,
    )
    facts = _facts(info, options, source, data.fingerprint, pipeline.device, begin)
    if options.baseline is not None:
        facts |= {"baseline": options.baseline, "baseline_weights": RunInfo.load(options.baseline).weights}
    return _with_notes(record, (*split.notes, *notes, *said)), facts, options


def _baseline(options: LikelihoodOptions, pipeline: Pipeline) -> Prior:
    """The baseline's prior, whose visual ids must be those of the run: it has the same tokenizer."""
    assert options.baseline is not None
    other = Pipeline.from_pretrained(options.baseline, pipeline.device, pipeline.dtype)
    hashes = {file_hash(folder / "tokenizer" / WEIGHTS) for folder in (options.run, options.baseline)}
    if len(hashes) > 1:
        raise EvaluationError(
            f"{options.baseline} has another tokenizer than {options.run}, and likelihoods compare only on the same "
            f"visual ids: train the baseline with --tokenizer {options.run} --prior.prologue false"
        )
    if other.class_names != pipeline.class_names:
        raise EvaluationError(f"{options.baseline} has other classes than {options.run}: train both on the same images")
    return other.prior


def _checked(options: OptionsT) -> OptionsT:
    for name in ("batch", "count"):
        value: int | None = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name} must be at least 1, not {value}")
    return options


def _training(info: RunInfo) -> RunConfig:
    """How the run was trained; the defaults where its folder does not say."""
    return info.config if info.config is not None else RunConfig()


def _facts(
    info: RunInfo, options: _Options, source: str, fingerprint: str, device: torch.device, begin: float
) -> dict[str, Any]:
    """What the figures' provenance states beside command, versions and machine."""
    return {
        "run": info.path,
        "weights": info.weights,
        "data": source,
        "data_fingerprint": fingerprint,
        "seed": options.seed,
        "batch": options.batch,
        "device": str(device),
        "dtype": options.dtype,
        "seconds": round(time.perf_counter() - begin, 2),
    }


def _with_notes(record: Record, notes: tuple[str, ...]) -> Record:
    return record | {"notes": [*notes, *record["notes"]]}


Measured = tuple[Record, dict[str, Any], _Options]
Measure = Callable[[list[str]], Measured]
KINDS: dict[str, tuple[Measure, str]] = {
    "reconstruction": (_reconstruction, "PSNR, SSIM, distances to the originals, use of the codebook"),
    "generation": (_generation, "distances to training images; on shapes also whether the asked class is seen"),
    "likelihood": (_likelihood, "what the prior pays per image, and what the prologue carries"),
}
