"""The pieces of a study, one per variant and seed: their folders, results and costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prologue.errors import ConfigError, RunError
from prologue.studies.reproduce.scales import VARIANTS, Name, Scale, plain_config, run_config
from prologue.training.flops import prior_step_flops, tokenizer_step_flops
from prologue.utils.serialization import load_json

RESULT_FORMAT = 1
_ORDER: tuple[Name, ...] = ("2d", "prologue-post", "1d", "prologue", "one-stage")
"""The order of training in a seed. `prologue-post` follows `2d`, whose tokenizer it starts from."""
Result = dict[str, Any]
"""`variant`, `seed`, `images`, `flops`, `seconds`, `measures`, `provenance` of a finished piece."""


@dataclass(frozen=True, order=True)
class Piece:
    """One variant with one seed."""

    seed: int
    variant: Name

    @property
    def name(self) -> str:
        return f"{self.variant}-s{self.seed}"

    def result_file(self, out: Path) -> Path:
        return out / "results" / f"{self.name}.json"

    def run_folder(self, out: Path) -> Path:
        return out / "runs" / self.name

    def plain_folder(self, out: Path) -> Path:
        """The run of the prior without a prologue, which the gain of `prologue` is measured against."""
        return out / "runs" / f"{self.name}-plain"

    @property
    def starts_from(self) -> Piece | None:
        """The piece whose tokenizer this one starts from."""
        return Piece(self.seed, "2d") if self.variant == "prologue-post" else None


def all_pieces(variants: Sequence[Name], seeds: Sequence[int]) -> list[Piece]:
    """All pieces in their order, seed by seed. `prologue-post` adds `2d`."""
    wanted = {*variants, *(["2d"] if "prologue-post" in variants else [])}
    return [Piece(seed, name) for seed in seeds for name in _ORDER if name in wanted]


def checked_variants(names: Sequence[str]) -> tuple[Name, ...]:
    """The named variants in the order of the tables. Raises `ConfigError` for an unknown name."""
    for name in names:
        if name not in VARIANTS:
            raise ConfigError(f"unknown variant {name!r}: choose among {', '.join(VARIANTS)}")
    return tuple(name for name in VARIANTS if name in names)


def load_results(out: Path) -> dict[Piece, Result]:
    """The results of all finished pieces. Raises `RunError` for a damaged file."""
    found = {}
    for path in sorted((out / "results").glob("*.json")):
        try:
            data = load_json(path)
            if data["format"] != RESULT_FORMAT:
                raise KeyError(data["format"])
            found[Piece(data["seed"], data["variant"])] = data
        except (ConfigError, KeyError, TypeError) as error:
            message = "is not a result of this version: delete it, and the piece is measured again"
            raise RunError(f"{path} {message}") from error
    return dict(sorted(found.items(), key=lambda item: (item[0].seed, VARIANTS.index(item[0].variant))))


def images_seen(scale: Scale, piece: Piece) -> dict[str, int]:
    """Training images of each stage. `taken_over` are those of a tokenizer that the piece starts from."""
    config = run_config(scale, piece.variant, piece.seed)
    tokenizer = config.tokenizer_training.steps * config.tokenizer_training.batch
    prior = config.prior_training.steps * config.prior_training.batch
    return {
        "tokenizer": tokenizer,
        "prior": 0 if config.tokenizer_training.one_stage else prior,
        "taken_over": tokenizer if piece.starts_from is not None else 0,
    }


def stage_flops(scale: Scale, piece: Piece) -> dict[str, float]:
    """Floating-point operations of each stage. `plain` is the prior that the gain is measured against."""
    config, plain = run_config(scale, piece.variant, piece.seed), plain_config(scale, piece.seed)
    return {
        "tokenizer": config.tokenizer_training.steps * tokenizer_step_flops(config),
        "prior": 0.0 if config.tokenizer_training.one_stage else config.prior_training.steps * prior_step_flops(config),
        "plain": plain.prior_training.steps * prior_step_flops(plain) if piece.variant == "prologue" else 0.0,
    }


def seconds_left(scale: Scale, done: Mapping[Piece, Result], todo: Sequence[Piece]) -> float | None:
    """Expected seconds of the pieces to do, at the speed of the finished pieces. None without finished pieces."""
    if not done:
        return None
    stages = ("tokenizer", "prior", "plain")
    flops = sum(result["flops"][stage] for result in done.values() for stage in stages)
    taken = sum(result["seconds"][stage] for result in done.values() for stage in stages)
    others = sum(sum(result["seconds"].values()) for result in done.values()) - taken
    ahead = sum(sum(stage_flops(scale, piece).values()) for piece in todo)
    training = float(ahead * taken / max(flops, 1.0))
    return training + len(todo) * float(others) / len(done)
