"""Fills a folder with images: chunk by chunk, each process its share, files written while the next tokens are drawn."""

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
from prologue.pipeline import Pipeline, SamplingOptions
from prologue.utils.device import out_of_memory
from prologue.utils.processes import Processes

Write = Literal["png", "npz", "both"]
Progress = Callable[[int, int, float], None]
"""Called with images done, images in all, and images per second since this call began."""
_GRID_IMAGES = 600
"""The grid shows at most the first so many images."""
_QUEUED = 2
"""Chunks that wait to be written; more would be memory for nothing."""


@dataclass(frozen=True)
class Job:
    """What is to be drawn: a class for each image, seeds counted up from `seed`, and what is written of it."""

    class_ids: Sequence[int]
    seed: int
    options: SamplingOptions
    write: Write
    shard_size: int
    batch: int
    """Images at once as asked for; a batch that does not fit is halved before the first image is written."""
    request: Mapping[str, Any]
    """All that the bytes depend on, as JSON values."""


@dataclass
class Drawing:
    """Draws a job into an output. `say` gets a sentence for the user, `progress` numbers while it goes on."""

    pipeline: Pipeline
    job: Job
    output: Output
    processes: Processes = field(default_factory=Processes)
    say: Callable[[str], None] = lambda sentence: None
    progress: Progress = lambda done, count, rate: None
    plan: Plan = field(init=False)
    """Which image is where, known once it runs."""

    def run(self, overwrite: bool = False) -> bool:
        """Draw what is missing; false where nothing was.

        Raises `RunError` where the folder holds something else or another process is at work in it, `SamplingError`
        where memory runs out later.
        """
        with self.processes.folder_lock(self.output.folder):
            return self._run(overwrite)

    def _run(self, overwrite: bool) -> bool:
        begin = time.perf_counter()  # the trial draws the first images: without its time a rate would be too good
        state = self.output.state(self.job.request, overwrite)
        # Everyone has looked at the folder before the first process changes it.
        self.processes.wait()
        first: Chunk | None = None
        if state is None:
            if self.processes.main:
                batch, compiled, first = self._try()
                found = {"batch": batch, "compiled": compiled, "threads": self.pipeline.threads(batch)}
                self.output.start({"request": dict(self.job.request), **found})
            self.processes.wait()
            state = self.output.state(self.job.request, overwrite=False)
            assert state is not None
        self.plan = plan = Plan(len(self.job.class_ids), state["batch"], self.job.shard_size)
        left = self.output.missing(plan, self._archived_size, self._names)
        self.processes.wait()  # everyone has looked at the files
        if not left and state.get("finished") and self.output.has_grid():
            if self.processes.main:
                self.output.finish(state)
            return False
        if self.processes.main:
            self.output.forget(left)
        self.processes.wait()
        self._draw(plan, left, state, first, begin)
        self.processes.wait()
        if self.processes.main:
            self._finish(plan, state)
        self.processes.wait()
        return True

    @property
    def _archived_size(self) -> tuple[int, int] | None:
        return None if self.job.write == "png" else self.pipeline.tokenizer.config.image_size

    def _names(self, chunk: int) -> list[str]:
        """The pictures of a chunk that are written."""
        return [] if self.job.write == "npz" else [self.file(index) for index in self.plan.images(chunk)]

    def _try(self) -> tuple[int, bool, Chunk]:
        """The largest batch that fits, halving the one asked for, whether it is compiled, and its first chunk.

        No larger than the count: a chunk is filled up to the batch, and what fills it is computed for nothing.
        """
        batch = min(self.job.batch, len(self.job.class_ids))
        while True:
            plan = Plan(len(self.job.class_ids), batch, self.job.shard_size)
            compiled = self.pipeline.compiles(plan.count, batch)
            try:
                return batch, compiled, self._chunk(plan, 0, compiled, self.pipeline.threads(batch))
            except Exception as error:
                if not out_of_memory(error):
                    raise
                reason = str(error)  # the error's traceback would keep the memory of the attempt
            if batch == 1:
                raise SamplingError(
                    f"not even --batch 1 fits into memory ({_first_line(reason)}): "
                    "free memory, or store the weights in fewer bytes (--dtype bf16 or int8)"
                )
            smaller = batch // 2
            self.say(f"a batch of {batch} does not fit into memory, going on with {smaller} ({_first_line(reason)})")
            batch = smaller

    def _draw(
        self, plan: Plan, left: Sequence[int], state: Mapping[str, Any], first: Chunk | None, begin: float
    ) -> None:
        """This process's share of the chunks, of those that are left, with the threads of the first call.

        On a CPU products round by the number of threads.
        """
        compiled: bool = state["compiled"]
        threads: int = state["threads"]
        drawn, before, wanted = 0, plan.chunks - len(left), set(left)
        pending: list[Future[None]] = []
        with ThreadPoolExecutor(1) as writer:
            for number in plan.share(self.processes.rank, self.processes.world):
                if number not in wanted:
                    continue
                chunk = first if number == 0 and first is not None else self._guarded(plan, number, compiled, threads)
                pending.append(writer.submit(self._write, plan, number, chunk))
                while len(pending) > _QUEUED or (pending and pending[0].done()):
                    pending.pop(0).result()
                drawn += len(plan.images(number))
                if self.processes.main:
                    done = sum(map(self.output.keeps, left)) * plan.batch if self.processes.world > 1 else drawn
                    rate = done / (time.perf_counter() - begin)
                    self.progress(min(plan.count, before * plan.batch + done), plan.count, rate)
            for future in pending:
                future.result()

    def _guarded(self, plan: Plan, number: int, compiled: bool, threads: int) -> Chunk:
        try:
            return self._chunk(plan, number, compiled, threads)
        except Exception as error:
            if not out_of_memory(error):
                raise
            raise SamplingError(
                f"chunk {number} does not fit into memory any more ({_first_line(str(error))}); what is done is kept: "
                f"free memory and run the same again, or start anew with a --batch below {plan.batch}"
            ) from error

    def _chunk(self, plan: Plan, number: int, compiled: bool, threads: int) -> Chunk:
        images = plan.images(number)
        seeds = [self.job.seed + index for index in images]
        class_ids = [self.job.class_ids[index] for index in images]
        tokens, pixels = self.pipeline.chunk(
            class_ids, seeds, plan.batch, compiled=compiled, threads=threads, **self.job.options
        )
        tokens = tokens.to("cpu")
        return {
            "images": pixels.permute(0, 2, 3, 1).contiguous().numpy(),
            "prologue": tokens.prologue.numpy(),
            "visual": tokens.visual.numpy(),
        }

    def _write(self, plan: Plan, number: int, chunk: Chunk) -> None:
        """In the writer's thread: the chunk, and the shards that it completes."""
        pictures = []
        if self.job.write != "npz":
            pictures = list(zip(self._names(number), chunk["images"], strict=True))
        if self.job.write == "png":
            chunk = {name: array for name, array in chunk.items() if name != "images"}
        self.output.add(number, chunk, pictures)
        # With several processes a shard's last chunk may be anyone's: the first process looks at the end as well.
        shard = plan.shard_of(number)
        if self.job.write != "png" and self.processes.world == 1 and self.output.complete(plan, shard):
            self._assemble(plan, shard)

    def _assemble(self, plan: Plan, shard: int) -> None:
        images = plan.shard_images(shard)
        beside = {
            "class_ids": np.array([self.job.class_ids[index] for index in images], dtype=np.int64),
            "class_names": np.array(self.pipeline.class_names, dtype=np.str_),
            "seeds": np.array([self.job.seed + index for index in images], dtype=np.int64),
        }
        self.output.assemble(plan, shard, self.pipeline.tokenizer.config.image_size, beside)

    def _finish(self, plan: Plan, state: Mapping[str, Any]) -> None:
        """Put together what is not yet, draw the grid, and state that all is done."""
        size = self._archived_size
        for shard in range(plan.shards):
            if size is not None and not self.output.has_shard(plan, shard, size):
                self._assemble(plan, shard)
        shown = range(min(plan.count, _GRID_IMAGES))
        names = [self.class_name(index) or "" for index in shown]
        save_png(self.output.folder / GRID, class_grid(self._pictures(plan, len(shown)), names))
        self.output.finish(state)

    def _pictures(self, plan: Plan, count: int) -> list[Image.Image]:
        """The first `count` images, from the files."""
        if self.job.write != "npz":
            return [open_image(self.output.folder / self.file(index)) for index in range(count)]
        out: list[Image.Image] = []
        for shard in range(plan.shards):
            if len(out) < count:
                out += read_images(self.output.folder / plan.shard_name(shard), count - len(out))
        return out

    def class_name(self, index: int) -> str | None:
        """The class name of an image; None where classes have no names."""
        return self.pipeline.class_name(self.job.class_ids[index]) if self.pipeline.class_names else None

    def file(self, index: int) -> str:
        """The PNG file of an image."""
        return file_name(index, self.class_name(index), self.job.seed + index)


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["no memory"])[0][:160]
