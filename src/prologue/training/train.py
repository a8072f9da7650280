"""A whole run: all stages in order. Each continues from its checkpoint; finished stages are skipped."""

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
from prologue.training.losses import autoencoder_terms
from prologue.training.prior_stage import PriorStage
from prologue.training.progress import Progress
from prologue.training.results import fault_of, hash_of_tokenizer
from prologue.training.run import RunFolder
from prologue.training.schedule import schedule_notes
from prologue.training.skipping import WHY, updates
from prologue.training.snapshots import OVERVIEW, save_overview
from prologue.training.tokenizer_stage import TokenizerStage
from prologue.training.tokens_stage import write_tokens
from prologue.utils.device import pick_device
from prologue.utils.launcher import environment_named, launched
from prologue.utils.locks import folder_lock
from prologue.utils.private_api import reset_accelerator_state

StageName = Literal["tokenizer", "tokens", "prior", "all"]
LONGEST_WAIT = timedelta(days=7)
"""How long processes wait for the main process, which encodes the whole data set alone."""


@dataclass(frozen=True)
class TrainRequest:
    """The request of `prologue train`."""

    config: RunConfig
    data: str
    out: Path
    stage: StageName = "all"
    tokenizer_from: Path | None = None
    """A finished run whose tokenizer is used, or whose visual path a post-hoc prologue reads."""
    device: str = "auto"
    extend: bool = False
    """Allow more steps than the run was started with."""
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Further JSON values that belong to the run and must not change."""


def train(
    request: TrainRequest, progress: Progress, stop: StopRequest | None = None, data: Data | None = None
) -> RunFolder:
    """Train a run, or continue it. `data` are the images of the request if they are already open.

    Under `accelerate launch` or `torchrun` every process calls this. The main process writes; it locks the folder
    before any process reads it.

    Raises:
        Stopped: by a signal, or by `stop`. The same request then continues the run.
    """
    with folder_lock(request.out) if launched().main else nullcontext():
        return _train(request, progress, stop, data)


def _train(request: TrainRequest, progress: Progress, stop: StopRequest | None, data: Data | None) -> RunFolder:
    config = _settled(request)
    autoencoder_terms(config.tokenizer_training)  # reports a wrong term before anything is written
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
    progress = progress if accelerator.is_main_process else Progress()
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
        if trainer.finished():
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
        """Whether the run is already finished. If so, report it. Writes nothing."""
        left = [stage for stage in self._wanted if not self._is_done(stage)]
        self.context.accelerator.wait_for_everyone()  # all processes must read before the main one writes
        unlisted = (self.run.prior_folder / WEIGHTS).is_file() and not (self.run.path / MANIFEST).is_file()
        if left or unlisted:
            return False
        for stage in self._wanted:
            self._say_done(stage)
        self._say_skipped()
        return True

    def train(self) -> None:
        stages = {"tokenizer": self._tokenizer, "tokens": self._tokens, "prior": self._prior}
        changed = not (self.run.path / OVERVIEW).is_file()
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
                changed |= name != "tokens"
            # Only the main process writes run.json. The others read it after the stage.
            self.context.accelerator.wait_for_everyone()
            self.run.reload()
        if self.context.main and self.run.finished(self._last) and fault_of(self.run, self._last) is None:
            self._write_manifest()
            if changed:
                save_overview(self.context)
        self._say_skipped()

    @property
    def _last(self) -> str:
        """The last stage of the run."""
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
        """Whether a stage is finished, and its result is complete or no longer needed."""
        if not self.run.finished(stage):
            return False
        return fault_of(self.run, stage) is None or (stage == "tokens" and self._tokens_are_unneeded())

    def _tokens_are_unneeded(self) -> bool:
        return self.request.stage == "all" and self._is_done("prior")

    def _say_done(self, stage: str) -> None:
        fault = fault_of(self.run, stage)
        lacking = "" if fault is None else f"; the finished prior does not need its damaged store ({fault})"
        self.progress.say(f"{stage}: finished already{lacking}")

    def _say_lost(self, stage: str) -> None:
        """Report a finished stage whose result is lost, and mark it as unfinished."""
        if not self.run.finished(stage):
            return
        fault, checkpoints = fault_of(self.run, stage), self.run.checkpoints(stage)
        if stage == "prior" and "another tokenizer" in str(fault) and self.context.main:
            checkpoints.clear()  # its state was trained on the other tokens
        left = f"from its checkpoint of step {checkpoints.steps()[-1]}" if checkpoints.steps() else "again"
        self.progress.say(f"{stage}: its result is lost and is computed {left}. {fault}")
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
        """The main process encodes; the others wait."""
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
        """Whether a prologue is trained for the given tokenizer. Otherwise the given tokenizer is used unchanged."""
        asked = self.run.config.tokenizer.traits
        return self.given is not None and asked.post_hoc and not self.given.config.traits.post_hoc

    def _require(self, before: str, stage: str) -> None:
        fault = fault_of(self.run, before) if self.run.finished(before) else "it is not finished"
        if fault is not None:
            raise RunError(
                f"stage {stage!r} needs the finished stage {before!r}: run it first, or --stage all ({fault})"
            )

    def _trained_on(self) -> list[str]:
        """Feature networks in the losses of the visual path, in this run or in the run that trained it."""
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
        """A TensorBoard log if TensorBoard is installed."""
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
    """Resolve `precision` auto and an unset file rule. A started run keeps its values; a new run gets the defaults."""
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
"""Modes of Accelerate that shard a model. The checkpoints of this package need the whole model in one process."""


def make_accelerator(precision: Precision, device: str) -> Any:
    """Accelerate's view of device, precision and process group for this process."""
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    chosen = pick_device(device)
    # Accelerate keeps precision and device for the whole program, but a second run may use others.
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
        raise ConfigError(f"training supports plain data parallelism, not {kind}: launch without it")
    return accelerator


@contextmanager
def _main_first(accelerator: Any) -> Iterator[None]:
    """Run the block in the main process first, then in the others."""
    if not accelerator.is_main_process:
        accelerator.wait_for_everyone()
    yield
    if accelerator.is_main_process:
        accelerator.wait_for_everyone()


def _agreement() -> Callable[[int], int]:
    """A maximum over all processes, in a group on the hosts, so that no process waits for a device."""
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
            "a one-stage run trains its prior together with its tokenizer and cannot use a finished one: "
            "leave --tokenizer out, or set tokenizer_training.one_stage to false"
        )
    source = request.tokenizer_from
    if (source / "run.json").is_file() and not RunFolder.load(source).finished("tokenizer"):
        raise RunError(f"{source} has no finished tokenizer: finish its training first")
    return Tokenizer.from_pretrained(source / "tokenizer")


def adopted_config(asked: TokenizerConfig, given: TokenizerConfig) -> TokenizerConfig:
    """The sizes of the given tokenizer; a post-hoc variant adds its own prologue."""
    return asked.on_top_of(given) if asked.traits.post_hoc else given


def _trained_on_in(source: Path) -> list[str]:
    """The feature networks that a run or an exported folder names."""
    if (source / "run.json").is_file():
        return list(RunFolder.load(source).trained_on)
    return list(Manifest.load(source).trained_on) if (source / "pipeline.json").is_file() else []
