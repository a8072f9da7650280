"""Checks whether the result of a finished stage is still complete."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from prologue.config import PriorConfig, TokenizerConfig
from prologue.data.token_store import TokenStore
from prologue.errors import CheckpointError
from prologue.models.weights import WEIGHTS, check_model, file_hash
from prologue.training.run import RunFolder


def hash_of_tokenizer(run: RunFolder) -> str:
    """The sha256 of the tokenizer's weights. It is cached until the file changes."""
    path = run.tokenizer_folder / WEIGHTS
    found = path.stat()
    return _hash(path, found.st_mtime_ns, found.st_size, found.st_ino)


@lru_cache(maxsize=8)
def _hash(path: Path, *stamps: int) -> str:
    return file_hash(path)


def fault_of(run: RunFolder, stage: str) -> str | None:
    """The fault of a stage's result, or None if it is complete. This reads neither weights nor token shards."""
    tokenizer = run.tokenizer_folder / WEIGHTS
    try:
        if stage == "tokens":
            made_from = TokenStore(run.tokens_folder).meta.get("tokenizer")
        elif stage == "prior":
            check_model(run.prior_folder, PriorConfig)
            made_from = run.record["stages"].get("prior", {}).get("tokenizer")
        else:
            check_model(run.tokenizer_folder, TokenizerConfig)
            if run.config.tokenizer_training.one_stage:
                check_model(run.prior_folder, PriorConfig)
            return None
    except CheckpointError as error:
        return str(error)
    if made_from is not None and tokenizer.is_file() and made_from != hash_of_tokenizer(run):
        return f"{run.path / stage} was made with another tokenizer than the one in {run.tokenizer_folder}"
    return None
