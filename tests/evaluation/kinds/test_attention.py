"""Attention weights against the block's own output, and a prior made by hand that looks where it is known."""

from __future__ import annotations

import pytest
import torch

from prologue.errors import EvaluationError, SamplingError
from prologue.evaluation.kinds.attention import (
    attention_weights,
    evaluate_attention,
    uniform_attention,
    visual_attention,
)
from prologue.models.prior import Prior
from prologue.models.sequence import TokenIds
from prologue.utils.rng import torch_stream

CLASSES = torch.arange(7) % 3


def random_tokens(count: int) -> TokenIds:
    generator = torch_stream(0, "tokens")
    return TokenIds(
        torch.randint(0, 8, (count, 3), generator=generator), torch.randint(0, 16, (count, 6), generator=generator)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_times_values_are_the_blocks_own_output(tiny_models, dtype: torch.dtype) -> None:
    _, prior = tiny_models()
    prior = prior.to(dtype)
    transformer = prior.transformer
    x = torch.randn(5, 10, 24, generator=torch_stream(3, "x")).to(dtype)
    rope = (transformer.cos, transformer.sin)
    for block in transformer.blocks:
        attention, normed = block.attn, block.norm1(x)
        weights = attention_weights(attention, normed, rope)
        assert weights.shape == (5, 2, 10, 10)
        assert torch.equal(weights.triu(1), torch.zeros_like(weights))
        torch.testing.assert_close(weights.sum(-1), torch.ones(5, 2, 10))
        v = attention.qkv(normed).unflatten(-1, (3, 2, -1))[:, :, 2].transpose(1, 2)
        mixed = (weights @ v.float()).to(dtype).transpose(1, 2).flatten(2)
        rounding = 1e-5 if dtype == torch.float32 else 0.03
        own = attention(normed, rope, True, None)
        torch.testing.assert_close(attention.proj(mixed), own, atol=rounding, rtol=rounding)
        torch.testing.assert_close(attention_weights(attention, normed, rope, first=4), weights[:, :, 4:])
        x = block(x, rope, causal=True)


def test_blocks_see_what_they_see_in_the_prior(tiny_models) -> None:
    _, prior = tiny_models()
    tokens, seen = random_tokens(7), []
    for block in prior.transformer.blocks:
        block.norm1.register_forward_hook(lambda module, given, out: seen.append(given[0]))
    with torch.inference_mode():
        prior(prior.layout.pack(tokens), CLASSES)
        expected = [seen.pop(0) for _ in prior.transformer.blocks]
        blocks = list(visual_attention(prior, tokens, CLASSES))
    assert [weights.shape for weights in blocks] == [(7, 2, 6, 10)] * 2
    for given in seen:
        assert any(torch.allclose(given, each) for each in expected)
    assert torch.allclose(seen[-1], expected[-1])


def made_by_hand(prior: Prior) -> Prior:
    """Block 1, head 1 looks at prologue id 5 alone, wherever it stands; all other heads look at everything alike."""
    with torch.no_grad():
        for table, marked in ((prior.class_embedding, None), (prior.token_embedding, prior.layout.prologue_offset + 5)):
            table.weight.zero_()
            table.weight[:, 0] = 1
            table.weight[:, 1] = -1
            if marked is not None:
                table.weight[marked, 1] = 1
        for block in prior.transformer.blocks:
            block.attn.qkv.weight[: 2 * 24] = 0  # queries, then keys: scores of 0
        attention = prior.transformer.blocks[0].attn
        unturned = 8  # behind the axis of the index, which is the only one that turns
        attention.qkv.weight[unturned, 0] = 1
        attention.qkv.weight[24 + unturned, 1] = 1
        prior.transformer.blocks[0].norm1.weight.zero_()
        for norm in (attention.q_norm, attention.k_norm):
            norm.weight.fill_(9)
    return prior


def test_a_prior_made_by_hand(tiny_models) -> None:
    prior = made_by_hand(tiny_models()[1])
    tokens = random_tokens(7)
    tokens.prologue.copy_(torch.tensor([[1, 5, 2]]).expand(7, 3))
    record = evaluate_attention(prior, tokens, CLASSES, batch=3)
    uniform = uniform_attention(prior.layout)
    assert uniform.tolist() == pytest.approx([1 / 5, 1 / 6, 1 / 7, 1 / 8, 1 / 9, 1 / 10])
    one = float(uniform.mean())
    heads = torch.tensor(record["by_head"])
    torch.testing.assert_close(heads[0, 0], torch.tensor([0.0, 1, 0]), atol=1e-6, rtol=0)
    for block, head in ((0, 1), (1, 0), (1, 1)):
        torch.testing.assert_close(heads[block, head], torch.full((3,), one), atol=1e-6, rtol=0)
    assert record["strongest"]["block"] == record["strongest"]["head"] == 0
    assert record["strongest"]["mass"] == pytest.approx(1)
    assert record["mass"] == pytest.approx((1 + 3 * 3 * one) / 4)
    assert record["mass_uniform"] == pytest.approx(3 * one)
    assert record["mass_ratio"] == pytest.approx(record["mass"] / (3 * one))
    assert [part["ratio"] for part in record["by_prologue_position"]] == pytest.approx(
        [0.75, (1 / one + 3) / 4, 0.75], abs=1e-5
    )
    assert record["bos"] == pytest.approx(0.75 * one)
    assert record["visual"] == pytest.approx(0.75 * (1 - 5 * one))
    assert record["by_position"][0] == pytest.approx((0.75 * uniform).tolist(), abs=1e-6)
    assert record["by_position"][1] == pytest.approx((0.25 + 0.75 * uniform).tolist(), abs=1e-6)


def test_sums_agree_and_the_batch_does_not_matter(tiny_models) -> None:
    _, prior = tiny_models()
    tokens = random_tokens(7)
    prior.train()
    one, other = (evaluate_attention(prior, tokens, CLASSES, batch=batch) for batch in (2, 16))
    assert prior.training
    for name in ("mass", "mass_low", "bos_ratio", "eos", "visual_high"):
        assert one[name] == pytest.approx(other[name], rel=1e-5)
    assert one["mass"] + one["bos"] + one["eos"] + one["visual"] == pytest.approx(1)
    assert one["mass_uniform"] + one["bos_uniform"] + one["eos_uniform"] + one["visual_uniform"] == pytest.approx(1)
    for mean in (torch.tensor(one["head_mass"]).mean(), torch.tensor(one["mass_by_position"]).mean()):
        assert one["mass"] == pytest.approx(float(mean), rel=1e-5)
    assert sum(part["share"] for part in one["by_prologue_position"]) == pytest.approx(one["mass"])
    assert one["mass_low"] < one["mass"] < one["mass_high"]


def test_what_cannot_be_measured_is_refused(tiny_models) -> None:
    tokens = random_tokens(7)
    with pytest.raises(EvaluationError, match="no prologue"):
        evaluate_attention(tiny_models(prior_prologue=False)[1], tokens, CLASSES)
    with pytest.raises(EvaluationError, match="every image needs a class"):
        evaluate_attention(tiny_models()[1], tokens, CLASSES[:3])
    with pytest.raises(SamplingError, match="class ids"):
        evaluate_attention(tiny_models()[1], tokens, CLASSES + 9)
