"""The paper's two quantizers (METHOD §5): the nearest row of an l2-normalised codebook by cosine, in fp32."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from prologue.models.layers import Linear
from prologue.models.quantizers.base import Quantized, Quantizer, Rows
from prologue.utils.transfer import send


class CosineQuantizer(Quantizer):
    """`z = l2norm(linear(h))`; the id is the row of the normalised codebook with the largest cosine."""

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
        return self.logits(self.project(h)).argmax(-1)

    def codes(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T d"]:
        return F.embedding(ids, self.rows())

    def logits(self, z: Tensor) -> Float[Tensor, "B T K"]:
        """Cosines of `z` with all codes."""
        with torch.autocast(z.device.type, enabled=False):
            return z @ self.rows().T

    def start_from(self, z: Float[Tensor, "n d"], generator: torch.Generator) -> Sequence[Rows]:
        centres = spherical_kmeans(z, self.size, generator)
        return [Rows("codebook", torch.arange(self.size, device=centres.device), centres)]

    def reset_unused(
        self, z: Float[Tensor, "B T d"], counts: Int[Tensor, " K"], generator: torch.Generator
    ) -> Sequence[Rows]:
        """Reset unused codes to distinct vectors of `z`, drawn without replacement. With too few vectors, some codes
        stay."""
        unused = torch.from_numpy(np.flatnonzero(counts.numpy() == 0))
        if not len(unused):
            return ()
        pool = z.flatten(0, 1)
        count = min(len(unused), len(pool))
        chosen = torch.randperm(len(pool), generator=generator)[:count]
        rows = torch.randperm(len(unused), generator=generator)[:count]
        return [Rows("codebook", send(unused[rows], pool.device), pool[send(chosen, pool.device)])]


class VisualQuantizer(CosineQuantizer):
    """Straight-through codes and the VQ loss `0.25·mean((sg(q) − z)²) + mean((q − sg(z))²)`."""

    commitment = 0.25

    def forward(self, h: Float[Tensor, "B T D"]) -> Quantized:
        z = self.project(h)
        with torch.no_grad():
            ids = self.logits(z).argmax(-1)
        q = self.codes(ids)
        loss = self.commitment * F.mse_loss(z, q.detach()) + F.mse_loss(q, z.detach())
        return Quantized(ids, z, z + (q - z).detach(), None, loss)


class PrologueQuantizer(CosineQuantizer):
    """Straight-through one-hot of a softmax at temperature τ, without a loss."""

    def __init__(self, width: int, code_dim: int, size: int, temperature: float) -> None:
        super().__init__(width, code_dim, size)
        self.temperature = temperature

    def forward(self, h: Float[Tensor, "B T D"]) -> Quantized:
        z = self.project(h)
        logits = self.logits(z)
        ids = logits.argmax(-1)
        probability = (logits / self.temperature).softmax(-1)
        # `F.one_hot` would read the ids on the host.
        hard = torch.zeros_like(probability).scatter_(-1, ids[..., None], 1.0)
        one_hot = probability + (hard - probability).detach()
        return Quantized(ids, z, self.codes(ids), one_hot, z.new_zeros(()))


@torch.no_grad()
def monitored_entropies(
    quantizer: CosineQuantizer, z: Float[Tensor, "B T d"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Sample and batch entropy in nats of `softmax(logits / 0.01)`; metrics, not losses (METHOD §5)."""
    logits = quantizer.logits(z).flatten(0, 1) / 0.01
    log_p = logits.log_softmax(-1)
    p = log_p.exp()
    sample = -(p * log_p).sum(-1).mean()
    mean = p.mean(0)
    batch = -(mean * (mean + 1e-5).log()).sum()
    return sample, batch


def spherical_kmeans(
    points: Float[Tensor, "n d"], count: int, generator: torch.Generator, rounds: int = 20
) -> Float[Tensor, "k d"]:
    """`count` unit centres of unit `points` by cosine k-means; an empty cluster takes the farthest point.

    With fewer points than centres, points are repeated with a little noise.
    """
    if len(points) < count:
        copies = -(-count // len(points))
        noise = send(torch.randn(copies * len(points), points.shape[1], generator=generator), points.device)
        points = F.normalize(points.repeat(copies, 1) + 0.01 * noise.to(points.dtype), dim=-1)
    # Early encoder outputs lie so close together that their cosines round to one number. Offsets from the mean keep
    # them apart, and for unit vectors the nearest point is the one with the largest cosine.
    mean = points.mean(0)
    offsets = points - mean
    centres = points[send(torch.randperm(len(points), generator=generator)[:count], points.device)]
    for _ in range(rounds):
        shifted = centres - mean
        nearness, owner = (offsets @ shifted.T - shifted.square().sum(-1) / 2).max(dim=1)
        sums = torch.zeros_like(centres).index_add_(0, owner, offsets)
        # `bincount` would wait for the device to learn the largest id.
        sizes = torch.zeros(count, dtype=torch.int64, device=points.device)
        sizes.scatter_add_(0, owner, torch.ones_like(owner))
        centres = F.normalize(sums / sizes.clamp(min=1)[:, None] + mean, dim=-1)
        empty = sizes == 0
        distance = offsets.square().sum(-1) / 2 - nearness
        farthest = distance.argsort(stable=True, descending=True)[:count]
        place = (empty.cumsum(0) - 1).clamp_min(0)  # index of an empty cluster among the empty ones
        centres = torch.where(empty[:, None], points[farthest[place]], centres)
    return centres
