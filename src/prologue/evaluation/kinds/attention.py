"""`prologue evaluate attention`: attention of the positions that predict visual tokens on each prologue position."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from prologue.errors import EvaluationError
from prologue.evaluation.codes import encode_images
from prologue.evaluation.kinds.base import (
    HeldOutOptions,
    Kind,
    Measurement,
    NoFigure,
    Prepared,
    Row,
    SampledSubject,
    images_sentence,
    row,
)
from prologue.evaluation.metrics.intervals import mean_interval
from prologue.evaluation.runs import ProgressCallback, Record, check_paired, evaluating, unwatched
from prologue.models.prior import Prior
from prologue.models.rope import RopeTable, rotate
from prologue.models.sequence import SequenceLayout, TokenIds
from prologue.models.transformer import Attention as AttentionLayer
from prologue.models.transformer import Block
from prologue.report.figures import grid_maps, heat_map
from prologue.utils.progress import progress


@dataclass(frozen=True, kw_only=True)
class AttentionOptions(HeldOutOptions):
    count: int | None = 256
    """Number of held-out images, chosen at random."""
    batch: Annotated[int, NoFigure()] = 16
    """Images per batch; bounds the memory."""


class Attention(Kind[AttentionOptions]):
    """How much visual positions attend to the prologue, by block, head and position."""

    summary = "how much visual positions attend to the prologue"
    options = AttentionOptions

    def prepare(self, options: AttentionOptions) -> Prepared:
        subject = SampledSubject.open(options, prologue=True)
        indices = subject.choose(options.count, "attention")
        class_ids, notes = subject.classes(indices)
        grid = subject.tokenizer.config.grid

        def measure() -> Measurement:
            shared: dict[str, Any] = {"batch": options.batch, "watch": progress}
            tokens = encode_images(subject.tokenizer, subject.split.images, indices, **shared)
            record = evaluate_attention(subject.prior, tokens, class_ids, split=subject.split.name, **shared)
            by_position = np.array(record["by_position"]) / np.array(record["uniform_by_position"])
            names = [f"position {number}" for number in range(len(by_position))]
            heads = 100 * np.array(record["head_mass"])
            pictures = {
                "heads": heat_map(
                    "Attention of visual positions to the prologue", "head", "block", heads, "% of attention"
                ),
                "positions": grid_maps(
                    "Attention to each prologue position, over the image",
                    names,
                    by_position.reshape(-1, *grid),
                    "attention / uniform attention",
                ),
            }
            return Measurement(subject.noted(record, *notes), pictures)

        return Prepared(options, subject.facts(), measure)

    def rows(self, record: Record) -> Iterator[Row]:
        labels = {"mass": "the prologue", "bos": "BOS", "eos": "EOS", "visual": "visual tokens and itself"}
        for name, label in labels.items():
            yield row(f"attention to {label}", record, name, ".1%")
            yield "  uniform attention", f"{record[f'{name}_uniform']:.1%}", ""
            if f"{name}_ratio" in record:
                yield row("  ratio", record, f"{name}_ratio", ".2f")
        for part in record["by_prologue_position"]:
            yield row(f"prologue position {part['position']}, ratio to uniform", part, "ratio", ".2f")
        strongest = record["strongest"]
        label = f"largest attention to the prologue: block {strongest['block']}, head {strongest['head']}"
        yield row(label, strongest, "mass", ".1%")

    def sentences(self, record: Record) -> Iterator[str]:
        yield images_sentence(record)
        yield (
            "Figures are shares of the attention of the positions that predict visual tokens (teacher forcing): means "
            f"over these positions, {record['blocks']} blocks and {record['heads']} heads, with intervals over images. "
            "Each position attends to BOS, the prologue, EOS, earlier visual tokens and itself; uniform attention "
            "weights them equally."
        )
        ratio, low, high = (record[f"mass_ratio{end}"] for end in ("", "_low", "_high"))
        if low is None or low <= 1 <= high:
            yield f"The prologue gets {ratio:.2f} times uniform attention, not distinguishable from 1 at this N."
        else:
            amount = "more" if ratio > 1 else "less"
            yield f"The prologue gets {amount} than uniform attention: {ratio:.2f} times as much."
        yield (
            "Attention does not show what a position uses: for that, see use and gain of "
            "`prologue evaluate likelihood`."
        )


def attention_weights(
    attention: AttentionLayer, x: Float[Tensor, "B L D"], rope: RopeTable, first: int = 0
) -> Float[Tensor, "B H L-first L"]:
    """Causal attention weights of one layer for its normed input `x`, of the positions from `first` on, in fp32.

    The layer itself uses a fused product, which does not return its weights.
    """
    q, k, _ = attention.qkv(x).unflatten(-1, (3, attention.heads, -1)).unbind(2)
    q = rotate(attention.q_norm(q), *rope).transpose(1, 2)[:, :, first:].float()
    k = rotate(attention.k_norm(k), *rope).transpose(1, 2).float()
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).tril(first)
    weights: Tensor = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return weights


def visual_attention(
    prior: Prior, tokens: TokenIds, class_ids: Int64[Tensor, " b"]
) -> Iterator[Float[Tensor, "b heads N T"]]:
    """For each block, the attention of the inputs that predict visual tokens to all inputs, BOS first."""
    layout = prior.layout
    x = prior.embed(layout.inputs(layout.pack(tokens)))
    x = torch.cat([prior.begin(class_ids), x], dim=1)
    transformer = prior.transformer
    rope = (transformer.cos[: x.shape[1]], transformer.sin[: x.shape[1]])
    for block in transformer.blocks:
        assert isinstance(block, Block)
        yield attention_weights(block.attn, block.norm1(x), rope, first=layout.visual_start)
        x = block(x, rope, causal=True)


def uniform_attention(layout: SequenceLayout) -> Float64[Tensor, " N"]:
    """The uniform attention of each visual position to one earlier input: 1 over the number of its inputs."""
    return 1 / torch.arange(layout.visual_start + 1, layout.length + 1, dtype=torch.float64)


def evaluate_attention(
    prior: Prior,
    tokens: TokenIds,
    class_ids: Int64[Tensor, " n"],
    *,
    split: str = "validation",
    batch: int = 16,
    watch: ProgressCallback = unwatched,
) -> Record:
    """The attention of visual positions to BOS, each prologue position, EOS and visual inputs.

    Shares (0…1) are means over visual positions, blocks, heads and images, with 95 % intervals over images; `…_ratio`
    is a share over that of uniform attention. `by_head` is blocks × heads × P, `head_mass` blocks × heads (the sum over
    the prologue) with its ends, `by_position` P × N and `mass_by_position` N (means over blocks, heads and images),
    `uniform_by_position` N, for each prologue position. A prior without a prologue is an `EvaluationError`.
    """
    layout = prior.layout
    if not layout.has_prologue:
        raise EvaluationError("the prior has no prologue to attend to: measure a run whose prior has one")
    check_paired(tokens, class_ids)
    prior.check_classes(class_ids)
    size, count, device = prior.config.transformer, layout.prologue_tokens, prior.token_embedding.weight.device
    shares = torch.zeros(len(tokens), count + 3, dtype=torch.float64)
    heads = torch.zeros(len(tokens), size.depth, size.heads, dtype=torch.float64)
    by_head = torch.zeros(size.depth, size.heads, count, dtype=torch.float64)
    by_position = torch.zeros(count, layout.visual_tokens, dtype=torch.float64)
    with evaluating(prior):
        for start in watch(range(0, len(tokens), batch), "attention"):
            rows = slice(start, start + batch)
            blocks = visual_attention(prior, tokens[rows].to(device), class_ids[rows].to(device))
            for number, weights in enumerate(blocks):
                bos, prologue, eos, visual = layout.split_inputs(weights.cpu().double())
                groups = [bos, prologue, eos, visual.sum(-1, keepdim=True)]
                shares[rows] += torch.cat(groups, dim=-1).mean((1, 2)) / size.depth
                heads[rows, number] = prologue.sum(-1).mean(2)
                by_head[number] += prologue.mean(2).sum(0) / len(tokens)
                by_position += prologue.mean(1).sum(0).T / (size.depth * len(tokens))
    record: Record = {"kind": "attention", "n": len(tokens), "split": split, "views": "center"}
    record |= {"blocks": size.depth, "heads": size.heads, "prologue_tokens": count}
    record |= {"visual_tokens": layout.visual_tokens}
    record |= _shares(shares, uniform_attention(layout)) | _heads(heads)
    record |= {"by_head": by_head.tolist(), "by_position": by_position.tolist()}
    record |= {"mass_by_position": by_position.sum(0).tolist()}
    return record | {"uniform_by_position": uniform_attention(layout).tolist(), "notes": []}


def _shares(shares: Float64[Tensor, "n P+3"], uniform: Float64[Tensor, " N"]) -> Record:
    """Shares and their ratios to uniform attention; the columns are BOS, prologue positions, EOS and visual inputs."""
    count = shares.shape[1] - 3
    one = float(uniform.mean())
    parts = {"mass": (shares[:, 1 : 1 + count].sum(1), count * one), "bos": (shares[:, 0], one)}
    parts |= {"eos": (shares[:, 1 + count], one), "visual": (shares[:, 2 + count], 1 - (count + 2) * one)}
    record: Record = {}
    for name, (values, expected) in parts.items():
        record |= mean_interval(values).fields(name) | {f"{name}_uniform": expected}
        if expected > 1e-12:  # a single visual token has no earlier one
            record |= mean_interval(values / expected).fields(f"{name}_ratio")
    record["by_prologue_position"] = [
        {"position": number, "uniform": one}
        | mean_interval(shares[:, 1 + number]).fields("share")
        | mean_interval(shares[:, 1 + number] / one).fields("ratio")
        for number in range(count)
    ]
    return record


def _heads(heads: Float64[Tensor, "n blocks heads"]) -> Record:
    """The attention of every head to the prologue with its interval, and the head with the largest."""
    intervals = [[mean_interval(heads[:, b, h]) for h in range(heads.shape[2])] for b in range(heads.shape[1])]
    record: Record = {
        f"head_mass{end}": [[getattr(each, field) for each in row] for row in intervals]
        for end, field in (("", "value"), ("_low", "low"), ("_high", "high"))
    }
    block, head = divmod(int(heads.mean(0).argmax()), heads.shape[2])
    return record | {"strongest": {"block": block, "head": head} | intervals[block][head].fields("mass")}
