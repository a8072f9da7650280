"""Configurations: frozen dataclasses, validated at construction. `utils.serialization` converts them to and from JSON.

The text under a field is its help on the command line. This module imports no heavy package, so that the command line
starts at once.
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
"""The newest rule that decides which files of a folder or zip are images, and how they are labelled and split."""
MAX_PIXELS = 179_000_000
"""Default limit of an image's pixels, because a small file may fill the memory when it is decoded."""


@dataclass(frozen=True)
class VariantTraits:
    """The properties of a tokenizer variant (METHOD §4)."""

    has_prologue: bool = False
    """It has prologue tokens."""
    frozen: Variant | None = None
    """Its visual path is a finished, frozen tokenizer of this variant, and a second encoder computes the prologue."""
    visual_queries: bool = False
    """Its visual codes come from queries, not from patches, so they have no position in the image."""

    @property
    def post_hoc(self) -> bool:
        """It trains a prologue only, for a finished tokenizer."""
        return self.frozen is not None


VARIANTS: dict[Variant, VariantTraits] = {
    "2d": VariantTraits(),
    "1d": VariantTraits(visual_queries=True),
    "prologue": VariantTraits(has_prologue=True),
    "prologue-post": VariantTraits(has_prologue=True, frozen="2d"),
}
"""The only place that distinguishes variants; other code reads `TokenizerConfig.traits`."""


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


def _literal(owner: object, *names: str) -> None:
    """Check fields whose type is a `Literal`."""
    hints = typing.get_type_hints(type(owner))
    for name in names:
        value, choices = getattr(owner, name), list(typing.get_args(hints[name]))
        _require(value in choices, f"{type(owner).__name__}.{name} must be one of {choices}, not {value!r}")


def _component_of(registry: str) -> dict[str, Any]:
    """Metadata of a field for components of a registry. Its default is not written, as in files of earlier versions."""
    return {REGISTRY: registry, OMIT_DEFAULT: True}


def _plain_component(owner: object, *names: str) -> None:
    """Check components, and replace tuples in them by lists, as JSON does."""
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
            raise ConfigError(f"{where} has an option that is not a JSON value: {error}") from error
        object.__setattr__(owner, name, plain if isinstance(value, tuple) else plain[0])


def _ids_per_position(component: Component) -> int:
    count = component.get("ids_per_position", 1)
    _require(isinstance(count, int) and count > 0, f"ids_per_position must be a positive number, not {count!r}")
    return int(count)


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of one transformer (METHOD §3)."""

    width: int = 768
    """Model width."""
    depth: int = 12
    """Number of blocks."""
    heads: int = 12
    """Number of attention heads; a divisor of the width."""
    mlp_ratio: str = "8/3"
    """Feed-forward hidden size over width, as a fraction."""
    rope_axes: tuple[int, int, int] | None = None
    """Rotary dimensions of the three axes. Their sum is the head size; none derives them from the head size."""

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
    """Rotary dimensions of the row and column axes: 20 for head size 64, scaled and rounded down to an even number."""
    return head_dim * 20 // 128 * 2


def tokenizer_rope_axes(config: TransformerConfig) -> tuple[int, int, int]:
    """Rotary dimensions (row, column, index) of an encoder or decoder (METHOD §3)."""
    spatial = _spatial_rope_dims(config.head_dim)
    return config.rope_axes or (spatial, spatial, config.head_dim - 2 * spatial)


def prior_rope_axes(config: TransformerConfig) -> tuple[int, int, int]:
    """Rotary dimensions (index, row, column) of a prior (METHOD §3)."""
    spatial = _spatial_rope_dims(config.head_dim)
    return config.rope_axes or (config.head_dim - 2 * spatial, spatial, spatial)


@dataclass(frozen=True)
class TokenizerConfig:
    """A tokenizer of one variant (METHOD §4) for one image size."""

    variant: Variant = "prologue"
    """Tokenizer variant (METHOD §4): prologue; prologue-post, a prologue for a finished 2d tokenizer; 2d; 1d."""
    image_size: tuple[int, int] = (256, 256)
    """Image height and width in pixels."""
    patch_size: int = 16
    """Side of the square patches in pixels."""
    encoder: TransformerConfig = field(default_factory=TransformerConfig)
    """Encoder of patches and queries."""
    decoder: TransformerConfig = field(default_factory=TransformerConfig)
    """Decoder of visual codes."""
    prologue_encoder: TransformerConfig | None = None
    """Second encoder of the variant prologue-post, none for the others."""
    code_dim: int = 14
    """Dimension of visual and prologue codes."""
    codebook_size: int = 16384
    """Number of visual codes, K."""
    prologue_tokens: int = 16
    """Number of prologue tokens, P; 0 for the variants 2d and 1d."""
    prologue_codebook_size: int = 1024
    """Number of prologue codes, K_p, for all positions together."""
    prologue_temperature: float = 0.1
    """Temperature τ of the prologue quantizer's softmax in training; it has no effect on sampling."""
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
        """Combine the visual path of a finished tokenizer with the prologue of this post-hoc configuration.

        Raises:
            ConfigError: the finished tokenizer has another variant than this configuration needs.
        """
        _require(
            given.variant == self.traits.frozen,
            f"a post-hoc prologue reads a finished {self.traits.frozen} tokenizer, not a {given.variant!r} one",
        )
        own = [item.name for item in dataclasses.fields(self) if item.name.startswith("prologue_")]
        return dataclasses.replace(given, variant=self.variant, **{name: getattr(self, name) for name in own})

    @property
    def visual_tokens_on_grid(self) -> bool:
        """Whether each patch has one visual token, so that one value per token gives a map of the image."""
        return not self.traits.visual_queries and self.visual_tokens == self.patches

    @property
    def grid(self) -> tuple[int, int]:
        """Patches as (rows, columns)."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def patches(self) -> int:
        """Number of patches; each has one code."""
        return self.grid[0] * self.grid[1]

    @property
    def visual_tokens(self) -> int:
        """Number of visual ids of an image, N."""
        return self.patches * _ids_per_position(self.quantizer)

    @property
    def prologue_queries(self) -> int:
        """Number of prologue queries; each has one code."""
        return self.prologue_tokens // _ids_per_position(self.prologue_quantizer)

    @property
    def patch_dim(self) -> int:
        return self.patch_size * self.patch_size * 3


@dataclass(frozen=True)
class LayoutConfig:
    """Sizes of a prior's sequence and vocabulary (METHOD §6)."""

    prologue_tokens: int
    """P, 0 for a prior without a prologue."""
    prologue_codebook_size: int
    """K_p, 0 for a prior without a prologue."""
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
    """Sizes of a prior that do not follow from data and tokenizer."""

    width: int = 768
    """Model width."""
    depth: int = 12
    """Number of blocks."""
    heads: int = 12
    """Number of attention heads; a divisor of the width."""
    mlp_ratio: str = "11/4"
    """Feed-forward hidden size over width, as a fraction."""
    rope_axes: tuple[int, int, int] | None = None
    """Rotary dimensions of index, row and column. Their sum is the head size; none derives them from the head size."""
    tied: bool = False
    """Whether the output layer shares the weights of the token embedding."""
    dropout: float = 0.0
    """Dropout probability on embeddings and residual branches."""
    prologue: bool = True
    """Whether sequences have the tokenizer's prologue; false trains a prior on visual ids alone."""
    embedding_std: float = 0.02
    """Standard deviation of initial token and class embeddings."""

    def __post_init__(self) -> None:
        _require(0 <= self.dropout < 1, f"PriorOptions.dropout must lie in [0, 1), not {self.dropout}")
        _positive(self, "embedding_std")
        _ = self.transformer

    @property
    def transformer(self) -> TransformerConfig:
        return TransformerConfig(self.width, self.depth, self.heads, self.mlp_ratio, self.rope_axes)

    def sized(self, layout: LayoutConfig, num_classes: int) -> PriorConfig:
        """The configuration of a prior for a tokenizer's layout and the number of classes of the data."""
        return PriorConfig(layout, num_classes, self.transformer, self.tied, self.dropout, self.embedding_std)


@dataclass(frozen=True)
class PriorConfig:
    """Sizes of a prior, saved with its weights."""

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
    """How images are read, cropped and split. The option `--data` names the images."""

    background: tuple[int, int, int] = (255, 255, 255)
    """RGB colour under transparent pixels."""
    crop: Literal["random", "center"] = "random"
    """Crop of training images (METHOD §2)."""
    flip: bool = True
    """Whether images are flipped horizontally in training and in ten-crop."""
    token_views: Literal["ten-crop", "center"] = "ten-crop"
    """Views of each image in the token store."""
    validation_fraction: float = 0.1
    """Fraction of each class of a folder or zip that is held out."""
    skip_damaged: bool = False
    """Whether files that cannot be decoded are skipped and listed; false stops at the first one."""
    max_pixels: int = MAX_PIXELS
    """Largest number of pixels of an image file. Decoding takes about 8 bytes per pixel."""
    file_rule: int | None = None
    """Rule that decides which files of a folder or zip are images, and how they are labelled and split. 2 is the
    current rule. 1 is the rule of the first versions: PNG, JPEG and WebP, labels only from labels.csv, no splits. none
    keeps the rule of an existing run; a new run gets 2."""
    shapes_images: int = 20000
    """Number of training images of the embedded shapes or plates."""
    shapes_validation: int = 2000
    """Number of validation images of the embedded shapes or plates."""
    cache_mb: int = 1024
    """Memory for decoded training images, in MiB."""

    def __post_init__(self) -> None:
        _require(
            len(self.background) == 3 and all(0 <= value <= 255 for value in self.background),
            f"data.background must be three numbers in 0..255, not {self.background}",
        )
        _literal(self, "crop", "token_views")
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
    """AdamW and its schedule in updates of one network: warm-up, hold, linear decay (METHOD §7)."""

    lr: float = 1e-4
    """Peak learning rate."""
    final_lr: float = 1e-5
    """Learning rate at the end of the decay."""
    warmup: int = 20000
    """Updates of the linear warm-up from 0."""
    hold: int = 100000
    """Updates at the peak learning rate between warm-up and decay."""
    betas: tuple[float, float] = (0.0, 0.99)
    """AdamW's β₁ and β₂."""
    weight_decay: float = 0.0
    """Weight decay of matrices; biases, norms and other 1-D parameters have none."""
    clip: float = 0.0
    """Gradient norm above which gradients are clipped; 0 disables clipping."""

    def __post_init__(self) -> None:
        _positive(self, "lr")
        _not_negative(self, "final_lr", "warmup", "hold", "weight_decay", "clip")
        _require(all(0 <= beta < 1 for beta in self.betas), f"betas must lie in [0, 1), not {self.betas}")


@dataclass(frozen=True)
class TokenizerTraining:
    """Stage 1 (METHOD §7). A step is one batch: an autoencoder update, then a prior and discriminator update."""

    steps: int = 1_000_000
    """Number of steps, each of one batch."""
    batch: int = 256
    """Images per step, over all processes."""
    accumulate: int = 1
    """Microbatches per step in each process. More microbatches need less memory."""
    autoencoder: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizer of encoder, decoder and quantizers."""
    prior: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(betas=(0.9, 0.99), weight_decay=0.03))
    """Optimizer of the stage-1 prior."""
    discriminator: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(weight_decay=1e-4))
    """Optimizer of the discriminator."""
    prior_model: PriorOptions = field(default_factory=lambda: PriorOptions(width=512, depth=7, heads=8))
    """Sizes of the stage-1 prior."""
    ema_half_life: float = 1000
    """Half-life of the tokenizer's EMA in updates. The EMA weights are saved."""
    prior_ema_half_life: float = 2500
    """Half-life of the stage-1 prior's EMA in updates."""
    l1: float = 1.0
    """Weight of the mean absolute error."""
    l2: float = 0.0
    """Weight of the mean squared error."""
    perceptual: Perceptual = "lpips"
    """Network of the perceptual loss."""
    perceptual_weight: float = 1.0
    """Weight of the perceptual loss."""
    perceptual_path: str | None = None
    """Safetensors file with the weights of lpips or convnext; none uses the file that `prologue weights` writes."""
    perceptual_start: int = 0
    """Step at which the perceptual loss starts."""
    perceptual_ramp: int = 0
    """Steps over which the weight of the perceptual loss rises from 0."""
    gan: float = 0.1
    """Weight of the adversarial loss; 0 trains without a discriminator."""
    gan_start: int = 0
    """Step at which the discriminator starts and its loss reaches the generator."""
    gan_ramp: int = 0
    """Steps over which the weight of the adversarial loss rises from 0."""
    gan_channels: int = 64
    """Channels of the discriminator's first layer."""
    gan_augment: bool = False
    """Whether the discriminator's inputs are augmented (colour, translation, cutout)."""
    lecam: float = 0.001
    """Weight of the discriminator's LeCam regularisation."""
    r1: float = 0.01
    """Weight of the discriminator's gradient penalty R1."""
    r1_every: int = 25
    """Discriminator updates between two R1 penalties."""
    vq: float = 1.0
    """Weight of the visual quantizer's loss."""
    ce_prologue: float = 3.0
    """Weight of the cross-entropy of prologue tokens in the encoder's loss."""
    ce_visual: float = 3.0
    """Weight of the cross-entropy of visual tokens in the encoder's loss."""
    ce_start: int = 0
    """Step at which the cross-entropy terms of the encoder's loss start."""
    ce_ramp: int = 0
    """Steps over which the weights of the cross-entropy terms rise from 0."""
    losses: tuple[Component, ...] = field(default=(), metadata=_component_of("prologue.training.losses:LOSSES"))
    """Your own loss terms for the autoencoder. Each weight rises from 0 over length steps, beginning at step start:
    {"name": "module:name", "weight": 1.0, "start": 0, "length": 0, OPTION: …}."""
    visual_dropout: float = 0.5
    """Probability that all visual inputs of a sequence are replaced by EOS, so the prior relies on the prologue."""
    visual_dropout_start: int = 0
    """Step at which visual dropout starts."""
    visual_dropout_ramp: int = 0
    """Steps over which the probability of visual dropout rises from 0."""
    shared_prior_pass: bool = False
    """Whether the forward pass of the autoencoder step also trains the prior. This halves the passes through the prior
    and uses one draw of visual dropout for both updates. It needs equal cross-entropy weights and a prior_model without
    dropout."""
    label_drop: float = 1.0
    """Probability that a class is replaced by the null class: 1 in two-stage training, 0.1 in one-stage training."""
    one_stage: bool = False
    """Whether the stage-1 prior is the run's prior, without a second stage."""
    dead_code_reset_every: int = field(default=0, metadata={RENAMED: "revive_every"})
    """Steps between resets of dead codes: visual codes that were not used since the last reset are set to encoder
    outputs. 0 disables resets."""
    dead_code_reset_until: float = field(default=0.8, metadata={RENAMED: "revive_until"})
    """Fraction of the stage after which dead codes are no longer reset."""
    prologue_kmeans: tuple[int, ...] = ()
    """Steps at which the prologue codebook is set to k-means centres of encoder outputs."""

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
        _literal(self, "perceptual")


@dataclass(frozen=True)
class PriorTraining:
    """Stage 2 (METHOD §8)."""

    steps: int = 500_000
    """Number of steps, each of one batch."""
    batch: int = 2048
    """Images per step, over all processes."""
    accumulate: int = 1
    """Microbatches per step in each process. More microbatches need less memory."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            lr=4e-4, warmup=62_500, hold=0, betas=(0.9, 0.96), weight_decay=0.03, clip=1.0
        )
    )
    """Optimizer of the prior."""
    ema_half_life: float = 2500
    """Half-life of the prior's EMA in updates. The EMA weights are saved."""
    label_drop: float = 0.1
    """Probability that a class is replaced by the null class. Guidance needs a value above 0."""
    visual_dropout: float = 0.0
    """Probability that all visual inputs of a sequence are replaced by EOS."""
    keep_best_every: int = 0
    """Steps between measurements of the EMA prior on held-out images. The prior with the lowest cross-entropy is saved.
    0 saves the last prior, as in the paper. A run without held-out images also saves the last prior."""

    def __post_init__(self) -> None:
        _positive(self, "steps", "batch", "accumulate", "ema_half_life")
        _not_negative(self, "keep_best_every")
        _fraction(self, "label_drop", "visual_dropout")


@dataclass(frozen=True)
class RunConfig:
    """One run: data, models and training. A preset is overridden by a file, and both by flags."""

    seed: int = 0
    """Seed of all random numbers of the run."""
    precision: Precision = "fp32"
    """Precision of matrix products in training; weights are fp32. auto is bf16 on devices with bf16 units. A run keeps
    the precision with which it started."""
    data: DataConfig = field(default_factory=DataConfig)
    """How images are read."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """Variant and sizes of the tokenizer."""
    prior: PriorOptions = field(default_factory=lambda: PriorOptions(dropout=0.1))
    """Sizes of the stage-2 prior."""
    tokenizer_training: TokenizerTraining = field(default_factory=TokenizerTraining)
    """Stage 1."""
    prior_training: PriorTraining = field(default_factory=PriorTraining)
    """Stage 2."""
    checkpoint_every: int = 1000
    """Steps between checkpoints. An interrupted stage also writes one."""
    keep_checkpoints: int = 2
    """Checkpoints to keep per stage."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    sample_every: int = 1000
    """Steps between sample grids in samples/; 0 writes none."""
    stop_after_skipped: int = 50
    """Number of consecutive updates with non-finite gradients after which training stops. It is checked at every line
    of metrics.jsonl and at every checkpoint. 0 never stops."""

    def __post_init__(self) -> None:
        _positive(self, "checkpoint_every", "keep_checkpoints", "log_every")
        _not_negative(self, "sample_every", "seed", "stop_after_skipped")
        _require(self.seed in SEEDS, f"seed must be at most 2**63 - 1, not {self.seed}")
        _literal(self, "precision")
        size = min(self.tokenizer.image_size)
        _require(
            self.tokenizer_training.gan == 0 or size >= 24,
            f"the discriminator needs images of at least 24 px, not {size}: set tokenizer_training.gan to 0",
        )
