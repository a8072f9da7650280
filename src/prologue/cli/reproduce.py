"""`prologue reproduce`: a small version of the tables of the paper. The same command continues a study."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from prologue.cli.options import check_run_seed, parse
from prologue.errors import ConfigError
from prologue.utils.launcher import launched
from prologue.utils.measurements import provenance
from prologue.utils.options import LOCATION, DeviceOption, JsonOption, SeedOption

UNFINISHED = 3
"""Exit code of a call that ran out of its minutes."""


@dataclass(frozen=True, kw_only=True)
class ReproduceOptions:
    out: Annotated[Path, arg(metavar="DIR")]
    """Folder of the study. The same command continues it. Seeds and variants may be added."""
    data: Annotated[str, arg(metavar="WHERE"), LOCATION] = "shapes"
    """Images: the embedded `shapes`, `digits` or `plates`, a folder, or a zip file."""
    scale: Literal["minutes", "hours", "gpu"] = "minutes"
    """Size of the study: minutes is a smoke test, hours is for two CPU cores, gpu is for one GPU."""
    seeds: int | None = None
    """Number of seeds. Default: minutes 2, hours 4, gpu 3."""
    seed: SeedOption = 0
    variants: tuple[str, ...] = ()
    """Variants to train, of 2d, 1d, prologue, prologue-post and one-stage. Default: all."""
    features: Annotated[str, arg(metavar="FEATURES")] = "auto"
    """Features of the distances. auto is the classifier of the embedded shapes and plates, and lite0 (extra [lite0])
    for other images. No loss uses these features."""
    minutes: float | None = None
    """Stop cleanly after this number of minutes, with exit code 3."""
    jobs: int | None = None
    """Runs at a time, each in its own process. Default: one per CPU core, one on a GPU."""
    device: DeviceOption = "auto"
    json: JsonOption = None


def run(argv: list[str]) -> int:
    """Begin or continue a study."""
    began = time.monotonic()
    description = "Train all variants with equal budgets and several seeds, and judge the claims of the paper."
    if launched().world > 1:
        raise ConfigError("`prologue reproduce` works in one process: start it without a launcher")
    options = parse(ReproduceOptions, argv, "prologue reproduce", description)
    seeds, variants = _seeds(options), options.variants
    import torch

    from prologue.cli._stopping import stops
    from prologue.data.source import import_source
    from prologue.studies.reproduce.pieces import checked_variants
    from prologue.studies.reproduce.request import StudyRequest
    from prologue.studies.reproduce.scales import VARIANTS, scale_named
    from prologue.studies.reproduce.study import reproduce
    from prologue.studies.reproduce.written import JSON, MARKDOWN, PAGE
    from prologue.training.progress import Terminal
    from prologue.utils.allocator import keep_freed_memory
    from prologue.utils.device import pick_device
    from prologue.utils.serialization import load_json, save_json

    import_source(options.data)
    scale = scale_named(options.scale, options.data)
    on_cpu = pick_device(options.device).type == "cpu"
    jobs = options.jobs if options.jobs is not None else torch.get_num_threads() if on_cpu else 1
    request = StudyRequest(
        out=options.out,
        data=options.data,
        scale_name=options.scale,
        scale=scale,
        seeds=tuple(range(options.seed, options.seed + (scale.seeds if seeds is None else seeds))),
        variants=checked_variants(variants) if variants else VARIANTS,
        device=options.device,
        features=options.features,
        minutes=options.minutes,
        jobs=jobs,
        provenance=provenance(["reproduce", *argv]),
        began=began,
    )
    if on_cpu:
        keep_freed_memory()
    progress = Terminal()
    with stops(progress):
        outcome = reproduce(request, progress)
    if outcome.done:
        print(*outcome.lines, *(f"{name}: {options.out / name}" for name in (MARKDOWN, JSON, PAGE)), sep="\n")
    if options.json is not None and (options.out / JSON).is_file():
        save_json(options.json, load_json(options.out / JSON))
    if not outcome.finished:
        progress.say(
            f"the time is up: {outcome.done} of {outcome.wanted} runs are finished. "
            "Run the same command again to continue"
        )
        return UNFINISHED
    return 0


def _seeds(options: ReproduceOptions) -> int | None:
    """The value of `--seeds`. Raises `ConfigError` for numbers out of range."""
    if options.seeds is not None and options.seeds < 1:
        raise ConfigError(f"--seeds must be at least 1, not {options.seeds}")
    if options.jobs is not None and options.jobs < 1:
        raise ConfigError(f"--jobs must be at least 1, not {options.jobs}")
    check_run_seed(options.seed, options.seeds or 1)
    if options.minutes is not None and not 0 < options.minutes < float("inf"):
        raise ConfigError(f"--minutes must be positive, not {options.minutes:g}")
    return options.seeds
