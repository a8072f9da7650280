"""Use of codebooks by hand, and the images of a code."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prologue.config import DataConfig
from prologue.data.embedded.shapes import ShapesSet
from prologue.errors import EvaluationError
from prologue.evaluation.codes import CodedImages, encode_with_nearness
from prologue.evaluation.kinds.codebook import (
    check_code,
    code_record,
    evaluate_codebook,
    frequent_codes,
    nearest_images,
)
from prologue.models.sequence import TokenIds
from prologue.models.tokenizer import to_model_range

TOKENS = TokenIds(torch.tensor([[0, 2], [0, 2], [1, 2], [3, 2]]), torch.tensor([[0], [1], [0], [1]]))


def test_figures_by_hand() -> None:
    record = evaluate_codebook(TOKENS, 4, 8)
    assert (record["n"], record["split"]) == (4, "validation")
    # Position 0 holds 0, 0, 1, 3: 1.5 bits. Position 1 holds 2 alone: none.
    assert record["prologue_entropy_bits"] == pytest.approx([1.5, 0])
    assert record["prologue_entropy_bits_mean"] == pytest.approx(0.75)
    assert record["prologue_used_by_position"] == [3, 1]
    assert (record["prologue_used"], record["prologue_dead"], record["prologue_usage"]) == (4, 4, 0.5)
    assert record["prologue_counts"] == [4, 2, 1, 1]
    assert record["prologue_perplexity"] == pytest.approx(2**1.75)
    assert record["prologue_most_bits"] == 2  # 4 images cannot show more
    assert (record["visual_used"], record["visual_entropy_bits"]) == (2, [1.0])
    # A code on 53 % of images is missed by 4 of them with 5 %.
    assert record["carried_at_most"] == pytest.approx(1 - 0.05**0.25)
    plain = evaluate_codebook(TOKENS.without_prologue(), 4)
    assert not any(name.startswith("prologue") for name in plain)
    with pytest.raises(EvaluationError, match="no images"):
        evaluate_codebook(TOKENS[:0], 4, 8)


def test_codes_of_a_position() -> None:
    assert frequent_codes(TOKENS, 8, 0, 5) == [(0, 2), (1, 1), (3, 1)]
    assert frequent_codes(TOKENS, 8, 0, 1) == [(0, 2)]
    record = code_record(TOKENS, 8, 0, 0)
    assert (record["code_images"], record["code_share"]) == (2, 0.5)
    assert record["code_frequent"] == [[0, 2], [1, 1], [3, 1]]
    assert code_record(TOKENS, 8, 1, 0)["code_share_low"] == 0
    near = torch.tensor([[0.1, 0.2], [0.3, 0.9], [0.5, 0.1], [0.9, 0.8]])
    assert nearest_images(CodedImages(TOKENS, near), 0, 0, 9).tolist() == [1, 0]
    assert nearest_images(CodedImages(TOKENS, near), 1, 2, 3).tolist() == [1, 3, 0]
    for position, code, named in ((2, 0, "position 2.*0…1"), (0, 8, "code 8.*0…7")):
        with pytest.raises(EvaluationError, match=named):
            check_code(position, code, 2, 8)


def test_nearness_is_the_cosine_with_the_code(tiny_models) -> None:
    tokenizer, _ = tiny_models(image_size=(16, 16))
    images = ShapesSet("train", 7, (16, 16), DataConfig())
    coded = encode_with_nearness(tokenizer, images, np.arange(7), batch=3)
    pictures = to_model_range(torch.stack([torch.from_numpy(images.center_view(index).copy()) for index in range(7)]))
    tokens = tokenizer.encode(pictures)
    assert torch.equal(coded.tokens.prologue, tokens.prologue)
    assert torch.equal(coded.tokens.visual, tokens.visual)
    quantizer = tokenizer.prologue_quantizer
    cosines = quantizer.project(tokenizer.features(pictures)[1]) @ quantizer.rows().T
    assert torch.allclose(coded.nearness, cosines.max(-1).values, atol=1e-5)
    plain, _ = tiny_models("2d", image_size=(16, 16))
    assert encode_with_nearness(plain, images, np.arange(7)).nearness.shape == (7, 0)
