"""A whole run: the stages in order, each continued where it was, finished ones skipped."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch

from prologue.builtin import shown
from prologue.config import FILE_RULE, Precision, RunConfig, TokenizerConfig
from prologue.data.folder.inventory import changed_files, keep_inventory
from prologue.data.source import Data, open_data, place_of
from prologue.data.token_store import TokenStore
from prologue.errors import ConfigError, DataError, RunError
from prologue.models.precision import pick_precision
from prologue.models.tokenizer import Tokenizer
from prologue.models.weights import WEIGHTS, file_hash
from prologue.sampling.manifest import NAME as MANIFEST
from prologue.sampling.manifest import Manifest
from prologue.training.context import Context
from prologue.training.loop import Stage, Stopped, StopRequest, run_stage
from prologue.training.prior_stage import PriorStage
from prologue.training.progress import Progress, Silent
from prologue.training.results import fault_of, hash_of_tokenizer
from prologue.training.run import RunFolder
from prologue.training.schedule import schedule_notes
from prologue.training.skipping import WHY, updates
from prologue.training.tokenizer_stage import TokenizerStage
from prologue.training.tokens_stage import write_tokens
from prologue.utils.device import pick_device
from prologue.utils.launcher import environment_named, launched
from prologue.utils.locks import folder_lock
from prologue.utils.private_api import reset_accelerator_state

StageName = Literal["tokenizer", "tokens", "prior", "all"]
LONGEST_WAIT = timedelta(days=7)
"""For the main process, which encodes the whole data set while the others wait."""


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
    extend: bool = False
    """More steps than the run was begun with continue it."""
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Further JSON values that belong to the run and must not change."""


def train(
    request: TrainRequest, progress: Progress, stop: StopRequest | None = None, data: Data | None = None
) -> RunFolder:
    """Train, or continue, a run. Raises `Stopped` when a signal, or `stop`, stops it; the same request then continues.

    `data` are the request's images where they are open already.

    Under `accelerate launch` or `torchrun` every process calls this; the main one writes, and holds the folder's lock
    before anyone looks at the folder.
    """
    with folder_lock(request.out) if launched().main else nullcontext():
        return _train(request, progress, stop, data)


def _train(request: TrainRequest, progress: Progress, stop: StopRequest | None, data: Data | None) -> RunFolder:
    config = _settled(request)
    accelerator = make_accelerator(config.precision, request.device)
    given = _given_tokenizer(request, config)
    if given is not None:
        config = dataclasses.replace(config, tokenizer=adopted_config(config.tokenizer, given.config))
    if data is None:
        data = open_data(request.data, config.data, config.tokenizer.image_size)
        if accelerator.is_main_process:
            progress.say(data.summary(request.data))
    if not len(data.train):
        raise DataError(f"{request.data} holds no training images: put them into a folder train/ beside the others")
    facts = {
        "data": place_of(request.data),
        "data_fingerprint": data.fingerprint,
        "class_names": list(data.class_names),
    }
    if request.tokenizer_from is not None:
        facts["tokenizer"] = file_hash(request.tokenizer_from / "tokenizer" / WEIGHTS)
    progress = progress if accelerator.is_main_process else Silent()
    with _main_first(accelerator):
        run = RunFolder.open(
            request.out,
            config,
            facts | dict(request.facts),
            request.extend,
            lambda: changed_files(request.out, data.files),
        )
    for note in (*data.notes, *schedule_notes(config)):
        progress.say(note)
    stop = StopRequest() if stop is None else stop
    stop.agree = _agreement() if accelerator.num_processes > 1 else None
    context = Context(run, data, accelerator)
    try:
        trainer = _Trainer(context, request, given, progress, stop)
        if trainer.finished():  # and so is not written to
            return run
        with stop.listening():
            trainer.train()
    finally:
        context.batches.close()
    return run


class _Trainer:
    def __init__(
        self, context: Context, request: TrainRequest, given: Tokenizer | None, progress: Progress, stop: StopRequest
    ) -> None:
        self.context, self.request, self.given = context, request, given
        self.run, self.progress, self.stop = context.run, progress, stop

    def finished(self) -> bool:
        """Say so where nothing of what is asked for is left to do. Writes nothing."""
        left = [stage for stage in self._wanted if not self._is_done(stage)]
        self.context.accelerator.wait_for_everyone()  # before a process changes what the others look at
        unlisted = (self.run.prior_folder / WEIGHTS).is_file() and not (self.run.path / MANIFEST).is_file()
        if left or unlisted:
            return False
        for stage in self._wanted:
            self._say_done(stage)
        self._say_skipped()
        return True

    def train(self) -> None:
        stages = {"tokenizer": self._tokenizer, "tokens": self._tokens, "prior": self._prior}
        for name in self._wanted:
            done = self._is_done(name)
            self.context.accelerator.wait_for_everyone()
            if done:
                self._say_done(name)
            else:
                self._say_lost(name)
                if self.context.main:
                    keep_inventory(self.run.path, self.context.data.files)
                stages[name]()
            # Only the main process writes run.json: the others read it once it says how the stage ended.
            self.context.accelerator.wait_for_everyone()
            self.run.reload()
        if self.context.main and self.run.finished(self._last) and fault_of(self.run, self._last) is None:
            self._write_manifest()
        self._say_skipped()

    @property
    def _last(self) -> str:
        """The stage whose result completes the run."""
        return "tokenizer" if self.run.config.tokenizer_training.one_stage else "prior"

    @property
    def _wanted(self) -> list[str]:
        asked = self.request.stage
        if not self.run.config.tokenizer_training.one_stage:
            return ["tokenizer", "tokens", "prior"] if asked == "all" else [asked]
        if asked not in ("all", "tokenizer"):
            raise ConfigError(f"a one-stage run has no stage {asked!r}: its prior is trained with the tokenizer")
        return ["tokenizer"]

    def _is_done(self, stage: str) -> bool:
        """Whether a stage was finished, and what it left is whole or not needed any more."""
        if not self.run.finished(stage):
            return False
        return fault_of(self.run, stage) is None or (stage == "tokens" and self._tokens_are_unneeded())

    def _tokens_are_unneeded(self) -> bool:
        return self.request.stage == "all" and self._is_done("prior")

    def _say_done(self, stage: str) -> None:
        fault = fault_of(self.run, stage)
        lacking = "" if fault is None else f"; the store is not whole, which the finished prior does not need ({fault})"
        self.progress.say(f"{stage}: finished already{lacking}")

    def _say_lost(self, stage: str) -> None:
        """Say that a stage was finished and what is lost of it; what is left continues."""
        if not self.run.finished(stage):
            return
        fault, checkpoints = fault_of(self.run, stage), self.run.checkpoints(stage)
        if stage == "prior" and "another tokenizer" in str(fault) and self.context.main:
            checkpoints.clear()  # its state knows the other tokens
        left = f"from its checkpoint of step {checkpoints.steps()[-1]}" if checkpoints.steps() else "again"
        self.progress.say(f"{stage}: finished before, but its result is lost; it is made {left}. {fault}")
        if self.context.main:
            self.run.set_stage(stage, finished=False)

    def _say_skipped(self) -> None:
        for stage, known in self.run.record["stages"].items():
            if known.get("skipped"):
                self.progress.say(f"{stage}: {updates(known['skipped'])} skipped in all, {WHY}")

    def _tokenizer(self) -> None:
        if self.given is None or self.request.tokenizer_from is None:
            self._run(TokenizerStage(self.context))
            return
        known = {"taken_from": shown(self.request.tokenizer_from.absolute()), "trained_on": self._trained_on()}
        if self._post_hoc:
            stage = TokenizerStage(self.context, self.given)
            if self.context.main:
                self.run.set_stage("tokenizer", **known)
            self._run(stage)
        elif self.context.main:
            self.given.save_pretrained(self.run.tokenizer_folder)
            self.run.set_stage("tokenizer", finished=True, **known)

    def _tokens(self) -> None:
        """By the main process; the others wait."""
        self._require("tokenizer", "tokens")
        stopped: Stopped | None = None
        if self.context.main:
            try:
                write_tokens(self.context, self.progress, self.stop)
                self.run.set_stage("tokens", finished=True)
            except Stopped as stop:
                stopped = stop
        asked = self.stop.asked()
        self.run.reload()
        if asked is not None and not self.run.finished("tokens"):
            raise stopped or Stopped("in stage tokens", asked)

    def _prior(self) -> None:
        lost = self.run.finished("tokens") and not self._is_done("tokens")
        self.context.accelerator.wait_for_everyone()
        if lost:
            self._say_lost("tokens")
            self._tokens()
        self._require("tokens", "prior")
        self._require("tokenizer", "prior")
        if self.context.main:
            self.run.set_stage("prior", tokenizer=hash_of_tokenizer(self.run), stale=False)
        self._run(PriorStage(self.context, TokenStore(self.run.tokens_folder)))

    def _run(self, stage: Stage) -> None:
        with self._tracker() as track:
            run_stage(stage, self.context, self.progress, self.stop, track)

    @property
    def _post_hoc(self) -> bool:
        """Whether a prologue is trained for the given tokenizer, which may itself be a post-hoc one taken over."""
        asked = self.run.config.tokenizer.traits
        return self.given is not None and asked.post_hoc and not self.given.config.traits.post_hoc

    def _require(self, before: str, stage: str) -> None:
        fault = fault_of(self.run, before) if self.run.finished(before) else "it is not finished"
        if fault is not None:
            raise RunError(
                f"stage {stage!r} needs the finished stage {before!r}: run it first, or --stage all ({fault})"
            )

    def _trained_on(self) -> list[str]:
        """Feature extractors that a loss of this run's visual path used, here or where it was taken from."""
        if self.request.tokenizer_from is not None:
            return _trained_on_in(self.request.tokenizer_from)
        return list(self.run.trained_on)

    def _write_manifest(self) -> None:
        written = Manifest.load(self.run.path) if (self.run.path / MANIFEST).is_file() else None
        manifest = (written or Manifest.set_aside(self.run.path) or Manifest()).replace(
            class_names=self.context.data.class_names,
            data=self.request.data,
            background=self.run.config.data.background,
            trained_on=tuple(self._trained_on()),
        )
        if manifest.shared() != written:
            manifest.save(self.run.path)

    @contextmanager
    def _tracker(self) -> Iterator[Callable[[dict[str, Any]], None] | None]:
        """A TensorBoard log where it is installed, else nothing."""
        if not self.context.main:
            yield None
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            yield None
            return
        writer = SummaryWriter(str(self.run.path / "tensorboard"))

        def track(record: dict[str, Any]) -> None:
            for key, value in record.items():
                if isinstance(value, float):
                    writer.add_scalar(f"{record['stage']}/{key}", value, record["step"])

        try:
            yield track
        finally:
            writer.close()


def _settled(request: TrainRequest) -> RunConfig:
    """What the configuration leaves open: as the run began, else what is fast here, and the newest rule for files."""
    config = request.config
    precision, rule = config.precision, config.data.file_rule
    if (precision == "auto" or rule is None) and (request.out / "run.json").is_file():
        begun = RunFolder.load(request.out).config
        precision = begun.precision if precision == "auto" else precision
        rule = begun.data.file_rule if rule is None else rule
    if precision == "auto":
        precision = pick_precision(precision, pick_device(request.device))
    data = dataclasses.replace(config.data, file_rule=FILE_RULE if rule is None else rule)
    return dataclasses.replace(config, precision=precision, data=data)


_UNSUPPORTED = ("FSDP", "DEEPSPEED", "MEGATRON_LM")
"""Ways of Accelerate that cut a model up: a checkpoint here holds it whole."""


def make_accelerator(precision: Precision, device: str) -> Any:
    """Accelerate's device, precision and process group for this process."""
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    chosen = pick_device(device)
    # Accelerate keeps precision and device for the whole program; a second run in it may ask for others.
    reset_accelerator_state()
    with environment_named():
        accelerator = Accelerator(
            mixed_precision="bf16" if pick_precision(precision, chosen) == "bf16" else "no",
            cpu=chosen.type == "cpu",
            kwargs_handlers=[
                InitProcessGroupKwargs(timeout=LONGEST_WAIT),
            ],
        )
    kind = str(accelerator.distributed_type).rpartition(".")[2]
    if kind in _UNSUPPORTED:
        raise ConfigError(f"processes share a training as plain data parallel here, not as {kind}: launch without it")
    return accelerator


@contextmanager
def _main_first(accelerator: Any) -> Iterator[None]:
    """The main process goes through the block before the others do."""
    if not accelerator.is_main_process:
        accelerator.wait_for_everyone()
    yield
    if accelerator.is_main_process:
        accelerator.wait_for_everyone()


def _agreement() -> Callable[[int], int]:
    """The largest of all processes' numbers, over a group of its own on the hosts: no process waits for a device."""
    group = torch.distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)

    def agree(number: int) -> int:
        largest = torch.tensor([number])
        torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX, group=group)
        return int(largest)

    return agree


def _given_tokenizer(request: TrainRequest, config: RunConfig) -> Tokenizer | None:
    post_hoc = config.tokenizer.traits.post_hoc
    if request.tokenizer_from is None:
        if post_hoc:
            raise ConfigError(
                f"a {config.tokenizer.variant} run needs a finished {config.tokenizer.traits.frozen} run for its "
                "frozen visual path: give it with --tokenizer RUN"
            )
        return None
    if config.tokenizer_training.one_stage and not post_hoc:
        raise ConfigError(
            "a one-stage run trains its prior with its tokenizer, so it cannot take one over: "
            "leave --tokenizer out, or set tokenizer_training.one_stage to false"
        )
    source = request.tokenizer_from
    if (source / "run.json").is_file() and not RunFolder.load(source).finished("tokenizer"):
        raise RunError(f"{source} has no finished tokenizer: finish its training first")
    return Tokenizer.from_pretrained(source / "tokenizer")


def adopted_config(asked: TokenizerConfig, given: TokenizerConfig) -> TokenizerConfig:
    """The given tokenizer's sizes; a post-hoc variant keeps its own prologue on top of them."""
    return asked.on_top_of(given) if asked.traits.post_hoc else given


def _trained_on_in(source: Path) -> list[str]:
    """What a run or an exported folder says of its tokenizer's training."""
    if (source / "run.json").is_file():
        return list(RunFolder.load(source).trained_on)
    return list(Manifest.load(source).trained_on) if (source / "pipeline.json").is_file() else []
