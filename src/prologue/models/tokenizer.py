"""The image tokenizer: an encoder, a quantizer for each kind of token, and a decoder (METHOD §4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from prologue.config import TokenizerConfig, TransformerConfig, tokenizer_rope_axes
from prologue.errors import ConfigError, DataError
from prologue.models.layers import NEAR_ZERO_STD, Linear, Queries, RMSNorm, head_in_fp32, initialise
from prologue.models.quantizers import Quantized, Quantizer, build_prologue_quantizer, build_quantizer
from prologue.models.rope import Positions
from prologue.models.sequence import TokenIds, check_ids
from prologue.models.transformer import Transformer
from prologue.models.weights import SavedModel
from prologue.utils.rng import torch_stream


def to_model_range(images: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """uint8 to model range: `u / 127.5 − 1` (METHOD §2). Another dtype raises a `DataError`."""
    if images.dtype != torch.uint8:
        raise DataError(f"to_model_range converts uint8 images of 0…255, not {images.dtype}")
    return images.float() / 127.5 - 1


def to_uint8(images: Float[Tensor, "B 3 H W"]) -> UInt8[Tensor, "B 3 H W"]:
    """Model range to uint8: `clamp(127.5·x + 128, 0, 255)`, truncated (METHOD §2). Integers raise a `DataError`."""
    if not images.is_floating_point():
        raise DataError(f"to_uint8 converts floating-point images in [-1, 1], not {images.dtype}")
    return (127.5 * images.float() + 128).clamp(0, 255).to(torch.uint8)


LARGEST = 2.0
"""Decoded and resized images leave the model range [-1, 1] a little. Larger absolute values indicate another range."""


def check_image_tensor(images: Any) -> None:
    """Raise `DataError` unless this is a floating-point tensor (B, 3, H, W). Values are not read."""
    if not isinstance(images, Tensor):
        raise DataError(
            f"images must be a tensor (B, 3, H, W) in [-1, 1], not {type(images).__name__}: "
            "to_model_range converts a uint8 tensor"
        )
    if images.ndim != 4 or images.shape[1] != 3:
        raise DataError(f"images must be a tensor (B, 3, H, W), not {tuple(images.shape)}")
    if not images.is_floating_point():
        raise DataError(f"images must be floating point in [-1, 1], not {images.dtype}: to_model_range converts uint8")


def check_model_range(images: Float[Tensor, "B 3 H W"]) -> None:
    """Raise `DataError` if a value is not finite or its absolute value exceeds 2. This waits for the device once."""
    if not images.numel():
        return
    low, high = torch.stack(images.detach().aminmax()).tolist()  # aminmax keeps NaN
    if low >= -LARGEST and high <= LARGEST:
        return
    per_image = images.detach().flatten(1).float()
    broken = ~per_image.isfinite().all(1)
    if bool(broken.any()):
        raise DataError(f"image {int(broken.nonzero()[0])} holds values that are not finite (NaN or infinity)")
    number = int((per_image.abs().amax(1) > LARGEST).nonzero()[0])
    raise DataError(
        f"image {number} holds values from {float(per_image[number].min()):g} to {float(per_image[number].max()):g}, "
        "but images must lie in [-1, 1]: to_model_range converts uint8; convert floats in 0…255 with x / 127.5 - 1"
    )


class QueryTransformer(nn.Module):
    """A linear input layer, learnable queries after the inputs, and bidirectional blocks over both."""

    def __init__(
        self, config: TransformerConfig, input_dim: int, inputs: Positions, queries: Positions | None = None
    ) -> None:
        super().__init__()
        self.inputs = len(inputs.theta)
        self.input = Linear(input_dim, config.width)
        self.queries = Queries(len(queries.theta), config.width) if queries is not None else None
        positions = inputs if queries is None else inputs + queries
        self.transformer = Transformer(config, positions.table(tokenizer_rope_axes(config)), causal=False, bias=True)

    def forward(self, x: Float[Tensor, "B T I"]) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B Q D"]]:
        """Outputs at the inputs and at the queries, which are (B, 0, D) without queries."""
        h = self.input(x)
        if self.queries is not None:
            h = torch.cat([h, self.queries.weight.to(h.dtype).expand(len(h), -1, -1)], dim=1)
        h = self.transformer(h)
        return h[:, : self.inputs], h[:, self.inputs :]


@dataclass(frozen=True)
class Encoding:
    """Training outputs of both quantizers; `prologue` is None for a variant without a prologue."""

    visual: Quantized
    prologue: Quantized | None

    @property
    def tokens(self) -> TokenIds:
        visual = self.visual.ids
        return TokenIds(self.prologue.ids if self.prologue is not None else visual[:, :0], visual)

    @classmethod
    def cat(cls, parts: Sequence[Encoding]) -> Encoding:
        """Concatenate encodings along the batch, without gradients."""
        visual = Quantized.cat([part.visual for part in parts])
        prologue = [part.prologue for part in parts if part.prologue is not None]
        return cls(visual, Quantized.cat(prologue) if prologue else None)


@dataclass(frozen=True)
class _Composition:
    """The queries and positions of a variant's encoder and decoder."""

    visual_queries: int
    """Queries of the encoder whose outputs become visual codes. If it is 0, the outputs at the patches become the
    codes."""
    encoder_queries: Positions | None
    """The visual queries, then the prologue queries."""
    decoder_inputs: Positions
    decoder_queries: Positions | None

    @classmethod
    def of(cls, config: TokenizerConfig) -> _Composition:
        traits, patches = config.traits, Positions.patches(config.grid)
        visual = config.patches if traits.visual_queries else 0
        prologue = config.prologue_queries if traits.has_prologue and not traits.post_hoc else 0
        queries = Positions.indices(visual + prologue) if visual + prologue else None
        if traits.visual_queries:
            return cls(visual, queries, decoder_inputs=Positions.indices(visual), decoder_queries=patches)
        return cls(visual, queries, decoder_inputs=patches, decoder_queries=None)


class Tokenizer(SavedModel):
    """Converts images in model range to `TokenIds` and back (METHOD §2 to §5). `seed` sets the initial weights."""

    config: TokenizerConfig
    config_type = TokenizerConfig

    def __init__(self, config: TokenizerConfig, seed: int = 0) -> None:
        super().__init__(config)
        self.composition = _Composition.of(config)
        patches = Positions.patches(config.grid)
        width = config.encoder.width
        self.encoder = QueryTransformer(config.encoder, config.patch_dim, patches, self.composition.encoder_queries)
        self.visual_quantizer = build_quantizer(config, width)
        self.prologue_encoder: QueryTransformer | None = None
        self.prologue_quantizer: Quantizer | None = None
        if config.prologue_encoder is not None:
            queries = Positions.indices(config.prologue_queries)
            self.prologue_encoder = QueryTransformer(config.prologue_encoder, width, patches, queries)
            width = config.prologue_encoder.width
        if config.prologue_tokens:
            self.prologue_quantizer = build_prologue_quantizer(config, width)
        self.decoder = QueryTransformer(
            config.decoder, config.code_dim, self.composition.decoder_inputs, self.composition.decoder_queries
        )
        self.out_norm = RMSNorm(config.decoder.width)
        self.out = Linear(config.decoder.width, config.patch_dim, std=NEAR_ZERO_STD)
        initialise(self, torch_stream(seed, "tokenizer"))

    def patchify(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N I"]:
        """Patches in row-major order, channels last inside a patch (METHOD §2)."""
        check_image_tensor(images)
        if tuple(images.shape[2:]) != self.config.image_size:
            rows, columns = self.config.image_size
            raise DataError(f"this tokenizer needs images (B, 3, {rows}, {columns}), not {tuple(images.shape)}")
        size = self.config.patch_size
        return rearrange(images, "b c (h p1) (w p2) -> b (h w) (p1 p2 c)", p1=size, p2=size)

    def unpatchify(self, patches: Float[Tensor, "B N I"]) -> Float[Tensor, "B 3 H W"]:
        """The inverse of `patchify`."""
        size, rows = self.config.patch_size, self.config.grid[0]
        return rearrange(patches, "b (h w) (p1 p2 c) -> b c (h p1) (w p2)", p1=size, p2=size, h=rows)

    def features(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Inputs of the visual quantizer (B, patches, D) and of the prologue quantizer (B, queries, D')."""
        patches, queries = self.encoder(self.patchify(images).to(self.encoder.input.weight.dtype))
        count = self.composition.visual_queries
        visual = queries[:, :count] if count else patches
        if self.prologue_encoder is not None:
            # A post-hoc prologue does not change the finished visual path (METHOD §4).
            return visual, self.prologue_encoder(patches.detach())[1]
        return visual, queries[:, count:] if self.prologue_quantizer is not None else None

    def quantize(self, images: Float[Tensor, "B 3 H W"]) -> Encoding:
        """Both quantizers' training outputs."""
        visual, prologue = self.features(images)
        if self.prologue_quantizer is None:
            return Encoding(self.visual_quantizer(visual), None)
        quantized: Quantized = self.prologue_quantizer(prologue)
        if quantized.one_hot is None:
            raise ConfigError(
                f"the prologue quantizer {self.config.prologue_quantizer['name']!r} gives no straight-through one-hot, "
                "through which the prior trains the prologue"
            )
        return Encoding(self.visual_quantizer(visual), quantized)

    def forward(
        self, images: Float[Tensor, "B 3 H W"], reconstruct: bool = True
    ) -> tuple[Encoding, Float[Tensor, "B 3 H W"] | None]:
        """The encoding and, with `reconstruct`, the reconstruction. Eval mode also checks values as `encode` does."""
        if not self.training:
            check_image_tensor(images)
            check_model_range(images)
        encoding = self.quantize(images)
        return encoding, self.decode_codes(encoding.visual.codes) if reconstruct else None

    def encode(self, images: Float[Tensor, "B 3 H W"]) -> TokenIds:
        """Images in [-1, 1] → int64 ids: prologue (B, P) and visual (B, N).

        Raises:
            DataError: the size or the dtype is wrong, or values are not finite or exceed ±2.
        """
        check_image_tensor(images)
        check_model_range(images)
        return self.encode_known(images)

    @torch.no_grad()
    def encode_known(self, images: Float[Tensor, "B 3 H W"]) -> TokenIds:
        """`encode` without the check of values, which waits for the device."""
        visual, prologue = self.features(images)
        ids = self.visual_quantizer.encode(visual)
        if self.prologue_quantizer is None or prologue is None:
            return TokenIds(ids[:, :0], ids)
        return TokenIds(self.prologue_quantizer.encode(prologue), ids)

    def decode(self, visual: Int[Tensor, "B N"]) -> Float[Tensor, "B 3 H W"]:
        """Visual ids → images in model range, fp32, not clamped. A wrong number of ids or a wrong id raises a
        `SamplingError`."""
        self.check_visual(visual)
        return self.decode_known(visual.long())

    def check_visual(self, visual: Int[Tensor, "B N"]) -> None:
        """Raise `SamplingError` unless these are visual ids of this tokenizer. This waits for the device."""
        check_ids(visual, "visual", self.config.visual_tokens, self.config.codebook_size)

    @torch.no_grad()
    def decode_known(self, visual: Int[Tensor, "B N"]) -> Float[Tensor, "B 3 H W"]:
        """`decode` without a check of ids, so that it compiles as one graph."""
        return self.decode_codes(self.visual_quantizer.codes(visual))

    def decode_codes(self, codes: Float[Tensor, "B N d"]) -> Float[Tensor, "B 3 H W"]:
        """Codes → images in model range, differentiable."""
        inputs, queries = self.decoder(codes.to(self.decoder.input.weight.dtype))
        h = inputs if self.composition.decoder_queries is None else queries
        return self.unpatchify(head_in_fp32(h, self.out_norm, self.out.weight, self.out.bias))

    def visual_path(self) -> list[nn.Module]:
        """The modules that stay frozen under a post-hoc prologue."""
        return [self.encoder, self.visual_quantizer, self.decoder, self.out_norm, self.out]
