"""The stage between 1 and 2: the EMA tokenizer encodes every training view once into the token store (METHOD §8)."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prologue.data.token_store import StoreShape, TokenStore, TokenStoreWriter
from prologue.errors import CheckpointError, RunError
from prologue.models.sequence import SequenceLayout
from prologue.models.tokenizer import Tokenizer, to_model_range
from prologue.models.weights import WEIGHTS, file_hash
from prologue.training.context import Context
from prologue.training.loop import Stopped, StopRequest
from prologue.training.progress import Progress
from prologue.utils.cpu_threads import cpu_threads

VIEWS_PER_BATCH = 256


def write_tokens(context: Context, progress: Progress, stop: StopRequest) -> TokenStore:
    """Fill the token store of the run, or continue a partial one. Raises `Stopped` on a signal."""
    run, images = context.run, context.data.train
    tokenizer = Tokenizer.from_pretrained(run.tokenizer_folder).to(context.device)
    config = tokenizer.config
    writer = _writer(
        run.tokens_folder,
        progress,
        StoreShape(**dataclasses.asdict(SequenceLayout.of(config).config), views=images.views),
        {"tokenizer": file_hash(run.tokenizer_folder / WEIGHTS), "data": context.data.fingerprint},
    )
    start, batch = writer.done, max(1, VIEWS_PER_BATCH // images.views)
    threads = context.threads("tokens", VIEWS_PER_BATCH * config.visual_tokens, config.encoder.width)
    if not start:
        run.set_stage("tokens", threads=threads)
    progress.begin("tokens", start, len(images), 1)
    try:
        # The first batch may begin before `start`: batches must not depend on where an earlier call stopped, because
        # ids can depend on rounding.
        for first in range(start // batch * batch, 0 if writer.finished else len(images), batch):
            indices = range(first, min(first + batch, len(images)))
            views = torch.from_numpy(np.concatenate([images.token_views(index) for index in indices]))
            with cpu_threads(threads), context.accelerator.autocast():
                tokens = tokenizer.encode(to_model_range(views.to(context.device)))
            known = max(0, start - first)
            labels = torch.from_numpy(images.labels[indices.start : indices.stop])
            writer.append(tokens[known * images.views :], labels[known:])
            progress.advance(indices.stop)
            asked = stop.alone()
            if asked is not None and indices.stop < len(images):
                raise Stopped(f"in stage tokens after image {writer.done}", asked)
    finally:
        progress.end()
    return writer.finish()


def _writer(folder: Path, progress: Progress, layout: StoreShape, meta: dict[str, Any]) -> TokenStoreWriter:
    """Open the store. If it is damaged or belongs to another tokenizer, start a new one."""
    try:
        return TokenStoreWriter(folder, layout, meta)
    except (CheckpointError, RunError) as error:
        progress.say(f"tokens: the store is written again: {error}")
        shutil.rmtree(folder)
        return TokenStoreWriter(folder, layout, meta)
