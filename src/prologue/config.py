"""Frozen configuration dataclasses: validated once at construction, saved as JSON, read back strictly.

This module imports neither torch nor any other heavy package, so that the command line can use it at once.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from prologue.errors import ConfigError

Variant = Literal["2d", "1d", "prologue", "prologue-post"]
Perceptual = Literal["none", "lpips", "convnext", "lite0"]
Precision = Literal["auto", "fp32", "bf16"]

_VARIANTS = typing.get_args(Variant)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _positive(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        _require(value > 0, f"{type(owner).__name__}.{name} must be positive, not {value}")


def _not_negative(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        _require(value >= 0, f"{type(owner).__name__}.{name} must not be negative, is {value}")


def _fraction(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        _require(0 <= value <= 1, f"{type(owner).__name__}.{name} must lie in [0, 1], not {value}")


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of one stack of pre-norm blocks (METHOD §3)."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: str = "8/3"
    """Feed-forward hidden size over width, as a fraction: round(width · mlp_ratio)."""
    rope_axes: tuple[int, int, int] | None = None
    """Rotary dims of each of the three axes; None derives them from the head size (published ones at 64)."""

    def __post_init__(self) -> None:
        _positive(self, "width", "depth", "heads")
        _require(
            self.width % self.heads == 0,
            f"width {self.width} is not divisible by heads {self.heads}: choose heads among its divisors",
        )
        _require(self.head_dim % 2 == 0, f"head size {self.head_dim} (width/heads) must be even for rotary pairs")
        try:
            ratio = Fraction(self.mlp_ratio)
        except (ValueError, ZeroDivisionError) as error:
            raise ConfigError(f"mlp_ratio must be a fraction such as '8/3', not {self.mlp_ratio!r}") from error
        _require(ratio > 0, f"mlp_ratio must be positive, not {self.mlp_ratio!r}")
        if self.rope_axes is not None:
            _require(
                len(self.rope_axes) == 3 and all(axis >= 0 and axis % 2 == 0 for axis in self.rope_axes),
                f"rope_axes must be three even sizes, not {self.rope_axes}",
            )
            _require(
                sum(self.rope_axes) == self.head_dim,
                f"rope_axes {self.rope_axes} must sum to the head size {self.head_dim}",
            )

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def hidden(self) -> int:
        return round(self.width * Fraction(self.mlp_ratio))


def _spatial_rope_dims(head_dim: int) -> int:
    """Rotary dims of a row or column axis: 20 of 64, scaled down to an even number."""
    return head_dim * 20 // 128 * 2


def tokenizer_rope_axes(config: TransformerConfig) -> tuple[int, int, int]:
    """(row, column, index) rotary dims of an encoder or decoder (METHOD §3: 20, 20, 24 at head size 64)."""
    spatial = _spatial_rope_dims(config.head_dim)
    return config.rope_axes or (spatial, spatial, config.head_dim - 2 * spatial)


def prior_rope_axes(config: TransformerConfig) -> tuple[int, int, int]:
    """(index, row, column) rotary dims of a prior (METHOD §3: 24, 20, 20 at head size 64)."""
    spatial = _spatial_rope_dims(config.head_dim)
    return config.rope_axes or (config.head_dim - 2 * spatial, spatial, spatial)


@dataclass(frozen=True)
class TokenizerConfig:
    """One of the four tokenizer variants (METHOD §4) on one image size."""

    variant: Variant = "prologue"
    image_size: tuple[int, int] = (256, 256)
    """Image rows and columns, in pixels."""
    patch_size: int = 16
    encoder: TransformerConfig = field(default_factory=TransformerConfig)
    decoder: TransformerConfig = field(default_factory=TransformerConfig)
    prologue_encoder: TransformerConfig | None = None
    """The second encoder of `prologue-post`; None otherwise."""
    code_dim: int = 14
    codebook_size: int = 16384
    prologue_tokens: int = 16
    prologue_codebook_size: int = 1024
    prologue_temperature: float = 0.1
    """τ of the prologue quantizer's softmax; not a sampling temperature."""

    def __post_init__(self) -> None:
        _require(
            self.variant in _VARIANTS, f"unknown tokenizer variant {self.variant!r}: choose one of {list(_VARIANTS)}"
        )
        _positive(self, "patch_size", "code_dim", "codebook_size")
        _require(
            len(self.image_size) == 2 and all(size > 0 for size in self.image_size),
            f"image_size must be two positive numbers (rows, columns), not {self.image_size}",
        )
        for axis, size in zip(("rows", "columns"), self.image_size, strict=True):
            _require(
                size % self.patch_size == 0,
                f"image {axis} {size} is not divisible by the patch size {self.patch_size}: "
                f"choose {max(1, round(size / self.patch_size)) * self.patch_size} or another patch",
            )
        if self.variant in ("prologue", "prologue-post"):
            _positive(self, "prologue_tokens", "prologue_codebook_size", "prologue_temperature")
        else:
            _require(self.prologue_tokens == 0, f"variant {self.variant!r} has no prologue: set prologue_tokens to 0")
        _require(
            (self.prologue_encoder is not None) == (self.variant == "prologue-post"),
            "prologue_encoder belongs to the variant 'prologue-post', and only to it",
        )

    @property
    def grid(self) -> tuple[int, int]:
        """Visual tokens per column and per row: (rows, columns)."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def visual_tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def patch_dim(self) -> int:
        return self.patch_size * self.patch_size * 3


@dataclass(frozen=True)
class LayoutConfig:
    """Counts that fix what each position of a prior's sequence means (METHOD §6)."""

    prologue_tokens: int
    prologue_codebook_size: int
    visual_tokens: int
    visual_codebook_size: int

    def __post_init__(self) -> None:
        _positive(self, "visual_tokens", "visual_codebook_size")
        _not_negative(self, "prologue_tokens", "prologue_codebook_size")
        _require(
            (self.prologue_tokens == 0) == (self.prologue_codebook_size == 0),
            "prologue_tokens and prologue_codebook_size must be zero together",
        )


@dataclass(frozen=True)
class PriorOptions:
    """Sizes of a prior as a preset chooses them; the data and the tokenizer supply the rest."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: str = "11/4"
    rope_axes: tuple[int, int, int] | None = None
    tied: bool = False
    """Use the token embedding as the head."""
    dropout: float = 0.0
    """Dropout on embeddings and residual branches while training."""
    prologue: bool = True
    """False trains a P = 0 prior on the visual ids alone."""
    embedding_std: float = 0.02
    """Spread of the token and class embeddings at the start."""

    def __post_init__(self) -> None:
        _require(0 <= self.dropout < 1, f"PriorOptions.dropout must lie in [0, 1), not {self.dropout}")
        _positive(self, "embedding_std")
        _ = self.transformer

    @property
    def transformer(self) -> TransformerConfig:
        return TransformerConfig(self.width, self.depth, self.heads, self.mlp_ratio, self.rope_axes)

    def sized(self, layout: LayoutConfig, num_classes: int) -> PriorConfig:
        """The prior of these options for a tokenizer's layout and the classes of the data."""
        return PriorConfig(layout, num_classes, self.transformer, self.tied, self.dropout, self.embedding_std)


@dataclass(frozen=True)
class PriorConfig:
    """Everything that fixes a prior's tensors; saved beside its weights."""

    layout: LayoutConfig
    num_classes: int
    transformer: TransformerConfig
    tied: bool = False
    dropout: float = 0.0
    embedding_std: float = 0.02

    def __post_init__(self) -> None:
        _not_negative(self, "num_classes")
        _positive(self, "embedding_std")


@dataclass(frozen=True)
class DataConfig:
    """How images are read, cropped and split. Where they are is the `--data` option."""

    background: tuple[int, int, int] = (255, 255, 255)
    """RGB colour under transparent pixels."""
    crop: Literal["random", "center"] = "random"
    """Training crop (METHOD §2)."""
    flip: bool = True
    """Horizontal flips in training and in ten-crop; off where orientation means something."""
    token_views: Literal["ten-crop", "center"] = "ten-crop"
    """Views of each image that the token store holds."""
    validation_fraction: float = 0.1
    """Part of each class of a folder or zip that is held out."""
    skip_damaged: bool = False
    """Skip (and list) files that cannot be decoded instead of stopping."""
    shapes_images: int = 20000
    """Training scenes of the embedded `shapes`."""
    shapes_validation: int = 2000
    """Validation scenes of the embedded `shapes`."""
    cache_mb: int = 1024
    """Decoded training images are kept in memory while they fit in this many MiB."""

    def __post_init__(self) -> None:
        _require(
            len(self.background) == 3 and all(0 <= value <= 255 for value in self.background),
            f"data.background must be three numbers in 0..255, not {self.background}",
        )
        _require(self.crop in ("random", "center"), f"data.crop must be random or center, not {self.crop!r}")
        _require(
            self.token_views in ("ten-crop", "center"),
            f"data.token_views must be ten-crop or center, not {self.token_views!r}",
        )
        _require(
            0 <= self.validation_fraction < 1,
            f"data.validation_fraction must lie in [0, 1), not {self.validation_fraction}",
        )
        _positive(self, "shapes_images", "shapes_validation")
        _not_negative(self, "cache_mb")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule, counted in updates of its network: warm-up, hold, linear decay (METHOD §7)."""

    lr: float = 1e-4
    final_lr: float = 1e-5
    warmup: int = 20000
    hold: int = 100000
    """Updates at the peak after the warm-up, before the linear decay to `final_lr`."""
    betas: tuple[float, float] = (0.0, 0.99)
    weight_decay: float = 0.0
    clip: float = 0.0
    """Largest gradient norm; 0 leaves gradients as they are."""

    def __post_init__(self) -> None:
        _positive(self, "lr")
        _not_negative(self, "final_lr", "warmup", "hold", "weight_decay", "clip")
        _require(all(0 <= beta < 1 for beta in self.betas), f"betas must lie in [0, 1), not {self.betas}")


@dataclass(frozen=True)
class TokenizerTraining:
    """Stage 1 (METHOD §7). A step is one batch: an autoencoder update, then a prior and discriminator update."""

    steps: int = 1_000_000
    batch: int = 256
    autoencoder: OptimizerConfig = field(default_factory=OptimizerConfig)
    prior: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(betas=(0.9, 0.99), weight_decay=0.03))
    discriminator: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(weight_decay=1e-4))
    prior_model: PriorOptions = field(default_factory=lambda: PriorOptions(width=512, depth=7, heads=8))
    ema_half_life: float = 1000
    prior_ema_half_life: float = 2500
    l1: float = 1.0
    l2: float = 0.0
    perceptual: Perceptual = "lpips"
    perceptual_weight: float = 1.0
    perceptual_path: str | None = None
    """Safetensors file with the weights of `lpips` or `convnext`."""
    perceptual_start: int = 0
    perceptual_ramp: int = 0
    gan: float = 0.1
    gan_start: int = 0
    gan_ramp: int = 0
    """Updates over which the generator's term rises from 0 after `gan_start`."""
    gan_channels: int = 64
    gan_augment: bool = False
    """Differentiable augmentation (colour, translation, cutout) of what the discriminator sees."""
    lecam: float = 0.001
    r1: float = 0.01
    r1_every: int = 25
    vq: float = 1.0
    ce_prologue: float = 3.0
    ce_visual: float = 3.0
    ce_start: int = 0
    ce_ramp: int = 0
    visual_dropout: float = 0.5
    visual_dropout_start: int = 0
    visual_dropout_ramp: int = 0
    """Steps over which the chance rises from 0 after `visual_dropout_start`."""
    shared_prior_pass: bool = False
    """Take the prior's own gradients from the autoencoder step's pass: the same update for half the passes through the
    prior, with one draw of visual dropout for both. Needs equal CE weights and a prior_model without dropout."""
    label_drop: float = 1.0
    """Chance that the prior sees the null class; 1 in two-stage training, 0.1 in one-stage."""
    one_stage: bool = False
    """Ship this stage's prior; there is no second stage."""
    revive_every: int = 0
    """Steps between re-seedings of unused visual codes from encoder outputs; 0 turns it off."""
    revive_until: float = 0.8
    """Part of the stage after which codes are left alone."""
    prologue_kmeans: tuple[int, ...] = ()
    """Steps at which the prologue codebook is set to k-means centres of the encoder's prologue outputs."""

    def __post_init__(self) -> None:
        _positive(self, "steps", "batch", "ema_half_life", "prior_ema_half_life", "gan_channels", "r1_every")
        _not_negative(
            self, "l1", "l2", "perceptual_weight", "perceptual_start", "perceptual_ramp", "gan", "gan_start",
            "gan_ramp", "lecam", "r1", "vq", "ce_prologue", "ce_visual", "ce_start", "ce_ramp", "visual_dropout_start",
            "visual_dropout_ramp", "revive_every",
        )  # fmt: skip
        _fraction(self, "visual_dropout", "label_drop", "revive_until")
        _require(
            all(step >= 0 for step in self.prologue_kmeans),
            f"prologue_kmeans are steps, 0 or later, not {self.prologue_kmeans}",
        )
        _require(
            not self.shared_prior_pass or (self.ce_prologue == self.ce_visual > 0 and self.prior_model.dropout == 0),
            "shared_prior_pass needs ce_prologue equal to ce_visual and above 0, and a prior_model without dropout",
        )
        _require(
            self.perceptual in typing.get_args(Perceptual),
            f"unknown perceptual term {self.perceptual!r}: choose one of {list(typing.get_args(Perceptual))}",
        )


@dataclass(frozen=True)
class PriorTraining:
    """Stage 2 (METHOD §8)."""

    steps: int = 500_000
    batch: int = 2048
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            lr=4e-4, warmup=62_500, hold=0, betas=(0.9, 0.96), weight_decay=0.03, clip=1.0
        )
    )
    ema_half_life: float = 2500
    label_drop: float = 0.1
    visual_dropout: float = 0.0
    keep_best_every: int = 0
    """Every so many steps the EMA prior is measured on held-out images; that with the lowest cross-entropy is kept.
    0 keeps the last one, as the paper does, and so does a run without held-out images."""

    def __post_init__(self) -> None:
        _positive(self, "steps", "batch", "ema_half_life")
        _not_negative(self, "keep_best_every")
        _fraction(self, "label_drop", "visual_dropout")


@dataclass(frozen=True)
class RunConfig:
    """One run: data, both models, both trainings. A preset, a file and flags make it, in this order."""

    seed: int = 0
    precision: Precision = "fp32"
    """Of the products in training; weights stay fp32. `auto` is bf16 where the device multiplies it faster, decided
    when a run begins and kept by it."""
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    prior: PriorOptions = field(default_factory=lambda: PriorOptions(dropout=0.1))
    tokenizer_training: TokenizerTraining = field(default_factory=TokenizerTraining)
    prior_training: PriorTraining = field(default_factory=PriorTraining)
    checkpoint_every: int = 1000
    """Steps between checkpoints; one is also written when a stage is interrupted."""
    keep_checkpoints: int = 2
    log_every: int = 10
    sample_every: int = 1000
    """Steps between sample grids in samples/; 0 turns them off."""

    def __post_init__(self) -> None:
        _positive(self, "checkpoint_every", "keep_checkpoints", "log_every")
        _not_negative(self, "sample_every", "seed")
        _require(
            self.precision in typing.get_args(Precision),
            f"precision must be one of {list(typing.get_args(Precision))}, not {self.precision!r}",
        )
        size = min(self.tokenizer.image_size)
        _require(
            self.tokenizer_training.gan == 0 or size >= 24,
            f"the discriminator cannot judge images below 24 px (these are {size}): set tokenizer_training.gan to 0",
        )


T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain JSON values; tuples become lists."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def from_dict(kind: type[T], data: Mapping[str, Any], where: str = "", base: T | None = None) -> T:
    """Build `kind` from JSON values, strictly: an unknown key or a value of another type is an error naming it.

    With `base`, keys that are left out keep its values; without, they keep the dataclass's defaults.
    """
    hints = typing.get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where or kind.__name__} must be a table of fields, not {data!r}")
    for key in data:
        if key not in names:
            raise ConfigError(f"unknown field {_join(where, key)!r}: {kind.__name__} has {', '.join(names)}")
    values = {}
    for key, value in data.items():
        current = getattr(base, key) if base is not None else None
        values[key] = _convert(hints[key], value, _join(where, key), current)
    try:
        if base is not None:
            return dataclasses.replace(base, **values)  # type: ignore[type-var]
        return kind(**values)
    except TypeError as error:
        raise ConfigError(f"{where or kind.__name__}: {error}") from error


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else str(key)


def _convert(hint: Any, value: Any, where: str, current: Any) -> Any:
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        (hint,) = (option for option in typing.get_args(hint) if option is not type(None))
        return _convert(hint, value, where, current)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where, current)
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise ConfigError(f"{where} must be one of {list(typing.get_args(hint))}, not {value!r}")
        return value
    if origin is tuple:
        return _convert_tuple(hint, value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{where} must be {hint.__name__}, not {value!r}")
    return value


def _convert_tuple(hint: Any, value: Any, where: str) -> tuple[Any, ...]:
    kinds = typing.get_args(hint)
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{where} must be a list, not {value!r}")
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise ConfigError(f"{where} must have {len(kinds)} entries, not {len(value)}")
    return tuple(_convert(kind, item, where, None) for kind, item in zip(kinds, value, strict=True))


def save_json(path: Path, data: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def load_json(path: Path) -> Any:
    """Read JSON; a missing or damaged file is a `ConfigError` naming it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path} is not readable JSON: {error}") from error
