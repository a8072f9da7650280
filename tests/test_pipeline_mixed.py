"""Images of different people in one batch: options and known tokens of each image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from prologue import Guidance, Pipeline, TokenIds
from prologue.errors import SamplingError
from prologue.sampling.engine import Engine
from prologue.sampling.known import Known
from prologue.sampling.manifest import Manifest
from prologue.sampling.recipe import Recipe

SPLIT = Guidance.split(prologue=("constant", 0.7), visual=("cosine", 3.75, 0.2))
VISUAL = Guidance.split(prologue=("constant", 1.0), visual=("linear", 3.0))
OPTIONS: dict[str, list[Any]] = {
    "guidance": [SPLIT, Guidance.none(), Guidance.overall("cosine", 2.0), VISUAL, Guidance.overall("constant", 1.5)],
    "temperature": [0.8, 1.0, 1.3, 0.9, 1.0],
    "prologue_temperature": [None, 0.7, None, 1.2, 1.0],
    "top_k": [None, 1, 3, None, 5],
    "top_p": [0.9, None, None, 0.5, 1.0],
}
CLASSES, SEEDS, ROWS = [0, 2, 1, 1, 0], [5, 6, 7, 8, 5], 8


@pytest.fixture(scope="module", params=["tiny", pytest.param("shapes", marks=pytest.mark.slow)])
def pipe(request, tiny_models) -> Pipeline:
    if request.param == "tiny":
        return Pipeline(*tiny_models(), Manifest(("ring", "star", "cross")), compile=False)
    return Pipeline.from_pretrained("builtin:shapes", device="cpu", dtype="fp32", compile=False)


def same(a: TokenIds, b: TokenIds) -> bool:
    return torch.equal(a.prologue, b.prologue) and torch.equal(a.visual, b.visual)


def of(image: int) -> dict[str, Any]:
    return {name: values[image] for name, values in OPTIONS.items()}


def some_known(pipe: Pipeline) -> Known:
    """Known tokens at random positions; the prologue is known in image 0 and unknown in image 1."""
    tokens = pipe.sample(CLASSES, seed=90)
    stream = torch.Generator().manual_seed(0)
    prologue, visual = (torch.rand(part.shape, generator=stream) < 0.4 for part in (tokens.prologue, tokens.visual))
    prologue[0], prologue[1] = True, False
    visual[1] = False
    return Known(tokens, prologue, visual)


@pytest.mark.parametrize("with_known", [False, True])
def test_bytes_of_a_mixed_chunk_are_those_of_each_image_alone(pipe: Pipeline, with_known: bool) -> None:
    known = some_known(pipe) if with_known else None
    tokens, images = pipe.chunk(CLASSES, SEEDS, ROWS, known=known, **OPTIONS)
    for image in range(len(CLASSES)):
        own = slice(image, image + 1)
        kept = None if known is None else known[own]
        alone, pixels = pipe.chunk(CLASSES[own], SEEDS[own], ROWS, known=kept, **of(image))
        assert same(alone, tokens[own])
        assert torch.equal(pixels[0], images[image])
    if known is not None:
        assert torch.equal(tokens.prologue[known.prologue], known.tokens.prologue[known.prologue])
        assert torch.equal(tokens.visual[known.visual], known.tokens.visual[known.visual])
    assert len({image.numpy().tobytes() for image in images}) == 5


def test_every_pass_of_a_chunk_has_the_shape_that_an_image_alone_has(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guided images share passes whatever their schedules, classes and equal rows."""
    shapes: list[tuple[int, int]] = []
    run = Engine._run
    monkeypatch.setattr(
        Engine, "_run", lambda self, cache, x, start: shapes.append(x.shape[:2]) or run(self, cache, x, start)
    )
    guidance = [SPLIT, Guidance.overall("cosine", 2.0), SPLIT, Guidance.overall("constant", 1.5)]
    pipe.chunk([0, 0, 1, 2], [1, 2, 3, 4], 4, guidance=guidance, temperature=[1.0, 0.5, 0.5, 2.0])
    mixed = list(shapes)
    for image in range(4):
        shapes.clear()
        pipe.chunk([0], [1], 4, guidance=guidance[image])
        assert shapes == mixed
    assert {rows for rows, _ in mixed} == {8}
    # Images without guidance are a batch of their own, without rows of the null class.
    shapes.clear()
    pipe.chunk([0], [1], 4, guidance=Guidance.none())
    plain = list(shapes)
    assert {rows for rows, _ in plain} == {4}
    shapes.clear()
    pipe.chunk([0, 0], [1, 2], 4, guidance=[SPLIT, Guidance.none()])
    assert shapes == mixed + plain


def test_generate_takes_options_of_each_image(pipe: Pipeline) -> None:
    mixed = pipe.generate(CLASSES, seed=SEEDS, batch=3, **OPTIONS)
    alone = [pipe.generate(CLASSES[i], seed=SEEDS[i], **of(i)) for i in range(len(CLASSES))]
    assert same(mixed.tokens, TokenIds.cat([each.tokens for each in alone]))
    assert same(pipe.sample(CLASSES, seed=SEEDS, **OPTIONS), mixed.tokens)
    arrays = {"temperature": np.array(OPTIONS["temperature"]), "top_k": torch.tensor([1, 2, 3, 4, 5])}
    lists = {name: values.tolist() for name, values in arrays.items()}
    assert same(pipe.sample(CLASSES, seed=1, **arrays), pipe.sample(CLASSES, seed=1, **lists))


def test_stored_guidance_is_left_out_only_for_the_null_class(tiny_models) -> None:
    pipe = Pipeline(*tiny_models(), Manifest(("ring", "star", "cross"), Recipe(SPLIT)))
    mixed = pipe.sample(["ring", None], seed=[1, 2], guidance=[SPLIT, Guidance.none()], top_k=[None, 3])
    assert same(mixed[:1], pipe.sample("ring", seed=1))
    with pytest.warns(UserWarning, match="null class"):
        assert same(mixed[1:], pipe.sample(None, seed=2, top_k=3))
    with pytest.raises(SamplingError, match="null class"):
        pipe.sample(["ring", None], guidance=[Guidance.none(), SPLIT])


def test_known_tokens_of_one_image_or_of_each(tiny_models) -> None:
    pipe = Pipeline(*tiny_models(), Manifest(("ring", "star", "cross")))
    tokens = pipe.sample(["ring", "star", "cross"], seed=40)
    known = Known(tokens, visual=torch.tensor([True, False, True, False, False, False]))
    out = pipe.generate("ring", known=known, seed=3)
    assert out.class_ids == [0, 0, 0]
    assert torch.equal(out.tokens.visual[:, [0, 2]], tokens.visual[:, [0, 2]])
    one = pipe.sample("ring", count=4, known=known[:1], seed=3)
    assert torch.equal(one.prologue, tokens.prologue[:1].expand(4, -1))
    assert same(one[:1], out.tokens[:1])
    assert same(pipe.resample(tokens, "ring", count=1).tokens, pipe.sample("ring", known=Known(tokens)))
    with pytest.raises(SamplingError, match="2 images need known tokens for one image, or for each, not for 3"):
        pipe.sample("ring", count=2, known=known)
    plain = Pipeline(*tiny_models(prior_prologue=False))
    known = Known(plain.encode(pipe.generate("ring").images), visual=torch.arange(6) < 3)
    assert torch.equal(plain.sample(0, known=known).visual[:, :3], known.tokens.visual[:, :3])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"temperature": [1.0]}, "2 images need one temperature for all, or one for each, not 1"),
        ({"guidance": [SPLIT] * 3}, "2 images need one guidance for all, or one for each, not 3"),
        ({"top_k": [1, 0]}, "top_k must be a whole number of at least 1, not 0"),
        ({"guidance": [SPLIT, 2.0]}, "guidance is a Guidance"),
        ({"temperature": [1.0, None]}, "temperature must be positive and finite, not None"),
        ({"known": 3}, "known tokens are Known"),
    ],
)
def test_impossible_options_of_each_image(tiny_models, options: dict[str, Any], named: str) -> None:
    with pytest.raises(SamplingError, match=named):
        Pipeline(*tiny_models()).generate([0, 1], **options)
