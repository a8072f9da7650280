"""The two models of a folder: the finished models, or the models in the newest checkpoints of an unfinished run."""

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
    """The EMA weights of one model in a checkpoint. They are read at once, because a training may remove the files."""

    stage: str
    step: int
    sha256: str
    tensors: dict[str, Tensor] = field(repr=False)


@dataclass(frozen=True)
class RunModels:
    """The models of a folder; `states` has the weights that come from checkpoints, by model name."""

    folder: Path
    run: RunFolder | None = None
    states: dict[str, State] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, which: Which = "finished") -> RunModels:
        """For each model whose stage is not finished, `newest` takes the EMA of the newest checkpoint.

        Raises:
            CheckpointError: `newest`, and the folder has no `run.json`, or neither a checkpoint nor a tokenizer.
            ConfigError: `which` is neither `finished` nor `newest`.
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
        """Stage and step of each checkpoint, for the provenance; empty for finished models."""
        found = {name: {"stage": state.stage, "step": state.step} for name, state in self.states.items()}
        return {"checkpoint": found} if found else {}

    def hashes(self) -> dict[str, str]:
        """The sha256 of each file that the models come from."""
        return model_hashes(self.folder) | {name: state.sha256 for name, state in self.states.items()}

    def manifest(self) -> Manifest:
        """The folder's manifest, or the one that an unfinished run will get."""
        if self.run is None or (self.folder / MANIFEST).is_file():
            return Manifest.load(self.folder)
        return unfinished_manifest(self.run)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer, on the CPU in fp32; missing or damaged files raise a `CheckpointError`."""
        if self.run is None or "tokenizer" not in self.states:
            return Tokenizer.from_pretrained(self.folder / "tokenizer")
        tokenizer = Tokenizer(self.run.config.tokenizer)
        load_exactly(tokenizer, self.states["tokenizer"].tensors, f"the newest checkpoint of {self.folder}")
        return tokenizer.eval()

    def prior(self) -> Prior:
        """The prior, on the CPU in fp32; missing or damaged files, or a run without a prior, raise a
        `CheckpointError`."""
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
                f"{self.folder} has no prior for its tokens yet, it is in stage {now!r}{at}: wait for a checkpoint of "
                f"the prior. `prologue evaluate reconstruction {in_shell(self.folder)} --checkpoint newest` "
                "measures its tokenizer now"
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
    """The manifest that a run will get once its prior is trained."""
    facts = run.record["facts"]
    names, background = tuple(facts.get("class_names", ())), run.config.data.background
    return Manifest(names, None, facts.get("data"), run.trained_on, background).shared()
