"""The paper's two vector quantizers (METHOD §5): both look up l2-normalised rows by cosine similarity, in fp32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from prologue.models.layers import Linear


@dataclass(frozen=True)
class Quantized:
    """What a quantizer makes of (B, T, D) features.

    `ids` (B, T) int64; `z` (B, T, d) the normalised projections; `codes` (B, T, d) what the decoder gets, straight
    through; `one_hot` (B, T, K) straight through, where the quantizer offers it; `loss` a scalar, 0 where it has none.
    """

    ids: Int[Tensor, "B T"]
    z: Float[Tensor, "B T d"]
    codes: Float[Tensor, "B T d"]
    one_hot: Float[Tensor, "B T K"] | None
    loss: Float[Tensor, ""]

    @classmethod
    def cat(cls, parts: Sequence[Quantized]) -> Quantized:
        """Those of several batches as one, without gradients and one-hots; the loss is their mean."""
        ids, z, codes = (torch.cat([getattr(part, name).detach() for part in parts]) for name in ("ids", "z", "codes"))
        return cls(ids, z, codes, None, torch.stack([part.loss.detach() for part in parts]).mean())


class Quantizer(Protocol):
    """What the tokenizer asks of a quantizer; others than the paper's fit in by offering the same."""

    def encode(self, h: Tensor) -> Tensor:
        """(B, T, D) → ids (B, T)."""

    def codes(self, ids: Tensor) -> Tensor:
        """Ids (B, T) → codes (B, T, d)."""

    def __call__(self, h: Tensor) -> Quantized:
        """The training output."""


class CosineQuantizer(nn.Module):
    """`z = l2norm(linear(h))`, ids by the largest cosine with the codebook's normalised rows."""

    def __init__(self, width: int, code_dim: int, size: int) -> None:
        super().__init__()
        self.proj = Linear(width, code_dim)
        self.codebook = nn.Parameter(torch.empty(size, code_dim))

    def initialise(self, generator: torch.Generator) -> None:
        nn.init.normal_(self.codebook, std=self.codebook.shape[1] ** -0.5, generator=generator)

    @property
    def size(self) -> int:
        return self.codebook.shape[0]

    def rows(self) -> Float[Tensor, "K d"]:
        """The normalised codebook."""
        return F.normalize(self.codebook.float(), dim=-1)

    def project(self, h: Tensor) -> Float[Tensor, "B T d"]:
        with torch.autocast(h.device.type, enabled=False):
            bias = None if self.proj.bias is None else self.proj.bias.float()
            return F.normalize(F.linear(h.float(), self.proj.weight.float(), bias), dim=-1)

    def encode(self, h: Float[Tensor, "B T D"]) -> Int[Tensor, "B T"]:
        return self._logits(self.project(h)).argmax(-1)

    def codes(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T d"]:
        return F.embedding(ids, self.rows())

    def _logits(self, z: Tensor) -> Float[Tensor, "B T K"]:
        with torch.autocast(z.device.type, enabled=False):
            return z @ self.rows().T


class VisualQuantizer(CosineQuantizer):
    """Straight-through codes and the VQ loss `0.25·mean((sg(q) − z)²) + mean((q − sg(z))²)`."""

    commitment = 0.25

    def forward(self, h: Float[Tensor, "B T D"]) -> Quantized:
        z = self.project(h)
        with torch.no_grad():
            ids = self._logits(z).argmax(-1)
        q = self.codes(ids)
        loss = self.commitment * F.mse_loss(z, q.detach()) + F.mse_loss(q, z.detach())
        return Quantized(ids, z, z + (q - z).detach(), None, loss)


class PrologueQuantizer(CosineQuantizer):
    """Straight-through one-hot of a softmax at temperature τ; no loss of its own."""

    def __init__(self, width: int, code_dim: int, size: int, temperature: float) -> None:
        super().__init__(width, code_dim, size)
        self.temperature = temperature

    def forward(self, h: Float[Tensor, "B T D"]) -> Quantized:
        z = self.project(h)
        logits = self._logits(z)
        ids = logits.argmax(-1)
        probability = (logits / self.temperature).softmax(-1)
        # Not `one_hot`, which looks at the ids' values on the host.
        hard = torch.zeros_like(probability).scatter_(-1, ids[..., None], 1.0)
        one_hot = probability + (hard - probability).detach()
        return Quantized(ids, z, self.codes(ids), one_hot, z.new_zeros(()))


@torch.no_grad()
def monitored_entropies(
    quantizer: CosineQuantizer, z: Float[Tensor, "B T d"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Sample and batch entropy in nats of `softmax(logits / 0.01)` (METHOD §5); watched, never trained on."""
    logits = quantizer._logits(z).flatten(0, 1) / 0.01
    log_p = logits.log_softmax(-1)
    p = log_p.exp()
    sample = -(p * log_p).sum(-1).mean()
    mean = p.mean(0)
    batch = -(mean * (mean + 1e-5).log()).sum()
    return sample, batch
