"""Generation for users: a tokenizer, a prior and their class names, opened from one folder."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, Unpack

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
from prologue.sampling.arguments import (
    IN_TURN,
    Images,
    InTurn,
    SamplingOptions,
    check_options,
    folder_path,
    image_tensor,
    recipes_of,
    seeds_of,
    whole_number,
)
from prologue.sampling.batches import compiled_rows, filled_up, same_passes
from prologue.sampling.compiling import Compiler, Report, worth_compiling
from prologue.sampling.decode import sample_sequences
from prologue.sampling.engine import Engine
from prologue.sampling.graphs import Pixels
from prologue.sampling.guidance import Guidance
from prologue.sampling.known import Known
from prologue.sampling.manifest import Manifest
from prologue.sampling.recipe import Recipe
from prologue.training.models import RunModels, Which
from prologue.utils.cpu_threads import cpu_threads, threads_for
from prologue.utils.device import pick_device
from prologue.utils.rng import MOST_IMAGES

_RECIPE = tuple(SamplingOptions.__annotations__)
_OPTIONS = (*_RECIPE, "count", "seed", "batch", "known")


@dataclass(frozen=True)
class Generated:
    """Images, and their tokens, seeds and classes. Entry `i` of each field belongs to image `i`."""

    images: list[Image.Image]
    tokens: TokenIds
    seeds: list[int]
    class_ids: list[int]
    """The null class is `num_classes`."""


class _Shared:
    """State that the calls of one pipeline share, one thread at a time. A copy of a pipeline has its own."""

    def __init__(self) -> None:
        self.turn = threading.RLock()
        self.engines: dict[bool, Engine] = {}
        self.decoders: dict[int, Callable[[Tensor], Tensor]] = {}
        self.said_unguided = False

    def __reduce__(self) -> tuple[type[_Shared], tuple[()]]:
        return _Shared, ()


class Pipeline:
    """A tokenizer and a prior that fit together, with their class names and default recipe.

    An image depends on its own class, seed, options and known tokens, not on the other images of the call. With `chunk`
    its bytes are also the same in every chunk of the same size. Several threads may call one pipeline: they take turns,
    chunk by chunk, and each gets the same result as it would alone.

    `compile`: compile the sampling step with `torch.compile`; `auto` compiles if the call has enough work.
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
        """Called before and after each compilation."""
        self.source: RunModels | None = None
        """The folder that the models were read from, if any."""
        self._numbers = tuple(str(index) for index in range(prior.num_classes))
        self._shared = _Shared()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in the order of their ids. Without names these are the ids themselves."""
        return self.manifest.class_names or self._numbers

    @property
    def _classes(self) -> ClassNames:
        return ClassNames(self.class_names)

    @property
    def recipe(self) -> Recipe:
        """The stored recipe, which gives the options that a call leaves out. `save_pretrained` saves it."""
        return self.manifest.recipe or Recipe()

    @recipe.setter
    def recipe(self, recipe: Recipe) -> None:
        given: Any = recipe
        if not isinstance(given, Recipe):
            raise SamplingError(f"a recipe is a Recipe, such as Recipe(temperature=0.9), not {given!r}")
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
        """Open the folder of a finished run, an exported folder, or `builtin:NAME`, which the package contains.

        `checkpoint="newest"` opens a run that is still training, with the EMA weights of its newest checkpoint.

        Raises:
            CheckpointError: a file is missing or damaged; the message names it.
            ConfigError: the device or number format is unknown or not available.
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
        """Write a folder that `from_pretrained` opens; the weights keep their number format."""
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
        self.manifest.save(folder)  # written last, because a folder without it counts as incomplete

    def class_id(self, value: ClassLike) -> int:
        """The id of a class, which is a name, an id or None. An unknown class raises a `SamplingError` with the nearest
        name."""
        return self._classes.id(value)

    def class_name(self, class_id: int) -> str:
        """The name of an id; `null` for the null class. An unknown id raises a `SamplingError`."""
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
        known: Known | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Generated:
        """Images of `classes`; by default of all classes in turn, or of the null class if the model has no classes.

        Args:
            count: number of images, which get the classes in turn; by default one for each given class.
            seed: a number `s` gives the images the seeds `s, s+1, …`; a sequence has one seed for each image.
            batch: images computed at once. It bounds the memory and does not change the result.
            known: tokens that are kept and not drawn, for each image or once for all images. Without `count`, there is
                one image for each.

        Raises:
            SamplingError: a class or option is unknown or cannot be satisfied.
        """
        tokens, seeds, ids = self._sample(classes, count, seed, batch, known, options)
        return Generated(self.decode(tokens.visual, batch), tokens, seeds, ids)

    def sample(
        self,
        classes: Classes | Literal[InTurn.IN_TURN] = IN_TURN,
        *,
        count: int | None = None,
        seed: int | Sequence[int] = 0,
        batch: int = 64,
        known: Known | None = None,
        **options: Unpack[SamplingOptions],
    ) -> TokenIds:
        """The tokens of the images that `generate` with the same arguments makes."""
        return self._sample(classes, count, seed, batch, known, options)[0]

    def _sample(
        self,
        classes: Classes | Literal[InTurn.IN_TURN],
        count: int | None,
        seed: int | Sequence[int],
        batch: int,
        known: Known | None,
        options: SamplingOptions,
    ) -> tuple[TokenIds, list[int], list[int]]:
        """Tokens, seeds and class ids of the images."""
        check_options(options, _OPTIONS)
        given: Any = known
        if not isinstance(given, Known | None):
            raise SamplingError(
                f"known tokens are Known(tokens, prologue=mask, visual=mask), not {type(given).__name__}"
            )
        if count is None and known is not None and len(known) > 1:
            count = len(known)
        ids = self.deal(classes, count)
        seeds = seeds_of(seed, len(ids))
        return self._draw(ids, seeds, options, batch, known), seeds, ids

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
        """`count` new images for each source image, with its prologue and newly drawn visual tokens.

        The results of the first source image come first. `classes` is one class for all, or one for each source image.

        Raises:
            SamplingError: the tokenizer or the prior has no prologue; or an error of `generate`.
        """
        check_options(options, _OPTIONS)
        self.check_resamples()
        count = whole_number("count", count, MOST_IMAGES)
        tokens = source if isinstance(source, TokenIds) else self.encode(source, batch)
        self.prior.layout.check(tokens)
        ids = self._classes.ids(classes)
        if len(ids) not in (1, len(tokens)):
            raise SamplingError(f"{len(tokens)} images need one class for all, or one for each, not {len(ids)}")
        each = ids * len(tokens) if len(ids) == 1 else ids
        ids = [class_id for class_id in each for _ in range(count)]
        seeds = seeds_of(seed, len(ids))
        sources = torch.arange(len(tokens), device=tokens.visual.device).repeat_interleave(count)
        drawn = self._draw(ids, seeds, options, batch, Known(tokens[sources]))
        return Generated(self.decode(drawn.visual, batch), drawn, seeds, ids)

    def check_resamples(self) -> None:
        """Raise `SamplingError` if the tokenizer or the prior has no prologue."""
        if not self.prior.layout.has_prologue:
            lacking = "prior was trained" if self.tokenizer.config.prologue_tokens else "tokenizer works"
            raise SamplingError(
                f"resample keeps an image's prologue, but this model's {lacking} without a prologue: "
                "use generate, or a model with prologue tokens"
            )

    def encode(self, images: Images, batch: int = 64) -> TokenIds:
        """Tokens of pictures. Pictures of another size are resized to cover the model's size and center-cropped.

        Raises:
            DataError: a value is not an image, or a tensor has values that are not finite or lie outside ±2.
        """
        batch = whole_number("batch", batch)
        x = image_tensor(images, self.tokenizer.config.image_size, self.manifest.background)
        parts = []
        for part in torch.split(x, batch):
            with self._turn(self.threads(len(part))):
                parts.append(self.tokenizer.encode_known(part.to(self.device)))
        return TokenIds.cat(parts)

    def decode(self, visual: Int[Tensor, "B N"], batch: int = 64) -> list[Image.Image]:
        """Pictures of visual ids; a wrong number of ids, or one outside the codebook, raises a `SamplingError`."""
        batch = whole_number("batch", batch)
        self.tokenizer.check_visual(visual)
        return to_pil(self._decode(visual.to(self.device), min(batch, len(visual)))) if len(visual) else []

    def chunk(
        self,
        class_ids: Sequence[int],
        seeds: Sequence[int],
        rows: int,
        *,
        known: Known | None = None,
        compiled: bool | None = None,
        threads: int | None = None,
        **options: Unpack[SamplingOptions],
    ) -> tuple[TokenIds, UInt8[Tensor, "n 3 H W"]]:
        """Tokens and images of at most `rows` images, computed in batches that are filled up to `rows`.

        The bytes of an image then depend on `rows` and on its own class, seed, options and known tokens, not on the
        other images of the chunk. Images are in different batches if they differ in guidance or in their known or
        guided segments.

        `compiled` and `threads` are the results of the methods `compiles` and `threads` for all chunks together. By
        default they are computed for each chunk.
        """
        check_options(options, (*_RECIPE, "known"))
        ids, rows = self._classes.ids(class_ids), whole_number("rows", rows)
        if not 0 < len(ids) <= rows:
            raise SamplingError(f"a chunk of {rows} rows takes 1…{rows} images, not {len(ids)}")
        found = seeds_of(list(seeds), len(ids))
        tokens = self._draw(ids, found, options, rows, known, True, compiled, threads)
        return tokens, self._decode(tokens.visual, rows, compiled, threads).cpu()

    def threads(self, rows: int) -> int:
        """The number of CPU threads that compute `rows` images at once; their bytes depend on it.

        The work of the decode loop decides, also for encoding and decoding, which take a small part of its time.
        """
        return threads_for(2 * rows, self.prior.config.transformer.width)

    def compiles(self, images: int, batch: int) -> bool:
        """Whether this many images are drawn with compiled steps. With `compile="auto"` this depends on the amount of
        work."""
        if self.compile != "auto":
            return bool(self.compile)
        size = sum(tensor.nbytes for tensor in self.prior.parameters()) + sum(t.nbytes for t in self.prior.buffers())
        return worth_compiling(self.prior.config, self.device, size, batch, math.ceil(images / batch))

    @contextmanager
    def _turn(self, threads: int) -> Iterator[None]:
        """Let one thread at a time call a model, because callers cannot share caches and recorded graphs."""
        with self._shared.turn, cpu_threads(threads) if self.device.type == "cpu" else nullcontext():
            yield
            if self.device.type == "cuda":  # the next thread may use another stream
                torch.cuda.current_stream(self.device).synchronize()

    def _engine(self, compiled: bool) -> Engine:
        engines = self._shared.engines
        if compiled not in engines:
            engines[compiled] = Engine(self.prior, Compiler(self.device, self.on_compile) if compiled else None)
        return engines[compiled]

    @torch.no_grad()
    def _decode(
        self, visual: Int[Tensor, "B N"], rows: int, compiled: bool | None = None, threads: int | None = None
    ) -> UInt8[Tensor, "B 3 H W"]:
        """Images of checked visual ids, on the device, in chunks of `rows`; the last chunk is filled up."""
        compiled = self.compiles(len(visual), rows) if compiled is None else compiled
        parts = []
        for part in torch.split(visual.long(), rows):
            full = part[filled_up(len(part), rows, part.device)]
            with self._turn(threads or self.threads(len(full))):
                decoder = self._decoder(rows, self._engine(compiled).compiler)
                parts.append(decoder(full)[: len(part)].clone())  # the graph's next call overwrites its result
        return torch.cat(parts)

    def _decoder(self, rows: int, compiler: Compiler | None) -> Callable[[Tensor], Tensor]:
        """A function from visual ids to uint8 images, compiled if that saves time."""
        if compiler is None or not compiler.takes(Pixels):
            return Pixels(self.tokenizer)
        compiler.begin()
        decoders = self._shared.decoders
        if rows not in decoders:
            decoders[rows] = compiler.compile(Pixels(self.tokenizer), f"decoder of {rows} images")
        return decoders[rows]

    def _draw(
        self,
        class_ids: list[int],
        seeds: list[int],
        options: SamplingOptions,
        batch: int,
        known: Known | None = None,
        fill: bool = False,
        compiled: bool | None = None,
        threads: int | None = None,
    ) -> TokenIds:
        """Tokens of every image, in chunks of `batch`. The last chunk is filled up if `fill` is set or a full chunk
        precedes it."""
        batch, count = whole_number("batch", batch), len(class_ids)
        recipes = self._recipes(class_ids, options)
        if known is not None and len(known) not in (1, count):
            raise SamplingError(f"{count} images need known tokens for one image, or for each, not for {len(known)}")
        if known is not None and len(known) < count:
            known = known[torch.zeros(count, dtype=torch.int64, device=known.visual.device)]
        compiled = self.compiles(count, batch) if compiled is None else compiled
        ids = torch.tensor(class_ids, dtype=torch.int64, device=self.device)
        out = torch.empty(count, self.prior.layout.length, dtype=torch.int64, device=self.device)
        for rows in same_passes(self.prior.layout, recipes, known, self.device):
            size = batch if fill or len(rows) > batch else compiled_rows(len(rows), batch) if compiled else len(rows)
            for part in torch.split(rows, batch):
                full = part[filled_up(len(part), size, part.device)]
                chosen, own = [recipes[row] for row in full.tolist()], [seeds[row] for row in full.tolist()]
                kept = None if known is None else known[full.to(known.visual.device)]
                with self._turn(threads or self.threads(len(full))):
                    engine = self._engine(compiled)
                    drawn = sample_sequences(self.prior, ids[full], chosen, own, kept, engine, fill)
                    out[part] = drawn[: len(part)]
        return self.prior.layout.unpack(out)

    def _recipes(self, class_ids: Sequence[int], options: SamplingOptions) -> list[Recipe]:
        """The recipe of each image. Stored guidance is left out for the null class."""
        recipes = recipes_of(self.recipe, options, len(class_ids))
        if "guidance" in options or not self.recipe.guidance.active or self.prior.null_class not in class_ids:
            return recipes
        with self._shared.turn:
            said, self._shared.said_unguided = self._shared.said_unguided, True
        if not said:
            warnings.warn(
                "the stored guidance needs a class, so it is left out for images of the null class", stacklevel=4
            )
        return [
            recipe.replace(guidance=Guidance.none()) if class_id == self.prior.null_class else recipe
            for class_id, recipe in zip(class_ids, recipes, strict=True)
        ]
