"""Generation for users: a tokenizer, a prior and their class names, opened from one folder."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Final, Literal, Self, TypedDict, Unpack

import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor

from prologue.builtin import locate
from prologue.data.class_names import Classes, ClassLike, ClassNames
from prologue.data.pictures import to_pil
from prologue.errors import CheckpointError, ConfigError, SamplingError
from prologue.models.int8 import has_int8
from prologue.models.precision import check_dtype, convert
from prologue.models.prior import Prior
from prologue.models.sequence import SequenceLayout, TokenIds
from prologue.models.tokenizer import Tokenizer
from prologue.sampling.arguments import Images, check_options, folder_path, image_tensor, seeds_of, whole_number
from prologue.sampling.compiling import Compiler, Report, worth_compiling
from prologue.sampling.decode import sample_sequences
from prologue.sampling.engine import Engine
from prologue.sampling.graphs import Pixels
from prologue.sampling.guidance import Guidance
from prologue.sampling.manifest import Manifest
from prologue.sampling.recipe import Recipe, check_recipe
from prologue.training.models import RunModels, Which
from prologue.utils.cpu_threads import cpu_threads, threads_for
from prologue.utils.device import pick_device
from prologue.utils.rng import MOST_IMAGES

_RECIPE = tuple(field.name for field in fields(Recipe))
_OPTIONS = (*_RECIPE, "count", "seed", "batch")


class InTurn(Enum):
    """Says that no class was given, which is not the same as None, the null class."""

    IN_TURN = "the classes in turn"


IN_TURN: Final = InTurn.IN_TURN


class SamplingOptions(TypedDict, total=False):
    """How tokens are drawn; what is left out comes from the stored recipe.

    `prologue_temperature=None` means `temperature`; `top_k` and `top_p` None keep all ids.
    """

    guidance: Guidance
    temperature: float
    prologue_temperature: float | None
    top_k: int | None
    top_p: float | None


@dataclass(frozen=True)
class Generated:
    """Images with what they were made from; entry `i` of each belongs to image `i`."""

    images: list[Image.Image]
    tokens: TokenIds
    seeds: list[int]
    class_ids: list[int]
    """The null class is `num_classes`."""


class _Shared:
    """What the calls of a pipeline share. One thread at a time uses it; a copy of a pipeline begins with its own."""

    def __init__(self) -> None:
        self.turn = threading.RLock()
        self.engines: dict[bool, Engine] = {}
        self.decoders: dict[int, Callable[[Tensor], Tensor]] = {}
        self.said_unguided = False

    def __reduce__(self) -> tuple[type[_Shared], tuple[()]]:
        return _Shared, ()


class Pipeline:
    """A tokenizer and a prior that fit together, and what a folder says beside them.

    An image depends on its class, its seed and the options alone, not on the images computed with it. Its bytes are
    the same wherever it is computed in a chunk of the same size. Several threads may call one pipeline: they take
    turns, chunk by chunk, and get what each would have got alone.

    `compile`: run the sampling step through `torch.compile`; `auto` does where a call has enough work for it to pay.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prior: Prior,
        manifest: Manifest | None = None,
        compile: bool | Literal["auto"] = "auto",
    ) -> None:
        if compile not in (True, False, "auto"):
            raise ConfigError(f"compile must be True, False or 'auto', not {compile!r}")
        manifest = manifest if manifest is not None else Manifest()
        expected = SequenceLayout.of(tokenizer.config, prologue=prior.layout.has_prologue).config
        if prior.config.layout != expected:
            raise CheckpointError(
                f"the prior's sequences ({prior.config.layout}) are not those of the tokenizer ({expected}): "
                "they were not trained together"
            )
        if manifest.class_names and len(manifest.class_names) != prior.num_classes:
            raise CheckpointError(
                f"{len(manifest.class_names)} class names do not fit a prior of {prior.num_classes} classes"
            )
        self.tokenizer = tokenizer.eval()
        self.prior = prior.eval()
        self.manifest = manifest
        self.compile = compile
        self.on_compile: Report | None = None
        """Told what is being compiled, and how long it took."""
        self.source: RunModels | None = None
        """Where the models were read from, where they were read."""
        self._numbers = tuple(str(index) for index in range(prior.num_classes))
        self._shared = _Shared()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in the order of their ids; the ids themselves where no names are known."""
        return self.manifest.class_names or self._numbers

    @property
    def _classes(self) -> ClassNames:
        return ClassNames(self.class_names)

    @property
    def recipe(self) -> Recipe:
        """The stored recipe: what options come from that a call leaves out. Set it to have it saved."""
        return self.manifest.recipe or Recipe()

    @recipe.setter
    def recipe(self, recipe: Recipe) -> None:
        check_recipe(recipe)
        self.manifest = self.manifest.replace(recipe=recipe)

    @property
    def device(self) -> torch.device:
        return self.prior.token_embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.prior.token_embedding.weight.dtype

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path | RunModels,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        compile: bool | Literal["auto"] = "auto",
        checkpoint: Which = "finished",
    ) -> Self:
        """Open a finished run's folder, an exported one, or `builtin:NAME`, which comes with the package.

        `checkpoint="newest"` opens a run that is still training, with the EMA of its newest checkpoint.

        Anything missing or damaged in it is a `CheckpointError` naming the file; a device or number format that is
        not there is a `ConfigError`.
        """
        where = pick_device(device)
        check_dtype(dtype, where)
        models = path if isinstance(path, RunModels) else RunModels.open(locate(folder_path(path)), checkpoint)
        manifest, tokenizer, prior = models.manifest(), models.tokenizer(), models.prior()
        try:
            pipeline = cls(*convert(tokenizer, prior, dtype, where), manifest, compile)
        except CheckpointError as error:
            raise CheckpointError(f"{models.folder}: {error}") from error
        pipeline.source = models
        return pipeline

    def save_pretrained(self, path: str | Path) -> None:
        """Write a folder that `from_pretrained` opens; weights keep the number format they have now."""
        folder = Path(folder_path(path))
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"{folder} is a file: give a folder")
        if has_int8(self.prior):
            raise CheckpointError(
                "int8 weights are made when a pipeline is opened and are not saved: "
                "open it with dtype='fp32' or 'bf16' and save that"
            )
        self.tokenizer.save_pretrained(folder / "tokenizer")
        self.prior.save_pretrained(folder / "prior")
        self.manifest.save(folder)  # last: without it the folder does not pass for a whole one

    def class_id(self, value: ClassLike) -> int:
        """The id of a name, an id or None. An unknown one is a `SamplingError` with the nearest name and the list."""
        return self._classes.id(value)

    def class_name(self, class_id: int) -> str:
        """The name of an id; `null` for the null class. An unknown id is a `SamplingError`."""
        return self._classes.name(class_id)

    def deal(self, classes: Classes | Literal[InTurn.IN_TURN] = IN_TURN, count: int | None = None) -> list[int]:
        """The class id of each image that `generate` with these arguments makes."""
        count = None if count is None else whole_number("count", count, MOST_IMAGES)
        if isinstance(classes, InTurn):
            ids, count = list(range(max(1, self.prior.num_classes))), count or 1
        else:
            ids = self._classes.ids(classes)
        if not ids:
            raise SamplingError("the list of classes is empty: name at least one, or leave it out")
        return [ids[index % len(ids)] for index in range(len(ids) if count is None else count)]

    def generate(
        self,
        classes: Classes | Literal[InTurn.IN_TURN] = IN_TURN,
        *,
        count: int | None = None,
        seed: int | Sequence[int] = 0,
        batch: int = 64,
        **options: Unpack[SamplingOptions],
    ) -> Generated:
        """Images of `classes`; without them, of all classes in turn (of the null class where there are none).

        `count` images in all are dealt to the classes in turn; left out, one for each class given. `seed` `s` means
        `s, s+1, …` for the images in order; a list gives one for each. `batch` bounds the memory, not the result.
        Raises `SamplingError` for unknown classes, and for options that are unknown or cannot be satisfied.
        """
        check_options(options, _OPTIONS)
        ids = self.deal(classes, count)
        seeds = seeds_of(seed, len(ids))
        tokens = self._draw(self._ids(ids), seeds, None, batch, False, options)
        return Generated(self.decode(tokens.visual, batch), tokens, seeds, ids)

    def sample(
        self,
        classes: Classes | Literal[InTurn.IN_TURN] = IN_TURN,
        *,
        count: int | None = None,
        seed: int | Sequence[int] = 0,
        batch: int = 64,
        **options: Unpack[SamplingOptions],
    ) -> TokenIds:
        """The tokens that `generate` with the same arguments makes its images from."""
        check_options(options, _OPTIONS)
        ids = self.deal(classes, count)
        return self._draw(self._ids(ids), seeds_of(seed, len(ids)), None, batch, False, options)

    def resample(
        self,
        source: TokenIds | Images,
        classes: Classes = None,
        count: int = 4,
        *,
        seed: int | Sequence[int] = 0,
        batch: int = 64,
        **options: Unpack[SamplingOptions],
    ) -> Generated:
        """`count` new images for each of the source's, with its prologue and newly drawn visual tokens.

        Results of the first source image come first. `classes` is one class for all, or one for each source image.
        Raises `SamplingError` where tokenizer or prior have no prologue.
        """
        check_options(options, _OPTIONS)
        self.check_resamples()
        layout = self.prior.layout
        count = whole_number("count", count, MOST_IMAGES)
        tokens = source if isinstance(source, TokenIds) else self.encode(source, batch)
        layout.check(tokens)
        ids = self._classes.ids(classes)
        if len(ids) not in (1, len(tokens)):
            raise SamplingError(f"{len(tokens)} images take one class, or one each, not {len(ids)}")
        each = ids * len(tokens) if len(ids) == 1 else ids
        ids = [class_id for class_id in each for _ in range(count)]
        seeds = seeds_of(seed, len(ids))
        given = layout.pack_prologue(tokens.prologue.repeat_interleave(count, 0).to(self.device))
        drawn = self._draw(self._ids(ids), seeds, given, batch, False, options)
        return Generated(self.decode(drawn.visual, batch), drawn, seeds, ids)

    def check_resamples(self) -> None:
        """Raise `SamplingError` where there is no prologue to keep."""
        if not self.prior.layout.has_prologue:
            lacking = "prior was trained" if self.tokenizer.config.prologue_tokens else "tokenizer works"
            raise SamplingError(
                f"resample keeps an image's prologue, and this model's {lacking} without one: "
                "use generate, or a model with prologue tokens"
            )

    def encode(self, images: Images, batch: int = 64) -> TokenIds:
        """Tokens of pictures of any size: those of another size than the model's are covered and center-cropped.

        What is no image, and tensors that are not finite or lie beyond ±2, are a `DataError`.
        """
        batch = whole_number("batch", batch)
        x = image_tensor(images, self.tokenizer.config.image_size, self.manifest.background)
        parts = []
        for part in torch.split(x, batch):
            with self._turn(self.threads(len(part))):
                parts.append(self.tokenizer.encode_known(part.to(self.device)))
        return TokenIds.cat(parts)

    def decode(self, visual: Int[Tensor, "B N"], batch: int = 64) -> list[Image.Image]:
        """Pictures of visual ids; ids of another number or from outside the codebook are a `SamplingError`."""
        batch = whole_number("batch", batch)
        self.tokenizer.check_visual(visual)
        return to_pil(self._decode(visual.to(self.device), min(batch, len(visual)))) if len(visual) else []

    def chunk(
        self,
        class_ids: Sequence[int],
        seeds: Sequence[int],
        rows: int,
        *,
        compiled: bool | None = None,
        threads: int | None = None,
        **options: Unpack[SamplingOptions],
    ) -> tuple[TokenIds, UInt8[Tensor, "n 3 H W"]]:
        """Tokens and images of at most `rows` images, computed as `rows` of them whatever their number.

        An image's bytes then depend on its chunk alone: the same for any number of processes, and after any kill.
        `compiled` is what `compiles` said of all the chunks together, `threads` what `threads` says of `rows`; left
        out, each chunk decides for itself.
        """
        check_options(options, _RECIPE)
        ids, rows = self._classes.ids(class_ids), whole_number("rows", rows)
        if not 0 < len(ids) <= rows:
            raise SamplingError(f"a chunk of {rows} rows takes 1…{rows} images, not {len(ids)}")
        found = seeds_of(list(seeds), len(ids))
        tokens = self._draw(self._ids(ids), found, None, rows, True, options, compiled, threads)
        return tokens, self._decode(tokens.visual, rows, compiled, threads).cpu()

    def threads(self, rows: int) -> int:
        """How many CPU threads compute so many images at once: what their bytes depend on beside the build.

        The decode loop decides, also for encoding and decoding, which take a small part of its time.
        """
        return threads_for(2 * rows, self.prior.config.transformer.width)

    def compiles(self, images: int, batch: int) -> bool:
        """Whether so many images are drawn with compiled steps: as the pipeline was opened, else where it pays."""
        if self.compile != "auto":
            return bool(self.compile)
        size = sum(tensor.nbytes for tensor in self.prior.parameters()) + sum(t.nbytes for t in self.prior.buffers())
        return worth_compiling(self.prior.config, self.device, size, batch, math.ceil(images / batch))

    @contextmanager
    def _turn(self, threads: int) -> Iterator[None]:
        """Everything that runs a model goes through here: caches and recorded graphs serve one caller at a time."""
        with self._shared.turn, cpu_threads(threads) if self.device.type == "cpu" else nullcontext():
            yield
            if self.device.type == "cuda":  # the next thread may queue its work on another stream
                torch.cuda.current_stream(self.device).synchronize()

    def _ids(self, class_ids: Sequence[int]) -> Int[Tensor, " B"]:
        return torch.tensor(list(class_ids), dtype=torch.int64, device=self.device)

    def _engine(self, compiled: bool) -> Engine:
        engines = self._shared.engines
        if compiled not in engines:
            engines[compiled] = Engine(self.prior, Compiler(self.device, self.on_compile) if compiled else None)
        return engines[compiled]

    @torch.no_grad()
    def _decode(
        self, visual: Int[Tensor, "B N"], rows: int, compiled: bool | None = None, threads: int | None = None
    ) -> UInt8[Tensor, "B 3 H W"]:
        """Images of visual ids, known to be right, in chunks of `rows`, the last one filled up; on the device."""
        compiled = self.compiles(len(visual), rows) if compiled is None else compiled
        parts = []
        for part in torch.split(visual.long(), rows):
            full = part[_filled(len(part), rows, part.device)]
            with self._turn(threads or self.threads(len(full))):
                decoder = self._decoder(rows, self._engine(compiled).compiler)
                parts.append(decoder(full)[: len(part)].clone())  # what a graph returns, its next call overwrites
        return torch.cat(parts)

    def _decoder(self, rows: int, compiler: Compiler | None) -> Callable[[Tensor], Tensor]:
        """Visual ids → uint8 images, compiled where that is of use."""
        if compiler is None or not compiler.takes(Pixels):
            return Pixels(self.tokenizer)
        compiler.begin()
        decoders = self._shared.decoders
        if rows not in decoders:
            decoders[rows] = compiler.compile(Pixels(self.tokenizer), f"decoder of {rows} images")
        return decoders[rows]

    def _draw(
        self,
        class_ids: Int[Tensor, " B"],
        seeds: list[int],
        given: Tensor | None,
        batch: int,
        fill: bool,
        options: SamplingOptions,
        compiled: bool | None = None,
        threads: int | None = None,
    ) -> TokenIds:
        """Tokens of every image, in chunks of `batch`; with `fill`, or behind a full chunk, the last is filled up."""
        batch = whole_number("batch", batch)
        compiled = self.compiles(len(class_ids), batch) if compiled is None else compiled
        out = torch.empty(len(class_ids), self.prior.layout.length, dtype=torch.int64, device=self.device)
        for rows, recipe in self._groups(class_ids, options):
            # Compiled graphs are kept for few sizes; eager steps take what there is.
            size = batch if fill or len(rows) > batch else _bucket(len(rows), batch) if compiled else len(rows)
            for part in torch.split(rows, batch):
                full = part[_filled(len(part), size, part.device)]
                chosen = [seeds[row] for row in full.tolist()]
                prefix = None if given is None else given[full]
                with self._turn(threads or self.threads(len(full))):
                    engine = self._engine(compiled)
                    drawn = sample_sequences(self.prior, class_ids[full], recipe, chosen, prefix, engine)
                    out[part] = drawn[: len(part)]
        return self.prior.layout.unpack(out)

    def _groups(self, class_ids: Int[Tensor, " B"], options: SamplingOptions) -> list[tuple[Tensor, Recipe]]:
        """Image numbers and the recipe they share: stored guidance is left out for the null class, and only there."""
        recipe = self.recipe.replace(**options)
        null = class_ids == self.prior.null_class
        if not recipe.guidance.active or "guidance" in options or not bool(null.any()):
            return [(torch.arange(len(class_ids), device=self.device), recipe)]
        with self._shared.turn:
            said, self._shared.said_unguided = self._shared.said_unguided, True
        if not said:
            warnings.warn(
                "the stored guidance leans on a class, so it is left out for images of the null class", stacklevel=4
            )
        groups = [(~null, recipe), (null, recipe.replace(guidance=Guidance.none()))]
        return [(mask.nonzero()[:, 0], chosen) for mask, chosen in groups if bool(mask.any())]


def _filled(count: int, rows: int, device: torch.device) -> Int[Tensor, " rows"]:
    """The numbers below `count`, the last of them repeated up to `rows`."""
    return torch.arange(rows, device=device).clamp_max(count - 1)


def _bucket(count: int, most: int) -> int:
    """The next power of two, but no more than `most`."""
    return min(most, 1 << (count - 1).bit_length())
