"""The image tokenizer: four variants as compositions of one encoder, two quantizers and one decoder (METHOD §4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

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
from prologue.models.weights import WEIGHTS, load_exactly, read_config, read_tensors, save_model
from prologue.utils.rng import torch_stream
from prologue.utils.serialization import to_dict


def to_model_range(images: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """uint8 to model range: `u / 127.5 − 1` (METHOD §2). Another number format is a `DataError`."""
    if images.dtype != torch.uint8:
        raise DataError(f"to_model_range converts uint8 images of 0…255, not {images.dtype}")
    return images.float() / 127.5 - 1


def to_uint8(images: Float[Tensor, "B 3 H W"]) -> UInt8[Tensor, "B 3 H W"]:
    """Model range to uint8: `clamp(127.5·x + 128, 0, 255)`, truncated (METHOD §2). Integers are a `DataError`."""
    if not images.is_floating_point():
        raise DataError(f"to_uint8 converts floating-point images in [-1, 1], not {images.dtype}")
    return (127.5 * images.float() + 128).clamp(0, 255).to(torch.uint8)


BEYOND = 2.0
"""Model range is [-1, 1]. What is decoded or resized leaves it a little; values beyond this are of another range."""


def check_image_tensor(images: Any) -> None:
    """Raise `DataError` unless this is a floating-point tensor (B, 3, H, W); its values are not looked at."""
    if not isinstance(images, Tensor):
        raise DataError(
            f"images are a tensor (B, 3, H, W) in [-1, 1], not {type(images).__name__}: "
            "to_model_range makes one of a uint8 tensor"
        )
    if images.ndim != 4 or images.shape[1] != 3:
        raise DataError(f"images are a tensor (B, 3, H, W), not {tuple(images.shape)}")
    if not images.is_floating_point():
        raise DataError(f"images are floating point in [-1, 1], not {images.dtype}: to_model_range converts uint8")


def check_model_range(images: Float[Tensor, "B 3 H W"]) -> None:
    """Raise `DataError` for values that are not finite or lie beyond ±2. It waits for the device once."""
    if not images.numel():
        return
    low, high = torch.stack(images.detach().aminmax()).tolist()  # NaN passes through
    if low >= -BEYOND and high <= BEYOND:
        return
    per_image = images.detach().flatten(1).float()
    broken = ~per_image.isfinite().all(1)
    if bool(broken.any()):
        raise DataError(f"image {int(broken.nonzero()[0])} holds values that are not finite (NaN or infinity)")
    number = int((per_image.abs().amax(1) > BEYOND).nonzero()[0])
    raise DataError(
        f"image {number} holds values from {float(per_image[number].min()):g} to {float(per_image[number].max()):g}, "
        "and images lie in [-1, 1]: to_model_range converts uint8; of 0…255 take x / 127.5 - 1"
    )


class QueryTransformer(nn.Module):
    """A linear input layer, learnable queries behind the inputs, and bidirectional blocks over both."""

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
        """Outputs at the inputs, and at the queries (B, 0, D where there are none)."""
        h = self.input(x)
        if self.queries is not None:
            h = torch.cat([h, self.queries.weight.to(h.dtype).expand(len(h), -1, -1)], dim=1)
        h = self.transformer(h)
        return h[:, : self.inputs], h[:, self.inputs :]


@dataclass(frozen=True)
class Encoding:
    """Training outputs of both quantizers; `prologue` is None where the variant has none."""

    visual: Quantized
    prologue: Quantized | None

    @property
    def tokens(self) -> TokenIds:
        visual = self.visual.ids
        return TokenIds(self.prologue.ids if self.prologue is not None else visual[:, :0], visual)

    @classmethod
    def cat(cls, parts: Sequence[Encoding]) -> Encoding:
        """Those of several batches as one, without gradients."""
        visual = Quantized.cat([part.visual for part in parts])
        prologue = [part.prologue for part in parts if part.prologue is not None]
        return cls(visual, Quantized.cat(prologue) if prologue else None)


@dataclass(frozen=True)
class _Composition:
    """How a variant wires its parts."""

    visual_queries: int
    """Queries of the encoder whose outputs become visual codes; 0 where the patches' outputs do."""
    encoder_queries: Positions | None
    """The visual queries, then those of the prologue."""
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


class Tokenizer(nn.Module):
    """Images in model range ↔ `TokenIds`. `seed` draws the initial weights.

    Source: METHOD §2 to §5.
    """

    def __init__(self, config: TokenizerConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
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
            raise DataError(f"this tokenizer takes images (B, 3, {rows}, {columns}), not {tuple(images.shape)}")
        size = self.config.patch_size
        return rearrange(images, "b c (h p1) (w p2) -> b (h w) (p1 p2 c)", p1=size, p2=size)

    def unpatchify(self, patches: Float[Tensor, "B N I"]) -> Float[Tensor, "B 3 H W"]:
        """The inverse of `patchify`."""
        size, rows = self.config.patch_size, self.config.grid[0]
        return rearrange(patches, "b (h w) (p1 p2 c) -> b c (h p1) (w p2)", p1=size, p2=size, h=rows)

    def features(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """What enters the visual (B, N, D) and the prologue quantizer (B, P, D')."""
        patches, queries = self.encoder(self.patchify(images).to(self.encoder.input.weight.dtype))
        count = self.composition.visual_queries
        visual = queries[:, :count] if count else patches
        if self.prologue_encoder is not None:
            # The post-hoc prologue reads a finished visual path and must not disturb it (METHOD §4).
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
        """One training pass: encoding and, where asked, reconstruction.

        Outside of training mode values are checked as `encode` does, which waits for the device.
        """
        if not self.training:
            check_image_tensor(images)
            check_model_range(images)
        encoding = self.quantize(images)
        return encoding, self.decode_codes(encoding.visual.codes) if reconstruct else None

    def encode(self, images: Float[Tensor, "B 3 H W"]) -> TokenIds:
        """Images in [-1, 1] → ids: prologue (B, P) and visual (B, N), int64.

        Another size or number format, values that are not finite or lie beyond ±2 are a `DataError`.
        """
        check_image_tensor(images)
        check_model_range(images)
        return self.encode_known(images)

    @torch.no_grad()
    def encode_known(self, images: Float[Tensor, "B 3 H W"]) -> TokenIds:
        """`encode` for values that are known to lie in the range: it waits for no device."""
        visual, prologue = self.features(images)
        ids = self.visual_quantizer.encode(visual)
        if self.prologue_quantizer is None or prologue is None:
            return TokenIds(ids[:, :0], ids)
        return TokenIds(self.prologue_quantizer.encode(prologue), ids)

    def decode(self, visual: Int[Tensor, "B N"]) -> Float[Tensor, "B 3 H W"]:
        """Visual ids → images in model range, not clamped, fp32. A wrong count or id is a `SamplingError`."""
        self.check_visual(visual)
        return self.decode_known(visual.long())

    def check_visual(self, visual: Int[Tensor, "B N"]) -> None:
        """Raise `SamplingError` unless these are visual ids of this tokenizer. It waits for the device."""
        check_ids(visual, "visual", self.config.visual_tokens, self.config.codebook_size)

    @torch.no_grad()
    def decode_known(self, visual: Int[Tensor, "B N"]) -> Float[Tensor, "B 3 H W"]:
        """`decode` for ids that are known to be right: it looks at no value, so that a compiler takes it whole."""
        return self.decode_codes(self.visual_quantizer.codes(visual))

    def decode_codes(self, codes: Float[Tensor, "B N d"]) -> Float[Tensor, "B 3 H W"]:
        """Codes → images in model range; the gradient passes."""
        inputs, queries = self.decoder(codes.to(self.decoder.input.weight.dtype))
        h = inputs if self.composition.decoder_queries is None else queries
        return self.unpatchify(head_in_fp32(h, self.out_norm, self.out.weight, self.out.bias))

    def visual_path(self) -> list[nn.Module]:
        """The parts that a post-hoc prologue leaves frozen."""
        return [self.encoder, self.visual_quantizer, self.decoder, self.out_norm, self.out]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` into `folder`."""
        save_model(Path(folder), to_dict(self.config), self)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Read what `save_pretrained` wrote, on the CPU in fp32; anything missing or wrong is a `CheckpointError`."""
        path = Path(folder)
        model = cls(read_config(path, TokenizerConfig))
        load_exactly(model, read_tensors(path / WEIGHTS), str(path / WEIGHTS))
        return model.eval()
