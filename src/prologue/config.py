"""Frozen configuration dataclasses, validated at construction; `utils.serialization` saves and reads them as JSON.

This module imports neither torch nor any other heavy package, so that the command line can use it at once.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

from prologue.errors import ConfigError
from prologue.utils.rng import SEEDS
from prologue.utils.serialization import OMIT_DEFAULT, RENAMED

Variant = Literal["2d", "1d", "prologue", "prologue-post"]
Perceptual = Literal["none", "lpips", "convnext", "lite0"]
Precision = Literal["auto", "fp32", "bf16"]
Component = dict[str, Any]
"""A named component and its options: `{"name": NAME, OPTION: VALUE, …}`. A component from outside the package has the
name `module:name`."""
REGISTRY = "registry"
"""Key of a field's metadata: the `Registry` of its components, as `module:name`."""

FILE_RULE = 2
"""The newest of the rules that say which files of a folder or zip are images, and how they are labelled and split."""
MAX_PIXELS = 179_000_000
"""Larger pictures are refused unless `data.max_pixels` allows them: a small file may expand to fill the memory."""


@dataclass(frozen=True)
class VariantTraits:
    """What tells a tokenizer variant from the others (METHOD §4)."""

    has_prologue: bool = False
    """It has prologue tokens, which the prior trains."""
    frozen: Variant | None = None
    """A finished tokenizer of this variant is its visual path and stays frozen; a second encoder gives the prologue."""
    visual_queries: bool = False
    """Visual codes come from queries instead of patches, so that they have no place in the image."""

    @property
    def post_hoc(self) -> bool:
        """It trains a prologue for a finished tokenizer, and not its visual path."""
        return self.frozen is not None


VARIANTS: dict[Variant, VariantTraits] = {
    "2d": VariantTraits(),
    "1d": VariantTraits(visual_queries=True),
    "prologue": VariantTraits(has_prologue=True),
    "prologue-post": VariantTraits(has_prologue=True, frozen="2d"),
}
"""The one place that tells the variants apart: other code asks `TokenizerConfig.traits`."""


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


def _component_of(registry: str) -> dict[str, Any]:
    """Metadata of a field that names a component. Files leave its default out, as files of earlier versions do."""
    return {REGISTRY: registry, OMIT_DEFAULT: True}


def _plain_component(owner: object, *names: str) -> None:
    """Check components and store them as a JSON file would: with a name, without tuples."""
    for name in names:
        value = getattr(owner, name)
        where = f"{type(owner).__name__}.{name}"
        each = value if isinstance(value, tuple) else (value,)
        for component in each:
            _require(
                isinstance(component, dict) and isinstance(component.get("name"), str),
                f'{where} must be a table {{"name": NAME, OPTION: VALUE, …}}, not {component!r}',
            )
        try:
            plain = tuple(json.loads(json.dumps(component)) for component in each)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{where} has an option that JSON does not have: {error}") from error
        object.__setattr__(owner, name, plain if isinstance(value, tuple) else plain[0])


def _ids_per_position(component: Component) -> int:
    count = component.get("ids_per_position", 1)
    _require(isinstance(count, int) and count > 0, f"ids_per_position must be a positive number, not {count!r}")
    return int(count)


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of one stack of pre-norm blocks (METHOD §3)."""

    width: int = 768
    """Size of the vectors between blocks."""
    depth: int = 12
    """Number of blocks."""
    heads: int = 12
    """Attention heads; they share the width."""
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
    """prologue, prologue-post (for a finished 2d), 2d or 1d (METHOD §4)."""
    image_size: tuple[int, int] = (256, 256)
    """Image rows and columns, in pixels."""
    patch_size: int = 16
    """Side of the square patches, in pixels; each patch is a visual token."""
    encoder: TransformerConfig = field(default_factory=TransformerConfig)
    """Of patches, and of the prologue's queries."""
    decoder: TransformerConfig = field(default_factory=TransformerConfig)
    """Of visual codes; it never sees the prologue."""
    prologue_encoder: TransformerConfig | None = None
    """The second encoder of `prologue-post`; None otherwise."""
    code_dim: int = 14
    """Numbers in a code of either codebook."""
    codebook_size: int = 16384
    """K, the number of visual codes."""
    prologue_tokens: int = 16
    """P, the number of prologue tokens; 0 for 2d and 1d."""
    prologue_codebook_size: int = 1024
    """K_p, the number of prologue codes, shared by all positions."""
    prologue_temperature: float = 0.1
    """τ of the prologue quantizer's softmax; not a sampling temperature."""
    quantizer: Component = field(
        default_factory=lambda: {"name": "cosine"}, metadata=_component_of("prologue.models.quantizers:QUANTIZERS")
    )
    """Quantizer of the visual tokens: cosine (the paper's), fsq, or your own as module:name."""
    prologue_quantizer: Component = field(
        default_factory=lambda: {"name": "cosine"},
        metadata=_component_of("prologue.models.quantizers:PROLOGUE_QUANTIZERS"),
    )
    """Quantizer of the prologue tokens: cosine (the paper's), or your own as module:name."""

    def __post_init__(self) -> None:
        _plain_component(self, "quantizer", "prologue_quantizer")
        _ids_per_position(self.quantizer)
        _require(
            self.variant in VARIANTS, f"unknown tokenizer variant {self.variant!r}: choose one of {list(VARIANTS)}"
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
        if self.traits.has_prologue:
            _positive(self, "prologue_tokens", "prologue_codebook_size", "prologue_temperature")
            each = _ids_per_position(self.prologue_quantizer)
            _require(
                self.prologue_tokens % each == 0,
                f"prologue_tokens {self.prologue_tokens} is not divisible by the prologue quantizer's {each} ids for "
                "each position",
            )
        else:
            _require(self.prologue_tokens == 0, f"variant {self.variant!r} has no prologue: set prologue_tokens to 0")
        _require(
            (self.prologue_encoder is not None) == self.traits.post_hoc,
            f"the variant {self.variant!r} {'needs' if self.traits.post_hoc else 'has no'} prologue_encoder, "
            "the second encoder of a post-hoc prologue",
        )

    @property
    def traits(self) -> VariantTraits:
        return VARIANTS[self.variant]

    def on_top_of(self, given: TokenizerConfig) -> TokenizerConfig:
        """This post-hoc prologue on the visual path of a finished tokenizer.

        Raises:
            ConfigError: the finished tokenizer is of another variant than this one needs.
        """
        _require(
            given.variant == self.traits.frozen,
            f"a post-hoc prologue reads a finished {self.traits.frozen} tokenizer, not a {given.variant!r} one",
        )
        own = [item.name for item in dataclasses.fields(self) if item.name.startswith("prologue_")]
        return dataclasses.replace(given, variant=self.variant, **{name: getattr(self, name) for name in own})

    @property
    def visual_tokens_on_grid(self) -> bool:
        """Whether each visual token belongs to one patch, so that values of tokens make a picture."""
        return not self.traits.visual_queries and self.visual_tokens == self.patches

    @property
    def grid(self) -> tuple[int, int]:
        """Visual tokens per column and per row: (rows, columns)."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def patches(self) -> int:
        """Patches of an image, each of which has one code."""
        return self.grid[0] * self.grid[1]

    @property
    def visual_tokens(self) -> int:
        """N, the number of visual ids of an image."""
        return self.patches * _ids_per_position(self.quantizer)

    @property
    def prologue_queries(self) -> int:
        """Learnable queries of the prologue, each of which has one code."""
        return self.prologue_tokens // _ids_per_position(self.prologue_quantizer)

    @property
    def patch_dim(self) -> int:
        return self.patch_size * self.patch_size * 3


@dataclass(frozen=True)
class LayoutConfig:
    """Counts that fix what each position of a prior's sequence means (METHOD §6)."""

    prologue_tokens: int
    """P; 0 for a prior without a prologue."""
    prologue_codebook_size: int
    """K_p; 0 together with P."""
    visual_tokens: int
    """N."""
    visual_codebook_size: int
    """K."""

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
    """Size of the vectors between blocks."""
    depth: int = 12
    """Number of blocks."""
    heads: int = 12
    """Attention heads; they share the width."""
    mlp_ratio: str = "11/4"
    """Feed-forward hidden size over width, as a fraction."""
    rope_axes: tuple[int, int, int] | None = None
    """Rotary dims of (index, row, column); None derives them from the head size."""
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
    max_pixels: int = MAX_PIXELS
    """Largest number of pixels of an image file. Raise it for larger scans: decoding takes about 8 bytes per pixel."""
    file_rule: int | None = None
    """Which files of a folder or zip are images, and how they are labelled and split. 2 is the current rule; 1 is that
    of the first versions (PNG, JPEG and WebP, no splits, only labels.csv). none: the rule that the run was begun with,
    2 for a new run."""
    shapes_images: int = 20000
    """Training images of the embedded `shapes` or `plates`."""
    shapes_validation: int = 2000
    """Validation images of the embedded `shapes` or `plates`."""
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
        _positive(self, "shapes_images", "shapes_validation", "max_pixels")
        _require(
            self.file_rule in (None, *range(1, FILE_RULE + 1)),
            f"data.file_rule must be none or 1 to {FILE_RULE}, not {self.file_rule}",
        )
        _not_negative(self, "cache_mb")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule, counted in updates of its network: warm-up, hold, linear decay (METHOD §7)."""

    lr: float = 1e-4
    """Learning rate at its peak."""
    final_lr: float = 1e-5
    """Learning rate after the decay."""
    warmup: int = 20000
    """Updates over which the learning rate rises from 0."""
    hold: int = 100000
    """Updates at the peak after the warm-up, before the linear decay to `final_lr`."""
    betas: tuple[float, float] = (0.0, 0.99)
    """AdamW's β₁ and β₂."""
    weight_decay: float = 0.0
    """AdamW's decay of matrices; norms and biases have none."""
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
    """Batches in all."""
    batch: int = 256
    """Images of a step, over all processes."""
    accumulate: int = 1
    """Parts in which a process computes its images of a step, one after another; their gradients add up. More parts
    need less memory."""
    autoencoder: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Of encoder, decoder and quantizers."""
    prior: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(betas=(0.9, 0.99), weight_decay=0.03))
    """Of the prior that gives the cross-entropy."""
    discriminator: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(weight_decay=1e-4))
    """Of the discriminator, where `gan` is above 0."""
    prior_model: PriorOptions = field(default_factory=lambda: PriorOptions(width=512, depth=7, heads=8))
    """Sizes of this stage's prior."""
    ema_half_life: float = 1000
    """Updates after which the EMA of the tokenizer, which is what ships, has forgotten half."""
    prior_ema_half_life: float = 2500
    """The same of this stage's prior."""
    l1: float = 1.0
    """Weight of the mean absolute error."""
    l2: float = 0.0
    """Weight of the mean squared error."""
    perceptual: Perceptual = "lpips"
    """Network of the perceptual term, or none."""
    perceptual_weight: float = 1.0
    """Weight of the perceptual term."""
    perceptual_path: str | None = None
    """Safetensors file with the weights of `lpips` or `convnext`; None takes what `prologue weights` made."""
    perceptual_start: int = 0
    """Step at which the perceptual term begins."""
    perceptual_ramp: int = 0
    """Steps over which it rises from 0 after that."""
    gan: float = 0.1
    """Weight of the adversarial term; 0 has no discriminator."""
    gan_start: int = 0
    """Step at which the discriminator begins to learn, and to be heard."""
    gan_ramp: int = 0
    """Updates over which the generator's term rises from 0 after `gan_start`."""
    gan_channels: int = 64
    """Channels of the discriminator's first layer."""
    gan_augment: bool = False
    """Differentiable augmentation (colour, translation, cutout) of what the discriminator sees."""
    lecam: float = 0.001
    """Weight of the discriminator's LeCam regularisation."""
    r1: float = 0.01
    """Weight of its gradient penalty R1."""
    r1_every: int = 25
    """Updates of the discriminator between penalties."""
    vq: float = 1.0
    """Weight of the visual quantizer's loss."""
    ce_prologue: float = 3.0
    """Weight of the prior's cross-entropy of prologue tokens in the encoder's loss."""
    ce_visual: float = 3.0
    """The same of visual tokens."""
    ce_start: int = 0
    """Step at which both cross-entropy terms begin."""
    ce_ramp: int = 0
    """Steps over which they rise from 0 after that."""
    losses: tuple[Component, ...] = field(default=(), metadata=_component_of("prologue.training.losses:LOSSES"))
    """Your own terms of the autoencoder's loss, each with a weight, which rises from 0 at step start over length steps:
    {"name": "module:name", "weight": 1.0, "start": 0, "length": 0, OPTION: …}."""
    visual_dropout: float = 0.5
    """Chance that a sequence's visual inputs are hidden from the prior, which then leans on the prologue."""
    visual_dropout_start: int = 0
    """Step at which visual dropout begins."""
    visual_dropout_ramp: int = 0
    """Steps over which the chance rises from 0 after `visual_dropout_start`."""
    shared_prior_pass: bool = False
    """Take the prior's own gradients from the autoencoder step's pass: the same update for half the passes through the
    prior, with one draw of visual dropout for both. Needs equal CE weights and a prior_model without dropout."""
    label_drop: float = 1.0
    """Chance that the prior sees the null class; 1 in two-stage training, 0.1 in one-stage."""
    one_stage: bool = False
    """Ship this stage's prior; there is no second stage."""
    dead_code_reset_every: int = field(default=0, metadata={RENAMED: "revive_every"})
    """Steps between resets of dead codes: visual codes that were not used since the last reset are set to encoder
    outputs. 0 resets none."""
    dead_code_reset_until: float = field(default=0.8, metadata={RENAMED: "revive_until"})
    """Fraction of the stage after which no dead codes are reset."""
    prologue_kmeans: tuple[int, ...] = ()
    """Steps at which the prologue codebook is set to k-means centres of the encoder's prologue outputs."""

    def __post_init__(self) -> None:
        _positive(
            self, "steps", "batch", "accumulate", "ema_half_life", "prior_ema_half_life", "gan_channels", "r1_every"
        )
        _not_negative(
            self, "l1", "l2", "perceptual_weight", "perceptual_start", "perceptual_ramp", "gan", "gan_start",
            "gan_ramp", "lecam", "r1", "vq", "ce_prologue", "ce_visual", "ce_start", "ce_ramp", "visual_dropout_start",
            "visual_dropout_ramp", "dead_code_reset_every",
        )  # fmt: skip
        _fraction(self, "visual_dropout", "label_drop", "dead_code_reset_until")
        _plain_component(self, "losses")
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
    """Batches in all."""
    batch: int = 2048
    """Images of a step, over all processes."""
    accumulate: int = 1
    """Parts in which a process computes its images of a step, one after another; their gradients add up."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            lr=4e-4, warmup=62_500, hold=0, betas=(0.9, 0.96), weight_decay=0.03, clip=1.0
        )
    )
    """Of the prior."""
    ema_half_life: float = 2500
    """Updates after which the EMA of the prior, which is what ships, has forgotten half."""
    label_drop: float = 0.1
    """Chance that an image's class is hidden, which is what guidance needs."""
    visual_dropout: float = 0.0
    """Chance that a sequence's visual inputs are hidden."""
    keep_best_every: int = 0
    """Every so many steps the EMA prior is measured on held-out images; that with the lowest cross-entropy is kept.
    0 keeps the last one, as the paper does, and so does a run without held-out images."""

    def __post_init__(self) -> None:
        _positive(self, "steps", "batch", "accumulate", "ema_half_life")
        _not_negative(self, "keep_best_every")
        _fraction(self, "label_drop", "visual_dropout")


@dataclass(frozen=True)
class RunConfig:
    """One run: data, both models, both trainings. A preset, a file and flags make it, in this order."""

    seed: int = 0
    """Everything random of the run descends from it."""
    precision: Precision = "fp32"
    """Of the products in training; weights stay fp32. `auto` is bf16 where the device multiplies it faster, decided
    when a run begins and kept by it."""
    data: DataConfig = field(default_factory=DataConfig)
    """How images are read."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """The tokenizer's variant and sizes."""
    prior: PriorOptions = field(default_factory=lambda: PriorOptions(dropout=0.1))
    """Sizes of the prior that ships."""
    tokenizer_training: TokenizerTraining = field(default_factory=TokenizerTraining)
    """Stage 1."""
    prior_training: PriorTraining = field(default_factory=PriorTraining)
    """Stage 2."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; one is also written when a stage is interrupted."""
    keep_checkpoints: int = 2
    """So many of the newest checkpoints of a stage are kept."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    sample_every: int = 1000
    """Steps between sample grids in samples/; 0 turns them off."""
    stop_after_skipped: int = 50
    """Training stops when so many updates in a row were skipped because their gradients were not finite. It is looked
    at with every line of metrics.jsonl and every checkpoint; 0 never stops it."""

    def __post_init__(self) -> None:
        _positive(self, "checkpoint_every", "keep_checkpoints", "log_every")
        _not_negative(self, "sample_every", "seed", "stop_after_skipped")
        _require(self.seed in SEEDS, f"seed must be at most 2**63 - 1, not {self.seed}")
        _require(
            self.precision in typing.get_args(Precision),
            f"precision must be one of {list(typing.get_args(Precision))}, not {self.precision!r}",
        )
        size = min(self.tokenizer.image_size)
        _require(
            self.tokenizer_training.gan == 0 or size >= 24,
            f"the discriminator cannot judge images below 24 px (these are {size}): set tokenizer_training.gan to 0",
        )
