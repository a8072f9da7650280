"""Generation for users: a tokenizer, a prior and their class names, opened from one folder."""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from typing import Any, Final, Literal, Self, TypedDict, Unpack

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from prologue.builtin import locate
from prologue.device import pick_device
from prologue.errors import CheckpointError, ConfigError, DataError, SamplingError
from prologue.images import fit, to_pil
from prologue.manifest import Manifest
from prologue.nn.int8 import has_int8
from prologue.precision import check_dtype, convert
from prologue.prior import Prior
from prologue.sampling.compiling import Compiler, Report, worth_compiling
from prologue.sampling.decode import sample_sequences
from prologue.sampling.engine import Engine
from prologue.sampling.guidance import Guidance
from prologue.sampling.recipe import Recipe
from prologue.sequence import SequenceLayout, TokenIds
from prologue.tokenizer import Tokenizer, to_model_range, to_uint8
from prologue.training.models import RunModels, Which

ClassLike = str | int | None
"""A name, an id, or None for the null class."""
Classes = ClassLike | Sequence[ClassLike] | Tensor
"""One class, several, or an int64 tensor of ids."""
Images = Image.Image | Sequence[Image.Image] | Tensor
"""Pictures of any size, or model-range tensors (3, H, W) or (B, 3, H, W)."""

_NAMES_SHOWN = 20


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


class Pipeline:
    """A tokenizer and a prior that fit together, and what a folder says beside them.

    An image depends on its class, its seed and the options alone, not on the images computed with it. Its bytes are
    the same wherever it is computed in a chunk of the same size.

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
        self._prepared: bool | None = None
        self._engines: dict[bool, Engine] = {}
        self._decoders: dict[int, Callable[[Tensor], Tensor]] = {}
        self._said_unguided = False
        self.source: RunModels | None = None
        """Where the models were read from, where they were read."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in the order of their ids; the ids themselves where no names are known."""
        return self.manifest.class_names or tuple(str(index) for index in range(self.prior.num_classes))

    @property
    def recipe(self) -> Recipe:
        """The stored recipe: what options come from that a call leaves out. Set it to have it saved."""
        return self.manifest.recipe or Recipe()

    @recipe.setter
    def recipe(self, recipe: Recipe) -> None:
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
        models = path if isinstance(path, RunModels) else RunModels.open(locate(path), checkpoint)
        manifest, tokenizer, prior = models.manifest(), models.tokenizer(), models.prior()
        try:
            pipeline = cls(*convert(tokenizer, prior, dtype, where), manifest, compile)
        except CheckpointError as error:
            raise CheckpointError(f"{models.folder}: {error}") from error
        pipeline.source = models
        return pipeline

    def save_pretrained(self, path: str | Path) -> None:
        """Write a folder that `from_pretrained` opens; weights keep the number format they have now."""
        folder = Path(path)
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
        if value is None:
            return self.prior.null_class
        if isinstance(value, str):
            if value in self.class_names:
                return self.class_names.index(value)
            near = get_close_matches(value, self.class_names, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise SamplingError(f"unknown class {value!r}: {hint}{self._known_classes()}")
        try:
            index = -1 if isinstance(value, bool) else operator.index(value)
        except TypeError:
            index = -1
        if not 0 <= index <= self.prior.num_classes:
            raise SamplingError(f"unknown class {value!r}: {self._known_classes()}")
        return index

    def _known_classes(self) -> str:
        names = self.class_names
        if not names:
            return "this model has no classes; leave the class out, or give None"
        rest = f", … ({len(names)} in all)" if len(names) > _NAMES_SHOWN else ""
        return f"classes are {', '.join(names[:_NAMES_SHOWN])}{rest}, their ids 0…{len(names) - 1}, or None"

    def class_name(self, class_id: int) -> str:
        """The name of an id; `null` for the null class."""
        return "null" if class_id == self.prior.null_class else self.class_names[class_id]

    def deal(self, classes: Classes | Literal[InTurn.IN_TURN] = IN_TURN, count: int | None = None) -> list[int]:
        """The class id of each image that `generate` with these arguments makes."""
        if count is not None and count < 1:
            raise SamplingError(f"count must be at least 1, not {count}")
        if isinstance(classes, InTurn):
            ids, count = list(range(max(1, self.prior.num_classes))), count or 1
        else:
            ids = self._class_ids(classes)
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
        Raises `SamplingError` for unknown classes and for options that cannot be satisfied.
        """
        ids = self.deal(classes, count)
        seeds = _seeds(seed, len(ids))
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
        ids = self.deal(classes, count)
        return self._draw(self._ids(ids), _seeds(seed, len(ids)), None, batch, False, options)

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
        self.check_resamples()
        layout = self.prior.layout
        if count < 1:
            raise SamplingError(f"count must be at least 1, not {count}")
        tokens = source if isinstance(source, TokenIds) else self.encode(source, batch)
        layout.check(tokens)
        ids = self._class_ids(classes)
        if len(ids) not in (1, len(tokens)):
            raise SamplingError(f"{len(tokens)} images take one class, or one each, not {len(ids)}")
        each = ids * len(tokens) if len(ids) == 1 else ids
        ids = [class_id for class_id in each for _ in range(count)]
        seeds = _seeds(seed, len(ids))
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
        """Tokens of pictures of any size: those of another size than the model's are covered and center-cropped."""
        x = self._model_range(images)
        return TokenIds.cat([self.tokenizer.encode(part.to(self.device)) for part in torch.split(x, batch)])

    def decode(self, visual: Int[Tensor, "B N"], batch: int = 64) -> list[Image.Image]:
        """Pictures of visual ids."""
        return to_pil(self._decode(visual.to(self.device), min(batch, len(visual)))) if len(visual) else []

    def chunk(
        self, class_ids: Sequence[int], seeds: Sequence[int], rows: int, **options: Unpack[SamplingOptions]
    ) -> tuple[TokenIds, UInt8[Tensor, "n 3 H W"]]:
        """Tokens and images of at most `rows` images, computed as `rows` of them whatever their number.

        An image's bytes then depend on its chunk alone: the same for any number of processes, and after any kill.
        """
        tokens = self._draw(self._ids(class_ids), list(seeds), None, rows, True, options)
        return tokens, self._decode(tokens.visual, rows).cpu()

    def prepare(self, images: int, batch: int) -> bool:
        """Decide for a run of `images` whether to compile, and keep to it in later calls; returns the decision."""
        self._prepared = None
        self._prepared = self._compiles(images, batch)
        return self._prepared

    def _compiles(self, images: int, batch: int) -> bool:
        """Whether this much work is to be compiled: what was asked for, what was prepared, or what pays."""
        if self.compile != "auto":
            return bool(self.compile)
        if self._prepared is not None:
            return self._prepared
        size = sum(tensor.nbytes for tensor in self.prior.parameters()) + sum(t.nbytes for t in self.prior.buffers())
        return worth_compiling(self.prior.config, self.device, size, batch, math.ceil(images / batch))

    def _ids(self, class_ids: Sequence[int]) -> Int[Tensor, " B"]:
        return torch.tensor(list(class_ids), dtype=torch.int64, device=self.device)

    def _engine(self, compiled: bool) -> Engine:
        if compiled not in self._engines:
            compiler = Compiler(self.device, self.on_compile) if compiled else None
            self._engines[compiled] = Engine(self.prior, compiler)
        return self._engines[compiled]

    def _decode(self, visual: Int[Tensor, "B N"], rows: int) -> UInt8[Tensor, "B 3 H W"]:
        """Images of visual ids in chunks of `rows`, the last one filled up; uint8 is made on the device."""
        decoder = self._decoder(rows, self._compiles(len(visual), rows))
        parts = []
        for part in torch.split(visual, rows):
            full = part[_filled(len(part), rows, part.device)]
            parts.append(decoder(full)[: len(part)].clone())
        return torch.cat(parts)

    def _decoder(self, rows: int, compiled: bool) -> Callable[[Tensor], Tensor]:
        """Visual ids → uint8 images; compiled on a GPU alone, since on a CPU its products take nearly all the time."""

        def decode(ids: Int[Tensor, "B N"]) -> UInt8[Tensor, "B 3 H W"]:
            return to_uint8(self.tokenizer.decode(ids))

        compiler = self._engine(compiled).compiler
        if compiler is None or self.device.type != "cuda":
            return decode
        if rows not in self._decoders:
            self._decoders[rows] = compiler.compile(decode, f"decoder of {rows} images")
        return self._decoders[rows]

    def _model_range(self, images: Images) -> Float[Tensor, "B 3 H W"]:
        size = self.tokenizer.config.image_size
        if isinstance(images, Tensor):
            x = images[None] if images.ndim == 3 else images
            if x.ndim != 4 or x.shape[1] != 3 or not x.is_floating_point():
                raise DataError(
                    f"an image tensor is (3, H, W) or (B, 3, H, W), floating point in [-1, 1], "
                    f"not {tuple(images.shape)} of {images.dtype}"
                )
            if tuple(x.shape[2:]) == size:
                return x
            images = to_pil(to_uint8(x))
        pictures = [images] if isinstance(images, Image.Image | str | Path) else list(images)
        if not pictures:
            raise DataError("no image was given")
        for picture in pictures:
            if not isinstance(picture, Image.Image):
                raise DataError(
                    f"an image is a PIL image or a tensor, not {type(picture).__name__}: open files with PIL.Image.open"
                )
        background = self.manifest.background
        return to_model_range(torch.stack([fit(picture, size, background) for picture in pictures]))

    def _class_ids(self, classes: Classes) -> list[int]:
        if isinstance(classes, Tensor):
            classes = classes.flatten().tolist()
        if classes is None or isinstance(classes, str) or not isinstance(classes, Sequence):
            return [self.class_id(classes)]
        return [self.class_id(value) for value in classes]

    def _draw(
        self,
        class_ids: Int[Tensor, " B"],
        seeds: list[int],
        given: Tensor | None,
        batch: int,
        fill: bool,
        options: SamplingOptions,
    ) -> TokenIds:
        """Tokens of every image, in chunks of `batch`; with `fill`, or behind a full chunk, the last is filled up."""
        if batch < 1:
            raise SamplingError(f"batch must be at least 1, not {batch}")
        compiled = self._compiles(len(class_ids), batch)
        engine = self._engine(compiled)
        out = torch.empty(len(class_ids), self.prior.layout.length, dtype=torch.int64, device=self.device)
        for rows, recipe in self._groups(class_ids, options):
            # Compiled graphs are kept for few sizes; eager steps take what there is.
            size = batch if fill or len(rows) > batch else _bucket(len(rows), batch) if compiled else len(rows)
            for part in torch.split(rows, batch):
                full = part[_filled(len(part), size, part.device)]
                chosen = [seeds[row] for row in full.tolist()]
                prefix = None if given is None else given[full]
                drawn = sample_sequences(self.prior, class_ids[full], recipe, chosen, prefix, engine)
                out[part] = drawn[: len(part)]
        return self.prior.layout.unpack(out)

    def _groups(self, class_ids: Int[Tensor, " B"], options: SamplingOptions) -> list[tuple[Tensor, Recipe]]:
        """Image numbers and the recipe they share: stored guidance is left out for the null class, and only there."""
        recipe = self.recipe.replace(**options)
        null = class_ids == self.prior.null_class
        if not recipe.guidance.active or "guidance" in options or not bool(null.any()):
            return [(torch.arange(len(class_ids), device=self.device), recipe)]
        if not self._said_unguided:
            self._said_unguided = True
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


def _seeds(seed: int | Sequence[int], count: int) -> list[int]:
    """One seed for each image; of a single one, it and those that follow."""
    given: Any = seed
    if isinstance(given, Tensor | np.ndarray):
        given = given.tolist()
    try:
        if not isinstance(given, Sequence):
            return list(range(operator.index(given), operator.index(given) + count))
        seeds = [operator.index(value) for value in given]
    except TypeError as error:
        raise SamplingError(f"a seed is a whole number, or one for each image, not {seed!r}") from error
    if len(seeds) != count:
        raise SamplingError(f"{count} images need one seed, or one each, not {len(seeds)}")
    return seeds
