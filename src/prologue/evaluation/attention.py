"""Where the prior looks: attention of the positions that predict visual tokens, on each prologue position."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from prologue.errors import EvaluationError
from prologue.evaluation.metrics.intervals import mean_interval
from prologue.evaluation.runs import ProgressCallback, Record, evaluating, unwatched
from prologue.models.prior import Prior
from prologue.models.rope import RopeTable, rotate
from prologue.models.sequence import SequenceLayout, TokenIds
from prologue.models.transformer import Attention, Block


def attention_weights(
    attention: Attention, x: Float[Tensor, "B L D"], rope: RopeTable, first: int = 0
) -> Float[Tensor, "B H L-first L"]:
    """Causal attention weights of one layer for its normed input `x`, of the positions from `first` on, in fp32.

    Queries and keys are the layer's own; the layer itself never holds the weights, its fused product makes none.
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
    """Block by block, how the inputs that predict each visual token look at all inputs, BOS first; teacher-forced."""
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
    """What each visual position gives to any one earlier input if it looks at all alike: 1 over their number."""
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
    """The share of visual positions' attention that falls on BOS, each prologue position, EOS and visual inputs.

    Shares (0…1) are means over visual positions, blocks, heads and images, with 95 % intervals over images; `…_ratio`
    is a share over that of uniform attention. `by_head` is blocks × heads × P, `head_mass` blocks × heads (the sum over
    the prologue) with its ends, `by_position` P × N and `mass_by_position` N (means over blocks, heads and images),
    `uniform_by_position` N, for each prologue position. Without a prologue an `EvaluationError`.
    """
    layout = prior.layout
    if not layout.has_prologue:
        raise EvaluationError("this run's prior has no prologue to look at: measure a run with prologue tokens")
    if not len(tokens) or len(tokens) != len(class_ids):
        raise EvaluationError(f"{len(tokens)} images with {len(class_ids)} classes: one class for each of some images")
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
    """Shares and their ratios to uniform attention; columns are BOS, the prologue's positions, EOS, visual."""
    count = shares.shape[1] - 3
    one = float(uniform.mean())
    parts = {"mass": (shares[:, 1 : 1 + count].sum(1), count * one), "bos": (shares[:, 0], one)}
    parts |= {"eos": (shares[:, 1 + count], one), "visual": (shares[:, 2 + count], 1 - (count + 2) * one)}
    record: Record = {}
    for name, (values, expected) in parts.items():
        record |= mean_interval(values).fields(name) | {f"{name}_uniform": expected}
        ratio = mean_interval(values / expected) if expected > 1e-12 else None  # one visual token sees no other
        record |= ratio.fields(f"{name}_ratio") if ratio is not None else {}
    record["by_prologue_position"] = [
        {"position": number, "uniform": one}
        | mean_interval(shares[:, 1 + number]).fields("share")
        | mean_interval(shares[:, 1 + number] / one).fields("ratio")
        for number in range(count)
    ]
    return record


def _heads(heads: Float64[Tensor, "n blocks heads"]) -> Record:
    """Mass on the prologue of every head with its ends, and the head that looks at it most."""
    intervals = [[mean_interval(heads[:, b, h]) for h in range(heads.shape[2])] for b in range(heads.shape[1])]
    record: Record = {
        f"head_mass{end}": [[getattr(each, field) for each in row] for row in intervals]
        for end, field in (("", "value"), ("_low", "low"), ("_high", "high"))
    }
    block, head = divmod(int(heads.mean(0).argmax()), heads.shape[2])
    return record | {"strongest": {"block": block, "head": head} | intervals[block][head].fields("mass")}
