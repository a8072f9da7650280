"""`prologue reproduce`: the paper's tables in small, from one command that continues where it was."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from prologue.cli._options import check_run_seed, parse
from prologue.errors import ConfigError
from prologue.utils.launcher import launched
from prologue.utils.measurements import provenance
from prologue.utils.options import LOCATION, DeviceOption, JsonOption, SeedOption

UNFINISHED = 3
"""Exit code of a call whose minutes were up: the same call continues."""


@dataclass(frozen=True, kw_only=True)
class ReproduceOptions:
    out: Annotated[Path, arg(metavar="DIR")]
    """Folder of the study. The same command on the same folder continues it; more seeds and variants may be added."""
    data: Annotated[str, arg(metavar="WHERE"), LOCATION] = "shapes"
    """Images: the embedded `shapes`, `digits` or `plates`, a folder or a zip."""
    scale: Literal["minutes", "hours", "gpu"] = "minutes"
    """minutes shows that everything runs; hours makes the tables on two CPU cores; gpu on one GPU."""
    seeds: int | None = None
    """How many seeds. Left out: as many as the scale has (minutes 2, hours 4, gpu 3)."""
    seed: SeedOption = 0
    variants: tuple[str, ...] = ()
    """Some of 2d, 1d, prologue, prologue-post, one-stage. Left out: all."""
    features: Annotated[str, arg(metavar="FEATURES")] = "auto"
    """Features of the distances, which no loss uses: auto takes the classifier of embedded shapes and plates, elsewhere
    lite0 (extra [lite0])."""
    minutes: float | None = None
    """Stop cleanly after so many minutes, with exit code 3: the same command continues."""
    jobs: int | None = None
    """Runs at a time, each in a process of its own. Left out: one for each core of a CPU, one on a GPU."""
    device: DeviceOption = "auto"
    json: JsonOption = None


def run(argv: list[str]) -> int:
    """Do, or continue, a study."""
    began = time.monotonic()
    description = "Train all variants under equal budgets over several seeds, and judge the paper's claims."
    if launched().world > 1:
        raise ConfigError("`prologue reproduce` works in one process: start it without a launcher")
    options = parse(ReproduceOptions, argv, "prologue reproduce", description)
    seeds, variants = _seeds(options), options.variants
    import torch

    from prologue.cli._stopping import stops
    from prologue.studies.reproduce.pieces import checked_variants
    from prologue.studies.reproduce.request import StudyRequest
    from prologue.studies.reproduce.scales import VARIANTS, scale_named
    from prologue.studies.reproduce.study import reproduce
    from prologue.studies.reproduce.written import JSON, MARKDOWN, PAGE
    from prologue.training.progress import Terminal
    from prologue.utils.allocator import keep_freed_memory
    from prologue.utils.device import pick_device
    from prologue.utils.serialization import load_json, save_json

    scale = scale_named(options.scale, options.data)
    on_cpu = pick_device(options.device).type == "cpu"
    jobs = options.jobs if options.jobs is not None else torch.get_num_threads() if on_cpu and not scale.packed else 1
    if jobs > 1 and scale.packed:
        raise ConfigError(f"--jobs {jobs}: --scale {options.scale} makes one run at a time")
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
    """The number of seeds that was asked for; impossible numbers are a `ConfigError`."""
    if options.seeds is not None and options.seeds < 1:
        raise ConfigError(f"--seeds must be at least 1, not {options.seeds}")
    if options.jobs is not None and options.jobs < 1:
        raise ConfigError(f"--jobs must be at least 1, not {options.jobs}")
    check_run_seed(options.seed, options.seeds or 1)
    if options.minutes is not None and not 0 < options.minutes < float("inf"):
        raise ConfigError(f"--minutes must be positive, not {options.minutes:g}")
    return options.seeds
