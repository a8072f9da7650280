"""What the golden data do not pin: tied heads, dropout, gradients, odd sizes, and folders on disk."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from prologue.config import PriorOptions, prior_rope_axes, tokenizer_rope_axes
from prologue.errors import CheckpointError, ConfigError, DataError, SamplingError
from prologue.models.layers import Dropout
from prologue.models.prior import Prior
from prologue.models.sequence import TokenIds
from prologue.models.tokenizer import Tokenizer, to_model_range, to_uint8
from prologue.models.weights import read_tensors, write_tensors
from prologue.training.losses import cross_entropy_terms
from prologue.utils.rng import torch_stream

VARIANTS = ("2d", "1d", "prologue", "prologue-post")


def images(count: int = 2, size: tuple[int, int] = (8, 12), seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, *size, generator=torch_stream(seed, "images")) * 2 - 1


def random_sequence(prior: Prior, count: int = 2) -> torch.Tensor:
    layout, generator = prior.layout.config, torch_stream(0, "sequence")
    prologue = torch.randint(
        max(layout.prologue_codebook_size, 1), (count, layout.prologue_tokens), generator=generator
    )
    visual = torch.randint(layout.visual_codebook_size, (count, layout.visual_tokens), generator=generator)
    return prior.layout.pack(TokenIds(prologue, visual))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", [(8, 12), (4, 4), (16, 4)])
def test_shapes_on_any_grid(tiny_models, variant: str, size: tuple[int, int]) -> None:
    tokenizer, prior = tiny_models(variant, size)
    x = images(2, size)
    tokens = tokenizer.encode(x)
    visual = size[0] * size[1] // 16
    assert tokens.visual.shape == (2, visual)
    assert tokens.prologue.shape == (2, 3 if variant.startswith("prologue") else 0)
    assert tokens.visual.dtype == tokens.prologue.dtype == torch.int64
    out = tokenizer.decode(tokens.visual)
    assert out.shape == x.shape
    assert out.dtype == torch.float32
    assert torch.allclose(tokenizer.unpatchify(tokenizer.patchify(x)), x)
    logits = prior(prior.layout.pack(tokens), torch.tensor([0, prior.null_class]))
    assert logits.shape == (2, prior.layout.length, prior.layout.vocabulary)


def test_a_grid_is_rows_by_columns(tiny_models) -> None:
    """A patch decodes to its own place: rows and columns are not exchanged."""
    tokenizer, _ = tiny_models("2d", (8, 12))
    patches = tokenizer.patchify(torch.arange(8 * 12.0).view(1, 1, 8, 12).expand(1, 3, -1, -1))
    assert patches[0, 1].view(4, 4, 3)[0, :, 0].tolist() == [4, 5, 6, 7]
    assert patches[0, 3].view(4, 4, 3)[0, 0, 0] == 4 * 12
    with pytest.raises(DataError, match=r"3, 8, 12.*12, 8"):
        tokenizer.encode(images(1, (12, 8)))


def test_decode_ignores_the_prologue_and_does_not_clamp(tiny_models) -> None:
    tokenizer, _ = tiny_models()
    with torch.no_grad():
        tokenizer.out.bias.fill_(5.0)
    assert tokenizer.decode(torch.zeros(1, 6, dtype=torch.int64)).max() > 1


@pytest.mark.parametrize(("width", "heads"), [(20, 2), (24, 4), (34, 1), (6, 3)])
def test_odd_head_sizes(tiny_models, width: int, heads: int) -> None:
    """Heads of 10, 6, 34 and 2 dims: rotary axes still add up, and positions still matter."""
    tokenizer, prior = tiny_models(width=width, heads=heads)
    assert sum(tokenizer_rope_axes(tokenizer.config.encoder)) == width // heads
    assert sum(prior_rope_axes(prior.config.transformer)) == width // heads
    x = images()
    tokens = tokenizer.encode(x)
    assert tokenizer.decode(tokens.visual).shape == x.shape
    assert torch.isfinite(prior(prior.layout.pack(tokens), torch.tensor([0, 1]))).all()


def test_published_heads_have_the_published_axes(tiny_models) -> None:
    tokenizer, prior = tiny_models(width=64, heads=1)
    assert tokenizer_rope_axes(tokenizer.config.encoder) == (20, 20, 24)
    assert prior_rope_axes(prior.config.transformer) == (24, 20, 20)


def test_the_prior_is_causal(tiny_models) -> None:
    _, prior = tiny_models()
    sequence, classes = random_sequence(prior), torch.tensor([0, 1])
    before = prior(sequence, classes)
    changed = sequence.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 16
    after = prior(changed, classes)
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.allclose(before[:, 6], after[:, 6])


def test_embeddings_start_as_wide_as_they_are_asked_to(tiny_models) -> None:
    layout = tiny_models()[1].config.layout
    for std in (0.02, 0.5):
        config = PriorOptions(96, 1, 2, embedding_std=std).sized(layout, 7)
        prior = Prior(config)
        for embedding in (prior.token_embedding, prior.class_embedding):
            assert 0.8 * std < float(embedding.weight.detach().std()) < 1.2 * std
        assert float(prior.out.weight.detach().std()) < 0.03
    with pytest.raises(ConfigError, match="embedding_std must be positive"):
        PriorOptions(embedding_std=0.0)


def test_a_tied_head_is_the_token_embedding(tiny_models) -> None:
    _, tied = tiny_models(tied=True)
    _, own = tiny_models()
    assert "out.weight" not in tied.state_dict()
    own.load_state_dict(tied.state_dict() | {"out.weight": tied.token_embedding.weight.detach()})
    sequence, classes = random_sequence(tied), torch.tensor([0, 2])
    assert torch.equal(tied(sequence, classes), own(sequence, classes))
    for model in (tied, own):
        cross_entropy_terms(model(sequence, classes), sequence, model.layout).total.backward()
    both = own.token_embedding.weight.grad + own.out.weight.grad
    torch.testing.assert_close(tied.token_embedding.weight.grad, both, atol=1e-6, rtol=1e-4)


def test_dropout_is_drawn_from_its_generator_and_off_in_eval(tiny_models) -> None:
    _, prior = tiny_models(dropout=0.3)
    _, plain = tiny_models()
    plain.load_state_dict(prior.state_dict())
    sequence, classes = random_sequence(prior), torch.tensor([0, 2])
    assert torch.equal(prior(sequence, classes), plain(sequence, classes))
    prior.train()
    outputs = []
    state = torch.get_rng_state()
    for seed in (0, 0, 1):
        generator = torch_stream(seed, "dropout")
        for module in prior.modules():
            if isinstance(module, Dropout):
                module.generator = generator
        outputs.append(prior(sequence, classes))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_dropout_keeps_the_mean() -> None:
    drop = Dropout(0.25).train()
    drop.generator = torch_stream(0, "mean")
    out = drop(torch.ones(200_000))
    assert out.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert abs(out.mean().item() - 1) < 0.01


def test_no_gradient_of_the_post_hoc_prologue_reaches_the_visual_path(tiny_models) -> None:
    tokenizer, prior = tiny_models("prologue-post")
    encoding = tokenizer.quantize(images())
    sequence = prior.layout.pack(encoding.tokens)
    classes = torch.full((2,), prior.null_class)
    logits = prior(sequence, classes, prologue_one_hot=encoding.prologue.one_hot)
    cross_entropy_terms(logits, sequence, prior.layout).total.backward()
    for module in tokenizer.visual_path():
        assert all(parameter.grad is None for parameter in module.parameters())
    moved = [p.grad.abs().sum() > 0 for p in tokenizer.prologue_encoder.parameters()]
    assert all(moved)
    # The joint variant differs in just this.
    joint, prior = tiny_models("prologue")
    encoding = joint.quantize(images())
    sequence = prior.layout.pack(encoding.tokens)
    logits = prior(sequence, classes, prologue_one_hot=encoding.prologue.one_hot)
    cross_entropy_terms(logits, sequence, prior.layout).total.backward()
    assert joint.encoder.input.weight.grad.abs().sum() > 0


def test_one_hot_prologue_embeds_as_its_ids(tiny_models) -> None:
    tokenizer, prior = tiny_models()
    encoding = tokenizer.quantize(images())
    sequence, classes = prior.layout.pack(encoding.tokens), torch.tensor([0, 1])
    hard = F.one_hot(encoding.tokens.prologue, 8).float()
    torch.testing.assert_close(prior(sequence, classes, prologue_one_hot=hard), prior(sequence, classes))


@pytest.mark.parametrize("classes", [0, 1])
def test_few_classes(tiny_models, classes: int) -> None:
    _, prior = tiny_models(num_classes=classes)
    assert prior.class_embedding.weight.shape[0] == classes + 1
    sequence = random_sequence(prior)
    assert torch.isfinite(prior(sequence, torch.full((2,), prior.null_class))).all()


def test_weights_come_from_the_seed_alone(tiny_models) -> None:
    tokenizer, prior = tiny_models()
    state = torch.get_rng_state()
    for kind, config in ((Tokenizer, tokenizer.config), (Prior, prior.config)):
        first, second, other = kind(config, seed=3), kind(config, seed=3), kind(config, seed=4)
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
        assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
        assert all(torch.isfinite(p).all() for p in first.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_rotary_tables_stay_fp32_in_half_precision(tiny_models) -> None:
    tokenizer, prior = tiny_models()
    half = prior.to(torch.bfloat16)
    assert half.transformer.cos.dtype == torch.float32
    assert half(random_sequence(half), torch.tensor([0, 1])).dtype == torch.float32
    tokenizer = tokenizer.to(torch.bfloat16)
    assert tokenizer.decode(tokenizer.encode(images()).visual).dtype == torch.float32


@pytest.mark.parametrize("variant", VARIANTS)
def test_folders_bring_models_back(tiny_models, tmp_path: Path, variant: str) -> None:
    tokenizer, prior = tiny_models(variant, tied=variant == "1d", dropout=0.1)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    prior.save_pretrained(tmp_path / "prior")
    for model in (tokenizer, prior):
        back = type(model).from_pretrained(tmp_path / type(model).__name__.lower())
        assert back.config == model.config
        assert not back.training
        assert back.state_dict().keys() == model.state_dict().keys()
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in back.state_dict().items())
    x = images()
    again = Tokenizer.from_pretrained(tmp_path / "tokenizer")
    assert torch.equal(again.encode(x).visual, tokenizer.encode(x).visual)


def _edit_tensors(path: Path, change) -> None:
    tensors = read_tensors(path)
    change(tensors)
    write_tensors(path, tensors)


def _edit_config(path: Path, change) -> None:
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def _pickle(path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, path)


DAMAGE = {
    "truncated": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-5]),
        "whole",
    ),
    "cut in its header": (lambda f: (f / "model.safetensors").write_bytes(b"\x10\x00"), "whole"),
    "pickle": (lambda f: _pickle(f / "model.safetensors"), "pickle"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "does not exist"),
    "missing tensor": (
        lambda f: _edit_tensors(f / "model.safetensors", lambda t: t.pop("out_norm.weight")),
        "lacks 'out_norm.weight'",
    ),
    "unexpected tensor": (
        lambda f: _edit_tensors(f / "model.safetensors", lambda t: t.update(extra=torch.zeros(1))),
        "unexpected tensor 'extra'",
    ),
    "wrong shape": (
        lambda f: _edit_tensors(f / "model.safetensors", lambda t: t.update({"out_norm.weight": torch.zeros(3)})),
        "'out_norm.weight' has shape",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json"),
    "not JSON": (lambda f: (f / "config.json").write_text("{"), "config.json"),
    "unknown field": (lambda f: _edit_config(f / "config.json", lambda c: c.update(wide=3)), "config.json.*'wide'"),
    "impossible value": (
        lambda f: _edit_config(f / "config.json", lambda c: c["transformer"].update(heads=5)),
        "config.json.*divisible",
    ),
    "wrong type": (lambda f: _edit_config(f / "config.json", lambda c: c.update(num_classes="3")), "num_classes"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_folders_are_named(tiny_models, tmp_path: Path, damage: str) -> None:
    change, named = DAMAGE[damage]
    tiny_models()[1].save_pretrained(tmp_path / "prior")
    change(tmp_path / "prior")
    with pytest.raises(CheckpointError, match=named) as caught:
        Prior.from_pretrained(tmp_path / "prior")
    assert str(tmp_path) in str(caught.value)


def test_cross_entropy_is_per_position_of_the_whole_sequence(tiny_models) -> None:
    _, prior = tiny_models()
    sequence = random_sequence(prior)
    terms = cross_entropy_terms(torch.zeros(2, 10, prior.layout.vocabulary), sequence, prior.layout)
    one = math.log(prior.layout.vocabulary) / 10
    assert [term.item() for term in terms] == pytest.approx([3 * one, one, 6 * one])


def test_what_a_tokenizer_cannot_take_is_named(tiny_models) -> None:
    tokenizer, _ = tiny_models()
    count, size = tokenizer.config.visual_tokens, tokenizer.config.codebook_size
    with pytest.raises(DataError, match=r"in \[-1, 1\], not torch.uint8"):
        tokenizer.encode(torch.zeros(1, 3, *tokenizer.config.image_size, dtype=torch.uint8))
    with pytest.raises(SamplingError, match=f"expected {count} visual ids per image"):
        tokenizer.decode(torch.zeros(1, count + 1, dtype=torch.int64))
    for wrong in (-1, size):
        with pytest.raises(SamplingError, match=f"visual id {wrong} lies outside its codebook 0…{size - 1}"):
            tokenizer.decode(torch.full((1, count), wrong))


def test_images_are_converted_from_one_form_alone() -> None:
    assert torch.equal(to_uint8(to_model_range(torch.arange(256, dtype=torch.uint8))), torch.arange(256))
    for images in (torch.zeros(2), torch.zeros(2, dtype=torch.int64)):
        with pytest.raises(DataError, match=f"uint8 images of 0…255, not {images.dtype}"):
            to_model_range(images)
    for images in (torch.zeros(2, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)):
        with pytest.raises(DataError, match=f"floating-point images in .*, not {images.dtype}"):
            to_uint8(images)


def test_what_a_prior_cannot_take_is_named(tiny_models) -> None:
    _, prior = tiny_models()
    sequence, classes = torch.zeros(2, prior.layout.length, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    for ids, class_ids, named in (
        (sequence.float(), classes, "a sequence as an int64 tensor .*, not torch.float32"),
        (sequence.tolist(), classes, "a sequence as an int64 tensor .*, not list"),
        (sequence, classes.bool(), "class ids as an int64 tensor .*, not torch.bool"),
        (sequence, 0, "class ids as an int64 tensor .*, not int"),
        (sequence[:, :-1], classes, r"sequences \(B, 10\) and a class id for each, not \(2, 9\)"),
        (sequence, classes[:1], r"not \(2, 10\) and \(1,\)"),
        (sequence, classes[:, None], r"not \(2, 10\) and \(2, 1\)"),
    ):
        with pytest.raises(SamplingError, match=named):
            prior(ids, class_ids)
    with pytest.raises(SamplingError, match=r"class ids are int64, not torch.float32"):
        prior.check_classes(classes.float())


@pytest.mark.skipif(os.name == "nt", reason="Windows has no file modes")
def test_weights_have_the_mode_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(1)})
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o644
