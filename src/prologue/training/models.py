"""The two models of a folder: the finished ones, or those of the newest checkpoints of a run that is still training."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from prologue.config import TokenizerConfig
from prologue.errors import CheckpointError, ConfigError
from prologue.models.prior import Prior
from prologue.models.sequence import SequenceLayout
from prologue.models.tokenizer import Tokenizer
from prologue.models.weights import load_exactly, model_hashes, read_config
from prologue.sampling.manifest import NAME as MANIFEST
from prologue.sampling.manifest import Manifest
from prologue.training.run import RunFolder
from prologue.utils.files import in_shell

Which = Literal["finished", "newest"]


@dataclass(frozen=True)
class State:
    """The EMA weights of one model in a checkpoint, read when it was opened: a training may replace its files."""

    stage: str
    step: int
    sha256: str
    tensors: dict[str, Tensor] = field(repr=False)


@dataclass(frozen=True)
class RunModels:
    """Where the models of a folder come from: `states` has those that are read from a checkpoint, by name."""

    folder: Path
    run: RunFolder | None = None
    states: dict[str, State] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, which: Which = "finished") -> RunModels:
        """`newest` takes, of each model whose stage is not finished, the EMA of the newest whole checkpoint.

        A folder without `run.json` is a `CheckpointError`, as is a run without any checkpoint or finished tokenizer;
        anything else than `finished` and `newest` is a `ConfigError`.
        """
        if which not in get_args(Which):
            raise ConfigError(f"checkpoint must be one of {', '.join(get_args(Which))}, not {which!r}")
        if which == "finished":
            return cls(folder)
        run = RunFolder.load(folder)
        states: dict[str, State] = {}
        stage_of = {
            "tokenizer": "tokenizer",
            "prior": "tokenizer" if run.config.tokenizer_training.one_stage else "prior",
        }
        for name, stage in stage_of.items():
            prefix = f"{name}.ema."
            stale = stage == "prior" and run.record["stages"].get("prior", {}).get("stale")
            found = None if run.finished(stage) or stale else run.checkpoints(stage).newest((prefix,))
            if found is not None:
                step, digest, tensors = found
                own = {key.removeprefix(prefix): value for key, value in tensors.items()}
                states[name] = State(stage, step, digest, own)
        if "tokenizer" not in states and not run.finished("tokenizer"):
            raise CheckpointError(f"{folder} has no checkpoint yet: wait for the first, or lower --checkpoint-every")
        return cls(folder, run, states)

    @property
    def facts(self) -> dict[str, Any]:
        """What the provenance states of the checkpoints; empty for finished models."""
        found = {name: {"stage": state.stage, "step": state.step} for name, state in self.states.items()}
        return {"checkpoint": found} if found else {}

    def hashes(self) -> dict[str, str]:
        """sha256 of the files that the models are read from."""
        return model_hashes(self.folder) | {name: state.sha256 for name, state in self.states.items()}

    def manifest(self) -> Manifest:
        """The folder's, or what it will say of a run whose training is not finished."""
        if self.run is None or (self.folder / MANIFEST).is_file():
            return Manifest.load(self.folder)
        return unfinished_manifest(self.run)

    def tokenizer(self) -> Tokenizer:
        """On the CPU in fp32; anything missing or damaged is a `CheckpointError`."""
        if self.run is None or "tokenizer" not in self.states:
            return Tokenizer.from_pretrained(self.folder / "tokenizer")
        tokenizer = Tokenizer(self.run.config.tokenizer)
        load_exactly(tokenizer, self.states["tokenizer"].tensors, f"the newest checkpoint of {self.folder}")
        return tokenizer.eval()

    def prior(self) -> Prior:
        """On the CPU in fp32; a run that has none yet is a `CheckpointError`, as is anything missing or damaged."""
        if self.run is None:
            return Prior.from_pretrained(self.folder / "prior")
        config, stages = self.run.config, self.run.record["stages"]
        one_stage = config.tokenizer_training.one_stage
        if "prior" not in self.states:
            if self.run.finished("tokenizer" if one_stage else "prior"):
                return Prior.from_pretrained(self.folder / "prior")
            now = next((name for name in ("tokenizer", "tokens") if not self.run.finished(name)), "prior")
            at = f" (step {self.states[now].step} of {stages[now]['steps']})" if now in self.states else ""
            raise CheckpointError(
                f"{self.folder} has no prior for its tokens yet, for it is in stage {now!r}{at}: wait for a checkpoint "
                f"of its prior. `prologue evaluate reconstruction {in_shell(self.folder)} --checkpoint newest` "
                "measures the tokenizer meanwhile"
            )
        sizes = config.tokenizer
        if "tokenizer" not in self.states:
            sizes = read_config(self.folder / "tokenizer", TokenizerConfig)
        options = config.tokenizer_training.prior_model if one_stage else config.prior
        layout = SequenceLayout.of(sizes, options.prologue or one_stage)
        classes = len(self.run.record["facts"].get("class_names", ()))
        prior = Prior(options.sized(layout.config, classes))
        load_exactly(prior, self.states["prior"].tensors, f"the newest checkpoint of {self.folder}")
        return prior.eval()


def unfinished_manifest(run: RunFolder) -> Manifest:
    """What the manifest of a run will say whose prior is still to be trained."""
    facts = run.record["facts"]
    names, background = tuple(facts.get("class_names", ())), run.config.data.background
    return Manifest(names, None, facts.get("data"), run.trained_on, background).shared()
