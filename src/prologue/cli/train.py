"""`prologue train`: train a tokenizer with prologue tokens and its prior."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Suppress, arg

from prologue.builtin import locate
from prologue.cli._overrides import given_fields, resolve_run_config, with_fields
from prologue.cli._stopping import stops
from prologue.cli.options import parse
from prologue.config import RunConfig, TokenizerConfig
from prologue.data.source import import_source
from prologue.errors import ConfigError
from prologue.models.weights import WEIGHTS, read_config
from prologue.training.progress import Progress, Terminal
from prologue.training.run import differences
from prologue.training.snapshots import OVERVIEW
from prologue.training.train import StageName, TrainRequest, adopted_config, train
from prologue.utils.allocator import keep_freed_memory
from prologue.utils.device import pick_device
from prologue.utils.files import in_shell
from prologue.utils.launcher import launched
from prologue.utils.options import LOCATION, DeviceOption
from prologue.utils.serialization import to_dict

DEFAULT_PRESET = "small-32"


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    data: Annotated[str, arg(metavar="WHERE"), LOCATION]
    """Images: a folder, a zip, the embedded `shapes`, `digits` or `plates`, or `module:Name` of your own source."""
    out: Annotated[Path, arg(metavar="RUN")]
    """Run folder; the same command continues an interrupted run."""
    preset: Annotated[str, arg(metavar="PRESET")] = DEFAULT_PRESET
    """Named configuration (`prologue presets` lists them), or your own as module:name."""
    config: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """JSON file with fields that override the preset's."""
    stage: StageName = "all"
    """Stage to run; finished stages are skipped."""
    tokenizer: Annotated[Path | None, arg(metavar="RUN", help_behavior_hint="")] = None
    """Run whose finished tokenizer is used instead of training one; a post-hoc prologue keeps it frozen."""
    device: DeviceOption = "auto"
    extend: bool = False
    """Continue a run, also a finished one, with more steps; its learning rates can change too."""
    fields: Suppress[dict[str, Any]] = field(default_factory=dict)


def _named_preset(argv: list[str]) -> str:
    """The preset of a command line, whose values the help shows."""
    for flag, value in pairwise([*argv, ""]):
        if flag == "--preset" and value:
            return value
        if flag.startswith("--preset="):
            return flag.removeprefix("--preset=")
    return DEFAULT_PRESET


def _check_adopted(config: RunConfig, source: Path, asked: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for `--tokenizer.*` flags that differ from the finished tokenizer."""
    kept = to_dict(adopted_config(config.tokenizer, read_config(source / "tokenizer", TokenizerConfig)))
    for name, own, wanted in differences(kept, {**kept, **{key: to_dict(config.tokenizer).get(key) for key in asked}}):
        raise ConfigError(
            f"--tokenizer.{name.replace('_', '-')}: the tokenizer of {source} has {own!r}, and {wanted!r} was asked "
            "for: leave the flag out, or train another tokenizer"
        )


def _imports(config: RunConfig) -> list[str]:
    """The options `--import MODULE` with which another process can open the run's models."""
    quantizers = (config.tokenizer.quantizer, config.tokenizer.prologue_quantizer)
    modules = [quantizer["name"].rpartition(":")[0] for quantizer in quantizers]
    return [f"--import {module}" for module in dict.fromkeys(modules) if module]


def run(argv: list[str]) -> int:
    """Train or continue a run."""
    kind = with_fields(TrainOptions, _named_preset(argv))
    options = parse(kind, argv, "prologue train", "Train a tokenizer and its prior.")
    config = resolve_run_config(options.preset, options.config, options.fields)
    tokenizer_from = None if options.tokenizer is None else locate(options.tokenizer)
    if tokenizer_from is not None:
        _check_adopted(config, tokenizer_from, given_fields(options.fields).get("tokenizer", {}))
    import_source(options.data)
    request = TrainRequest(
        config=config,
        data=options.data,
        out=options.out,
        stage=options.stage,
        tokenizer_from=tokenizer_from,
        device=options.device,
        extend=options.extend,
    )
    if pick_device(options.device).type == "cpu":
        keep_freed_memory()
    # Of several processes (torchrun, accelerate) only the main one prints.
    progress: Progress = Terminal() if launched().main else Progress()
    with stops(progress):
        finished = train(request, progress)
    if (finished.prior_folder / WEIGHTS).is_file():
        command = " ".join(["prologue", *_imports(finished.config), "generate", in_shell(options.out), "--out samples"])
        if (finished.path / OVERVIEW).is_file():
            progress.say(f"reconstructions and samples: {finished.path / OVERVIEW}")
        progress.say(f"{options.out} is finished. Next: {command}")
    else:
        progress.say(f"The stage {options.stage} of {options.out} is finished. Next: the same command with --stage all")
    return 0
