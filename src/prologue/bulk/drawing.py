"""Fills a folder with images, chunk by chunk. Each process draws its share and writes files in a second thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from PIL import Image

from prologue.bulk.output import GRID, Chunk, Output
from prologue.bulk.plan import Plan
from prologue.data.pictures import class_grid, file_name, open_image, read_images, save_png
from prologue.errors import SamplingError
from prologue.pipeline import Pipeline
from prologue.sampling.arguments import SamplingOptions
from prologue.utils.device import out_of_memory
from prologue.utils.processes import Processes

Write = Literal["png", "npz", "both"]
Progress = Callable[[int, int, float], None]
"""Called with the number of images done, the total, and the images per second since this call began."""
_GRID_IMAGES = 600
"""Largest number of images in the grid."""
_QUEUED = 2
"""Largest number of chunks that wait to be written; it bounds the memory."""


@dataclass(frozen=True)
class Job:
    """A class for each image, seeds counted up from `seed`, sampling options, and the files to write."""

    class_ids: Sequence[int]
    seed: int
    options: SamplingOptions
    write: Write
    shard_size: int
    batch: int
    """Images to draw at once. A batch that does not fit into memory is halved before the first image is written."""
    request: Mapping[str, Any]
    """Everything that determines the bytes of the images, as JSON values."""


@dataclass
class Drawing:
    """Draws a job into an output. `say` gets messages for the user."""

    pipeline: Pipeline
    job: Job
    output: Output
    processes: Processes = field(default_factory=Processes)
    say: Callable[[str], None] = lambda sentence: None
    progress: Progress = lambda done, count, rate: None
    plan: Plan = field(init=False)
    """The place of each image, set by `run`."""

    def run(self, overwrite: bool = False) -> bool:
        """Draw the missing images. Returns false if none was missing.

        Raises:
            RunError: the folder holds other files, or another process works in it.
            SamplingError: the memory runs out after the first chunk.
        """
        with self.processes.folder_lock(self.output.folder):
            return self._run(overwrite)

    def _run(self, overwrite: bool) -> bool:
        begin = time.perf_counter()  # the clock includes the trial, because the trial draws the first chunk
        main = self.processes.main
        state = self.output.state(self.job.request, overwrite)
        self.processes.wait()  # all processes have read the folder before the first one changes it
        first: Chunk | None = None
        if state is None:
            if main:
                first, compiled = self._try()
                batch = self.plan.batch
                found = {"batch": batch, "compiled": compiled, "threads": self.pipeline.threads(batch)}
                self.output.start({"request": dict(self.job.request), **found})
            self.processes.wait()
            state = self.output.state(self.job.request, overwrite=False)
            assert state is not None
        self._plan(state["batch"])
        left = self.output.missing(self.plan, self._archived_size, self._names)
        self.processes.wait()  # all processes have looked at the files
        if not left and state.get("finished") and self.output.has_grid():
            if main:
                self.output.finish(state)
            return False
        if main:
            self.output.forget(left)
        self.processes.wait()
        self._draw(left, state["compiled"], state["threads"], first, begin)
        self.processes.wait()
        if main:
            self._finish(state)
        self.processes.wait()
        return True

    def _plan(self, batch: int) -> None:
        self.plan = Plan(len(self.job.class_ids), batch, self.job.shard_size)

    @property
    def _archived_size(self) -> tuple[int, int] | None:
        return None if self.job.write == "png" else self.pipeline.tokenizer.config.image_size

    def _names(self, chunk: int) -> list[str]:
        """The names of a chunk's PNG files."""
        return [] if self.job.write == "npz" else [self.file(index) for index in self.plan.images(chunk)]

    def _try(self) -> tuple[Chunk, bool]:
        """Draw the first chunk with the largest batch that fits; returns it, and whether it was compiled.

        The batch is not larger than the number of images, because a chunk is always filled up to the batch.
        """
        batch = min(self.job.batch, len(self.job.class_ids))
        while True:
            self._plan(batch)
            compiled = self.pipeline.compiles(self.plan.count, batch)
            try:
                return self._chunk(0, compiled, self.pipeline.threads(batch)), compiled
            except Exception as error:
                if not out_of_memory(error):
                    raise
                reason = _first_line(str(error))  # the traceback of the error would keep its memory
            if batch == 1:
                raise SamplingError(
                    f"not even --batch 1 fits into memory ({reason}): "
                    "free memory, or store the weights in fewer bytes (--dtype bf16 or int8)"
                )
            self.say(f"a batch of {batch} does not fit into memory, continuing with {batch // 2} ({reason})")
            batch //= 2

    def _draw(self, left: Sequence[int], compiled: bool, threads: int, first: Chunk | None, begin: float) -> None:
        """Draw and write this process's share of the chunks `left`, with the number of threads of the first call.

        On a CPU, rounding depends on the number of threads.
        """
        plan, drawn = self.plan, 0
        before, wanted = plan.chunks - len(left), set(left)
        pending: list[Future[None]] = []
        with ThreadPoolExecutor(1) as writer:
            for number in plan.share(self.processes.rank, self.processes.world):
                if number not in wanted:
                    continue
                chunk = first if number == 0 and first is not None else self._guarded(number, compiled, threads)
                pending.append(writer.submit(self._write, number, chunk))
                while len(pending) > _QUEUED or (pending and pending[0].done()):
                    pending.pop(0).result()
                drawn += len(plan.images(number))
                if self.processes.main:
                    done = sum(map(self.output.keeps, left)) * plan.batch if self.processes.world > 1 else drawn
                    rate = done / (time.perf_counter() - begin)
                    self.progress(min(plan.count, before * plan.batch + done), plan.count, rate)
            for future in pending:
                future.result()

    def _guarded(self, number: int, compiled: bool, threads: int) -> Chunk:
        try:
            return self._chunk(number, compiled, threads)
        except Exception as error:
            if not out_of_memory(error):
                raise
            raise SamplingError(
                f"chunk {number} does not fit into memory ({_first_line(str(error))}); finished chunks are kept: "
                f"free memory and run the same command again, or start again with a --batch below {self.plan.batch}"
            ) from error

    def _chunk(self, number: int, compiled: bool, threads: int) -> Chunk:
        images = self.plan.images(number)
        tokens, pixels = self.pipeline.chunk(
            [self.job.class_ids[index] for index in images],
            [self.job.seed + index for index in images],
            self.plan.batch,
            compiled=compiled,
            threads=threads,
            **self.job.options,
        )
        tokens = tokens.to("cpu")
        return {
            "images": pixels.permute(0, 2, 3, 1).contiguous().numpy(),
            "prologue": tokens.prologue.numpy(),
            "visual": tokens.visual.numpy(),
        }

    def _write(self, number: int, chunk: Chunk) -> None:
        """Write a chunk and the shards that it completes; runs in the second thread."""
        pictures = list(zip(self._names(number), chunk["images"], strict=True)) if self.job.write != "npz" else []
        if self.job.write == "png":
            chunk = {name: array for name, array in chunk.items() if name != "images"}
        self.output.add(number, chunk, pictures)
        # With several processes, any of them may draw a shard's last chunk; the main process assembles it at the end.
        shard = self.plan.shard_of(number)
        if self.job.write != "png" and self.processes.world == 1 and self.output.complete(self.plan, shard):
            self._assemble(shard)

    def _assemble(self, shard: int) -> None:
        images = self.plan.shard_images(shard)
        columns = {
            "class_ids": np.array([self.job.class_ids[index] for index in images], dtype=np.int64),
            "class_names": np.array(self.pipeline.class_names, dtype=np.str_),
            "seeds": np.array([self.job.seed + index for index in images], dtype=np.int64),
        }
        self.output.assemble(self.plan, shard, self.pipeline.tokenizer.config.image_size, columns)

    def _finish(self, state: Mapping[str, Any]) -> None:
        """Assemble the remaining shards, draw the grid, and mark the folder as finished."""
        size = self._archived_size
        for shard in range(self.plan.shards):
            if size is not None and not self.output.has_shard(self.plan, shard, size):
                self._assemble(shard)
        shown = range(min(self.plan.count, _GRID_IMAGES))
        names = [self.class_name(index) or "" for index in shown]
        save_png(self.output.folder / GRID, class_grid(self._pictures(len(shown)), names))
        self.output.finish(state)

    def _pictures(self, count: int) -> list[Image.Image]:
        """The first `count` images, read from the files."""
        if self.job.write != "npz":
            return [open_image(self.output.folder / self.file(index)) for index in range(count)]
        out: list[Image.Image] = []
        for shard in range(self.plan.shards):
            if len(out) < count:
                out += read_images(self.output.folder / self.plan.shard_name(shard), count - len(out))
        return out

    def class_name(self, index: int) -> str | None:
        """The class name of an image; None if classes have no names."""
        return self.pipeline.class_name(self.job.class_ids[index]) if self.pipeline.class_names else None

    def file(self, index: int) -> str:
        """The PNG file of an image."""
        return file_name(index, self.class_name(index), self.job.seed + index)


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["no memory"])[0][:160]
