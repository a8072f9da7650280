"""A whole run: the stages in order, each continued where it was, finished ones skipped."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from prologue.config import RunConfig, TokenizerConfig
from prologue.data.source import open_data
from prologue.errors import ConfigError, RunError
from prologue.manifest import Manifest
from prologue.tokenizer import Tokenizer
from prologue.training.context import Context
from prologue.training.loop import StopRequest, run_stage
from prologue.training.prior_stage import PriorStage
from prologue.training.progress import Progress, Silent
from prologue.training.run import RunFolder
from prologue.training.tokenizer_stage import TokenizerStage
from prologue.training.tokens_stage import write_tokens
from prologue.weights import WEIGHTS, file_hash

StageName = Literal["tokenizer", "tokens", "prior", "all"]


@dataclass(frozen=True)
class TrainRequest:
    """What `prologue train` is asked for."""

    config: RunConfig
    data: str
    out: Path
    stage: StageName = "all"
    tokenizer_from: Path | None = None
    """A finished run whose tokenizer is taken over, or whose visual path a post-hoc prologue reads."""
    device: str = "auto"
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Further JSON values that belong to the run and must not change."""


def train(request: TrainRequest, progress: Progress) -> RunFolder:
    """Train, or continue, a run. Raises `Stopped` when a signal stops it; the same request then continues."""
    accelerator = make_accelerator(request.config.precision, request.device)
    given = _given_tokenizer(request)
    config = request.config
    if given is not None:
        config = dataclasses.replace(config, tokenizer=_adopted_config(config.tokenizer, given.config))
    elif config.tokenizer.variant == "prologue-post":
        raise ConfigError(
            "a prologue-post run needs a finished 2d run for its frozen visual path: give it with --tokenizer RUN"
        )
    data = open_data(request.data, config.data, config.tokenizer.image_size)
    facts = {"data": request.data, "data_fingerprint": data.fingerprint, "class_names": list(data.class_names)}
    if request.tokenizer_from is not None:
        facts["tokenizer"] = file_hash(request.tokenizer_from / "tokenizer" / WEIGHTS)
    progress = progress if accelerator.is_main_process else Silent()
    if not accelerator.is_main_process:
        accelerator.wait_for_everyone()
    run = RunFolder.open(request.out, config, facts | dict(request.facts))
    if accelerator.is_main_process:
        accelerator.wait_for_everyone()
    for note in data.notes:
        progress.say(note)
    agree = _agreement(accelerator) if accelerator.num_processes > 1 else None
    with StopRequest(agree).listening() as stop:
        _Trainer(Context(run, data, accelerator), request, given, progress, stop).train()
    return run


class _Trainer:
    def __init__(
        self, context: Context, request: TrainRequest, given: Tokenizer | None, progress: Progress, stop: StopRequest
    ) -> None:
        self.context, self.request, self.given = context, request, given
        self.run, self.progress, self.stop = context.run, progress, stop
        self.main = bool(context.accelerator.is_main_process)

    def train(self) -> None:
        one_stage = self.run.config.tokenizer_training.one_stage
        stages = {"tokenizer": self._tokenizer, "tokens": self._tokens, "prior": self._prior}
        wanted = list(stages) if self.request.stage == "all" else [self.request.stage]
        for name in wanted:
            if one_stage and name != "tokenizer":
                if self.request.stage != "all":
                    raise ConfigError(f"a one-stage run has no stage {name!r}: its prior is trained with the tokenizer")
                continue
            if self.run.finished(name):
                self.progress.say(f"{name}: finished already")
                continue
            stages[name]()
            self.context.accelerator.wait_for_everyone()
        if self.main and (self.run.prior_folder / WEIGHTS).is_file():
            self._write_manifest()

    def _tokenizer(self) -> None:
        if self.given is not None and not self._post_hoc:
            if self.main:
                assert self.request.tokenizer_from is not None
                shutil.copytree(
                    self.request.tokenizer_from / "tokenizer", self.run.tokenizer_folder, dirs_exist_ok=True
                )
                self.run.set_stage("tokenizer", finished=True, taken_from=str(self.request.tokenizer_from))
            return
        stage = TokenizerStage(self.context, self.given)
        run_stage(stage, self.run, self.progress, self.stop, self.main, self._tracker())

    def _tokens(self) -> None:
        self._require("tokenizer", "tokens")
        if self.main:
            write_tokens(self.context, self.progress, self.stop)
            self.run.set_stage("tokens", finished=True)

    def _prior(self) -> None:
        from prologue.data.store import TokenStore

        self._require("tokens", "prior")
        stage = PriorStage(self.context, TokenStore(self.run.tokens_folder))
        run_stage(stage, self.run, self.progress, self.stop, self.main, self._tracker())

    @property
    def _post_hoc(self) -> bool:
        return self.run.config.tokenizer.variant == "prologue-post"

    def _require(self, before: str, stage: str) -> None:
        self.run.record = RunFolder.load(self.run.path).record
        if not self.run.finished(before):
            raise RunError(f"stage {stage!r} needs the finished stage {before!r}: run it first, or --stage all")

    def _write_manifest(self) -> None:
        training = self.run.config.tokenizer_training
        trained_on = ("lite0",) if training.perceptual == "lite0" and training.perceptual_weight > 0 else ()
        existing = Manifest.load(self.run.path) if (self.run.path / "pipeline.json").is_file() else Manifest()
        existing.replace(class_names=self.context.data.class_names, data=self.request.data, trained_on=trained_on).save(
            self.run.path
        )

    def _tracker(self) -> Any:
        """A TensorBoard log where it is installed, else nothing."""
        if not self.main:
            return None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return None
        writer = SummaryWriter(str(self.run.path / "tensorboard"))

        def track(record: dict[str, Any]) -> None:
            for key, value in record.items():
                if isinstance(value, float):
                    writer.add_scalar(f"{record['stage']}/{key}", value, record["step"])

        return track


def make_accelerator(precision: str, device: str) -> Any:
    """Accelerate's device, precision and process group for this process."""
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    from prologue.device import pick_device

    chosen = pick_device(device)
    return Accelerator(
        mixed_precision="bf16" if precision == "bf16" else "no",
        cpu=chosen.type == "cpu",
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )


def _agreement(accelerator: Any) -> Any:
    def agree(number: int) -> int:
        local = torch.tensor([number], device=accelerator.device)
        return int(accelerator.gather(local).max())

    return agree


def _given_tokenizer(request: TrainRequest) -> Tokenizer | None:
    if request.tokenizer_from is None:
        return None
    source = request.tokenizer_from
    if (source / "run.json").is_file() and not RunFolder.load(source).finished("tokenizer"):
        raise RunError(f"{source} has no finished tokenizer: finish its training first")
    return Tokenizer.from_pretrained(source / "tokenizer")


def _adopted_config(asked: TokenizerConfig, given: TokenizerConfig) -> TokenizerConfig:
    """The given tokenizer's sizes; a post-hoc variant keeps its own prologue on top of them."""
    if asked.variant != "prologue-post":
        return given
    if given.variant != "2d":
        raise ConfigError(f"a post-hoc prologue reads a finished 2d tokenizer, not a {given.variant!r} one")
    prologue = ("variant", "prologue_encoder", "prologue_tokens", "prologue_codebook_size", "prologue_temperature")
    return dataclasses.replace(given, **{name: getattr(asked, name) for name in prologue})
