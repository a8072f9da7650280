"""The prior: a class-conditional causal transformer over `[prologue ids, EOS, visual ids]` (METHOD §6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prologue.config import PriorConfig, prior_rope_axes
from prologue.errors import SamplingError
from prologue.models.int8 import has_int8
from prologue.models.layers import Dropout, Embedding, Linear, RMSNorm, head_in_fp32, initialise
from prologue.models.rope import Positions
from prologue.models.sequence import SequenceLayout
from prologue.models.transformer import Cache, Transformer
from prologue.models.weights import SavedModel
from prologue.utils.rng import torch_stream


class Prior(SavedModel):
    """Predicts each target of a sequence from the class and earlier targets. `seed` sets the initial weights.

    `layout` converts `TokenIds` to sequences and back. Class `num_classes` is the null class.
    """

    config: PriorConfig
    config_type = PriorConfig

    def __init__(self, config: PriorConfig, seed: int = 0) -> None:
        super().__init__(config)
        self.layout = SequenceLayout(config.layout)
        self.num_classes = config.num_classes
        width = config.transformer.width
        self.class_embedding = Embedding(config.num_classes + 1, width, config.embedding_std)
        self.token_embedding = Embedding(self.layout.vocabulary, width, config.embedding_std)
        self.drop = Dropout(config.dropout)
        positions = Positions.indices(self.layout.length, axis=0)
        table = positions.table(prior_rope_axes(config.transformer))
        self.transformer = Transformer(config.transformer, table, causal=True, bias=False, dropout=config.dropout)
        self.out_norm = RMSNorm(width)
        self.out = None if config.tied else Linear(width, self.layout.vocabulary, bias=False)
        initialise(self, torch_stream(seed, "prior"))

    @property
    def null_class(self) -> int:
        return self.num_classes

    @property
    def precision(self) -> str:
        """`int8` for int8 linear layers, else the dtype of the weights."""
        return "int8" if has_int8(self) else str(self.token_embedding.weight.dtype).removeprefix("torch.")

    def forward(
        self,
        sequence: Int[Tensor, "B T"],
        class_ids: Int[Tensor, " B"],
        *,
        visual_dropout: Bool[Tensor, " B"] | None = None,
        prologue_one_hot: Float[Tensor, "B P K_p"] | None = None,
    ) -> Float[Tensor, "B T V"]:
        """Teacher-forced logits, fp32: `logits[:, t]` predicts `sequence[:, t]`.

        `visual_dropout` marks samples whose visual inputs are replaced by EOS. With `prologue_one_hot` the prologue is
        embedded as `one_hot @ token_embedding`, the path of the encoder's gradient (METHOD §7). A wrong shape or dtype
        raises a `SamplingError`. Ids are not checked, since that waits for the device; `layout.pack` checks them.
        """
        self._check_kinds(sequence, class_ids)
        x = self.embed(self.layout.inputs(sequence, visual_dropout))
        if prologue_one_hot is not None:
            rows = self.token_embedding.weight[self.layout.prologue_offset : self.layout.eos_id]
            x = self.layout.place_prologue(x, prologue_one_hot.to(rows.dtype) @ rows)
        return self.logits(self.hidden(torch.cat([self.begin(class_ids), x], dim=1)))

    def _check_kinds(self, sequence: Any, class_ids: Any) -> None:
        length = self.layout.length
        for name, ids, shape in (("a sequence", sequence, f"(B, {length})"), ("class ids", class_ids, "(B,)")):
            if not isinstance(ids, Tensor) or ids.dtype not in (torch.int64, torch.int32):
                kind = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
                raise SamplingError(f"the prior takes {name} as an int64 tensor {shape}, not {kind}")
        if sequence.shape[1:] != (length,) or class_ids.shape != sequence.shape[:1]:
            raise SamplingError(
                f"the prior takes sequences (B, {length}) and a class id for each, "
                f"not {tuple(sequence.shape)} and {tuple(class_ids.shape)}"
            )

    def begin(self, class_ids: Int[Tensor, " B"]) -> Float[Tensor, "B 1 D"]:
        """The BOS input of each class."""
        out: Tensor = self.class_embedding(class_ids)[:, None]
        return out

    def embed(self, ids: Int[Tensor, "B L"]) -> Float[Tensor, "B L D"]:
        """The embedding of ids of the prior's vocabulary."""
        out: Tensor = self.token_embedding(ids)
        return out

    def hidden(
        self,
        x: Float[Tensor, "B L D"],
        caches: Sequence[Cache] | None = None,
        positions: slice | Int[Tensor, " L"] | None = None,
    ) -> Float[Tensor, "B L D"]:
        """Block outputs at these input positions, by default the first L; `caches` hold the earlier ones."""
        out: Tensor = self.transformer(self.drop(x), caches, positions)
        return out

    def logits(
        self, hidden: Float[Tensor, "B L D"], first_id: int = 0, last_id: int | None = None
    ) -> Float[Tensor, "B L V"]:
        """Logits of the ids `first_id:last_id`, fp32."""
        if self.out is None:
            return head_in_fp32(hidden, self.out_norm, self.token_embedding.weight[first_id:last_id])
        with torch.autocast(hidden.device.type, enabled=False):
            normed = self.out_norm(hidden.to(self.token_embedding.weight.dtype))
            return self.out.rows(normed, first_id, last_id).float()

    def new_cache(self, rows: int) -> Float[Tensor, "2 depth rows heads T d"]:
        """An empty static cache, keys then values, for `rows` sequences."""
        size = self.config.transformer
        weight = self.token_embedding.weight
        shape = (2, size.depth, rows, size.heads, self.layout.length, size.head_dim)
        return torch.zeros(shape, dtype=weight.dtype, device=weight.device)

    def check_classes(self, class_ids: Int[Tensor, " B"]) -> None:
        """Raise `SamplingError` for a class that the prior does not have. This waits for the device."""
        if class_ids.dtype not in (torch.int64, torch.int32):
            raise SamplingError(f"class ids are int64, not {class_ids.dtype}")
        if class_ids.numel() and (int(class_ids.min()) < 0 or int(class_ids.max()) > self.num_classes):
            raise SamplingError(
                f"class ids must lie in 0…{self.num_classes} ({self.num_classes} is the null class), "
                f"not {class_ids.tolist()}"
            )
