"""`Pipeline`: classes, seeds, stored recipes, batches, resampling, folders."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from prologue import Guidance, Pipeline, TokenIds
from prologue import pipeline as pipelines
from prologue.errors import CheckpointError, ConfigError, DataError, SamplingError
from prologue.models import tokenizer as tokenizers
from prologue.models.tokenizer import to_model_range
from prologue.sampling import arguments
from prologue.sampling.engine import Engine
from prologue.sampling.manifest import Manifest
from prologue.sampling.recipe import Recipe

SPLIT = Guidance.split(prologue=("constant", 0.7), visual=("cosine", 3.75, 0.2))
NAMES = ("ring", "star", "cross")


@pytest.fixture
def pipe(tiny_models) -> Pipeline:
    return Pipeline(*tiny_models(), Manifest(class_names=NAMES))


def same(a: TokenIds, b: TokenIds) -> bool:
    return torch.equal(a.prologue, b.prologue) and torch.equal(a.visual, b.visual)


def noise_image(size: tuple[int, int] = (8, 12), seed: int = 0) -> Image.Image:
    """Return an image of `size` (rows, columns)."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def test_generate_returns_images_tokens_seeds_and_classes(pipe: Pipeline) -> None:
    out = pipe.generate(["ring", 2, None], seed=5)
    assert [image.size for image in out.images] == [(12, 8)] * 3
    assert out.seeds == [5, 6, 7]
    assert out.class_ids == [0, 2, 3]
    assert out.tokens.visual.shape == (3, 6)
    assert same(out.tokens, pipe.sample(["ring", 2, None], seed=5))
    decoded = pipe.decode(out.tokens.visual)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(out.images, decoded, strict=True))
    assert len({image.tobytes() for image in out.images}) == 3


def test_ways_to_name_classes(pipe: Pipeline) -> None:
    assert pipe.deal("star") == [1]
    assert pipe.deal("star", 3) == [1, 1, 1]
    assert pipe.deal(["star", 0], 5) == [1, 0, 1, 0, 1]
    assert pipe.deal(torch.tensor([2, 1])) == [2, 1]
    assert pipe.deal(np.int64(2)) == [2]
    assert pipe.deal(None, 2) == [3, 3]
    assert pipe.deal(count=5) == [0, 1, 2, 0, 1]
    assert pipe.deal() == [0]
    assert pipe.class_name(3) == "null"


def test_without_classes_the_null_class_is_drawn(tiny_models) -> None:
    pipe = Pipeline(*tiny_models(num_classes=0))
    assert pipe.generate(count=2).class_ids == [0, 0]
    assert pipe.class_names == ()
    with pytest.raises(SamplingError, match="no classes"):
        pipe.generate("ring")
    with pytest.raises(SamplingError, match="null class"):
        pipe.generate(count=1, guidance=SPLIT)


def test_ids_are_the_names_of_unnamed_classes(tiny_models) -> None:
    assert Pipeline(*tiny_models(num_classes=2)).class_names == ("0", "1")


@pytest.mark.parametrize(
    ("classes", "named"),
    [
        ("rong", "'rong'.*did you mean 'ring'.*ring, star, cross"),
        ([0, "zebra"], "zebra.*ring, star, cross"),
        (4, "4.*0…2"),
        (-1, "-1"),
        (True, "True"),
        (1.5, "1.5"),
        (torch.tensor([0.5]), "0.5"),
        ([], "empty"),
    ],
)
def test_unknown_classes_are_errors_with_a_suggestion(pipe: Pipeline, classes, named: str) -> None:
    with pytest.raises(SamplingError, match=named):
        pipe.generate(classes)


def test_long_class_lists_are_shortened(tiny_models) -> None:
    pipe = Pipeline(*tiny_models(num_classes=50), Manifest(class_names=tuple(f"kind{i}" for i in range(50))))
    with pytest.raises(SamplingError, match=r"kind19, … \(50 in all") as caught:
        pipe.generate("zzz")
    assert "kind20," not in str(caught.value)


def test_an_image_depends_only_on_its_class_seed_and_options(pipe: Pipeline) -> None:
    whole = pipe.generate(["ring", "star"], count=7, seed=3, guidance=SPLIT)
    chunked = pipe.generate(["ring", "star"], count=7, seed=3, guidance=SPLIT, batch=2)
    assert same(whole.tokens, chunked.tokens)
    alone = pipe.generate("star", seed=8, guidance=SPLIT)
    assert same(alone.tokens, whole.tokens[5:6])
    shuffled = pipe.generate(["star", "ring"], seed=[8, 3], guidance=SPLIT)
    assert same(shuffled.tokens, TokenIds.cat([whole.tokens[5:6], whole.tokens[:1]]))
    assert not same(pipe.sample("star", seed=9, guidance=SPLIT), alone.tokens)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"seed": [1]}, "seed"),
        ({"count": 0}, "count"),
        ({"batch": 0}, "batch"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 2.0}, "top_p"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": None}, "temperature must be positive and finite, not None"),
        ({"temperature": "1"}, "temperature"),
        ({"top_k": 1.5}, "top_k"),
        ({"guidance": 2.0}, r"guidance is a Guidance, such as .*, not 2\.0"),
        ({"guidance": "cosine"}, "guidance is a Guidance, such as .*, not 'cosine'"),
        ({"seed": 1.5}, "a seed is a whole number"),
        ({"seed": "0"}, "a seed is a whole number"),
        ({"seed": None}, "a seed is a whole number"),
        ({"count": "4"}, "count must be a whole number of at least 1, not '4'"),
        ({"count": 2.0}, "count must be a whole number"),
        ({"count": True}, "count must be a whole number"),
        ({"batch": 8.0}, "batch must be a whole number"),
        ({"batch": None}, "batch must be a whole number"),
    ],
)
def test_invalid_options(pipe: Pipeline, options: dict, named: str) -> None:
    with pytest.raises(SamplingError, match=named):
        pipe.generate(["ring", "star"], **options)


def test_numbers_may_be_of_numpy_and_torch(pipe: Pipeline) -> None:
    plain = pipe.sample(["ring", "star"], seed=[8, 3], top_k=5, temperature=0.5)
    for seeds in (np.array([8, 3]), torch.tensor([8, 3])):
        given = pipe.sample(["ring", "star"], seed=seeds, top_k=np.int64(5), temperature=np.float32(0.5))
        assert same(given, plain)
    recipe = Recipe(top_k=np.int64(5), temperature=np.float32(0.5))
    assert json.loads(json.dumps(recipe.to_dict())) == Recipe(top_k=5, temperature=0.5).to_dict()


@pytest.mark.parametrize(
    ("option", "named"),
    [
        (
            "guidance_scale",
            "unknown option 'guidance_scale': did you mean 'guidance'. options are guidance, temperature",
        ),
        ("temprature", "did you mean 'temperature'"),
        ("sede", "did you mean 'seed'"),
        ("zzz", "unknown option 'zzz': options are"),
    ],
)
def test_unknown_options_are_errors_with_a_suggestion(pipe: Pipeline, option: str, named: str) -> None:
    picture = noise_image()
    for call in (pipe.generate, pipe.sample, lambda *_, **given: pipe.resample(picture, **given)):
        with pytest.raises(SamplingError, match=named) as caught:
            call("ring", **{option: 4})
        assert isinstance(caught.value, TypeError)  # as any Python function says it
    with pytest.raises(SamplingError, match=named if option != "sede" else "unknown option"):
        pipe.chunk([0], [0], 4, **{option: 4})


@pytest.mark.parametrize(
    ("call", "error", "named"),
    [
        (
            lambda p: p.decode(np.zeros((1, 6), np.int64)),
            SamplingError,
            "visual ids are .* not ndarray: torch.as_tensor",
        ),
        (lambda p: p.decode([[0] * 6]), SamplingError, "visual ids are .* not list"),
        (lambda p: p.decode(p.sample("ring")), SamplingError, "not TokenIds: give its .visual"),
        (lambda p: p.decode(torch.zeros(1, 6)), SamplingError, "visual ids are int64, not torch.float32"),
        (lambda p: p.decode(torch.zeros(1, 6, dtype=torch.bool)), SamplingError, "int64, not torch.bool"),
        (lambda p: p.decode(torch.zeros(6, dtype=torch.int64)), SamplingError, r"6 visual ids per image.*\(6,\)"),
        (lambda p: p.decode(torch.full((1, 6), 16)), SamplingError, "visual id 16"),
        (lambda p: p.decode(torch.zeros(1, 6, dtype=torch.int64), batch=0), SamplingError, "batch"),
        (lambda p: p.encode(noise_image(), batch=0), SamplingError, "batch"),
        (lambda p: p.encode(5), DataError, "not int"),
        (lambda p: p.encode(None), DataError, "not NoneType"),
        (lambda p: p.encode("a.png"), DataError, "not str: open files with PIL.Image.open"),
        (lambda p: p.encode(Path("a.png")), DataError, f"not {type(Path()).__name__}: open files with PIL.Image.open"),
        (lambda p: p.resample([np.zeros((8, 12, 3))]), DataError, "not ndarray: open files with PIL.Image.open"),
        (lambda p: p.resample([]), DataError, "no image"),
        (lambda p: p.resample(torch.zeros(3, 8, 12, dtype=torch.uint8)), DataError, "floating point"),
        (lambda p: p.resample(p.sample("ring").without_prologue()), SamplingError, "3 prologue ids"),
        (lambda p: p.resample(p.sample("ring"), ["ring", "star"]), SamplingError, "one class for all, or one for each"),
        (lambda p: p.resample(p.sample("ring"), count=0), SamplingError, "count"),
        (lambda p: p.encode(np.zeros((8, 12, 3), np.uint8)), DataError, "not ndarray.*Image.fromarray"),
        (lambda p: p.encode(torch.zeros(0, 3, 8, 12)), DataError, "no image"),
        (lambda p: p.encode(torch.zeros(8, 12, 3)), DataError, "B, 3, H, W"),
        (lambda p: p.resample({"a": 1}), DataError, "not str"),
        (lambda p: p.resample(Image.new("RGB", (0, 5))), DataError, "an image of 0 × 5 pixels"),
        (lambda p: p.save_pretrained(__file__), ConfigError, "test_pipeline.py is a file: give a folder"),
        (
            lambda p: Pipeline.from_pretrained(__file__),
            CheckpointError,
            "test_pipeline.py is a file: give a run folder",
        ),
        (
            lambda p: Pipeline.from_pretrained("builtin:shapes", checkpoint="latest"),
            ConfigError,
            "checkpoint must be one of finished, newest, not 'latest'",
        ),
        (lambda p: p.resample(TokenIds([[0]], [[0]])), SamplingError, "prologue ids are .* not list"),
        (lambda p: p.generate("ring", count=10**12), SamplingError, "count must be at most 100000000"),
        (lambda p: p.generate({"ring"}), SamplingError, "unknown class"),
        (lambda p: p.generate(torch.tensor([True])), SamplingError, "unknown class True"),
        (lambda p: p.class_name(4), SamplingError, "unknown class 4"),
        (lambda p: p.class_name(-1), SamplingError, "unknown class -1"),
        (lambda p: p.chunk([0, 1], [0], 4), SamplingError, "2 images need one seed for all, or one for each"),
        (lambda p: p.chunk([0, 1], [0, 1], 1), SamplingError, "a chunk of 1 rows"),
        (lambda p: p.chunk([9], [0], 1), SamplingError, "unknown class 9"),
        (lambda p: setattr(p, "recipe", SPLIT), SamplingError, "a recipe is a Recipe"),
        (lambda p: p.save_pretrained(None), ConfigError, "not None"),
        (lambda p: Pipeline.from_pretrained(7), ConfigError, "a model's folder is a path or builtin:NAME, not 7"),
        (lambda p: Pipeline.from_pretrained("builtin:shapes", device=0), ConfigError, "unknown device 0"),
        (lambda p: Pipeline.from_pretrained("builtin:shapes", dtype=None), ConfigError, "unknown dtype None"),
        (lambda p: Guidance.overall("cosine", "10"), SamplingError, "scale must be a finite number, not '10'"),
        (lambda p: Guidance.split(("constant", "a"), ("constant", 1)), SamplingError, "scale must be a finite number"),
    ],
)
def test_values_of_wrong_types_are_errors(pipe: Pipeline, call, error: type, named: str) -> None:
    with pytest.raises(error, match=named):
        call(pipe)


def test_small_integers_count_as_ids(pipe: Pipeline) -> None:
    tokens = pipe.sample(["ring", "star"], seed=3)
    small = TokenIds(tokens.prologue.to(torch.uint8), tokens.visual.to(torch.int32))
    assert torch.equal(pipe.prior.layout.pack(small), pipe.prior.layout.pack(tokens))
    assert [i.tobytes() for i in pipe.decode(small.visual)] == [i.tobytes() for i in pipe.decode(tokens.visual)]
    assert same(pipe.resample(small, count=1).tokens, pipe.resample(tokens, count=1).tokens)
    assert pipe.deal(np.array([2, 1])) == [2, 1]


@pytest.mark.parametrize("seed", [2**63, -(2**63) - 1, [0, 2**63], 2**63 - 1])
def test_seeds_lie_in_64_bits(pipe: Pipeline, seed: int | list[int]) -> None:
    for call in (pipe.sample, lambda _, **given: pipe.resample(pipe.sample("ring"), count=2, **given)):
        with pytest.raises(SamplingError, match=r"seeds are whole numbers from -2\*\*63 to 2\*\*63 - 1, not"):
            call(["ring", "star"], seed=seed)  # the last of two from 2**63 - 1 on is the first beyond
    assert pipe.generate(["ring", "star"], seed=2**63 - 2).seeds[-1] == 2**63 - 1
    assert pipe.generate("ring", seed=-(2**63)).seeds == [-(2**63)]


BROKEN = {
    "not a number": (torch.nan, "image 1 holds values that are not finite"),
    "infinity": (-torch.inf, "image 1 holds values that are not finite"),
    "0 to 255": (255.0, r"image 1 holds values from \S+ to 255, .* to_model_range converts uint8"),
    "beyond -2": (-2.5, "image 1 holds values from -2.5 to "),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_images_of_another_range_are_refused(pipe: Pipeline, fault: str) -> None:
    value, named = BROKEN[fault]
    tokenizer = pipe.tokenizer
    for size in ((8, 12), (16, 24)):
        x = torch.rand(3, 3, *size)
        x[1, 2, 3, 4] = value
        calls = [lambda x=x: pipe.encode(x), lambda x=x: pipe.resample(x)]
        if size == (8, 12):
            calls += [lambda x=x: tokenizer.encode(x), lambda x=x: tokenizer(x), lambda x=x: tokenizer.encode(x.half())]
        for call in calls:
            with pytest.raises(DataError, match=named):
                call()
    edge = torch.tensor([-2.0, 2.0]).repeat(1, 3, 8, 6)
    assert len(pipe.encode(edge)) == len(tokenizer.encode(edge)) == 1


def test_the_range_is_checked_once_per_call_and_never_in_training(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    for module in (tokenizers, arguments):
        monkeypatch.setattr(module, "check_model_range", lambda x: looks.append(len(x)))
    x, trained = torch.zeros(6, 3, 8, 12), copy.deepcopy(pipe.tokenizer).train()
    trained(x)
    trained.features(x)
    pipe.tokenizer.encode_known(x)
    assert looks == []
    for call in (pipe.tokenizer, pipe.tokenizer.encode, lambda x: pipe.encode(x, batch=2), pipe.resample):
        looks.clear()
        call(x)
        assert looks == [6]


def test_missing_options_come_from_the_stored_recipe(pipe: Pipeline) -> None:
    plain = pipe.sample("ring", count=4)
    explicit = pipe.sample("ring", count=4, guidance=SPLIT, top_k=3, temperature=0.9, prologue_temperature=0.5)
    assert not same(plain, explicit)
    pipe.recipe = Recipe(SPLIT, temperature=0.9, prologue_temperature=0.5, top_k=3)
    assert same(pipe.sample("ring", count=4), explicit)
    undone = {"guidance": Guidance.none(), "top_k": None, "temperature": 1.0, "prologue_temperature": None}
    assert same(pipe.sample("ring", count=4, **undone), plain)


def test_stored_guidance_is_ignored_for_the_null_class_with_one_warning(pipe: Pipeline) -> None:
    null, ring = pipe.sample(None, seed=1), pipe.sample("ring", seed=0, guidance=SPLIT)
    star = pipe.sample("star", seed=2, guidance=SPLIT)
    pipe.recipe = Recipe(SPLIT)
    with pytest.warns(UserWarning, match="null class"):
        mixed = pipe.sample(["ring", None, "star"], seed=0)
    assert same(mixed, TokenIds.cat([ring, null, star]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(pipe.sample(None, seed=1), null)
        pipe.resample(mixed, count=1)
    with pytest.raises(SamplingError, match="null class"):
        pipe.sample(["ring", None], guidance=SPLIT)


def test_resample_keeps_the_prologue_and_draws_the_rest(pipe: Pipeline) -> None:
    source = pipe.sample(["ring", "star"], seed=50)
    out = pipe.resample(source, ["ring", "star"], count=3, seed=7)
    assert torch.equal(out.tokens.prologue, source.prologue.repeat_interleave(3, 0))
    assert out.class_ids == [0, 0, 0, 1, 1, 1]
    assert out.seeds == list(range(7, 13))
    assert len({tuple(row) for row in out.tokens.visual.tolist()}) == 6
    assert len(out.images) == 6
    alone = pipe.resample(source[1:2], "star", count=1, seed=11)
    assert same(alone.tokens, out.tokens[4:5])
    assert same(pipe.resample(source, ["ring", "star"], count=3, seed=7, batch=2).tokens, out.tokens)
    # The seed and the prologue of an image reproduce the image, because all calls use the same noise.
    assert same(pipe.resample(source[:1], "ring", count=1, seed=50).tokens, source[:1])


def test_resample_takes_pictures_and_tensors(pipe: Pipeline) -> None:
    picture = noise_image()
    x = to_model_range(torch.from_numpy(np.array(picture)).permute(2, 0, 1))
    tokens = pipe.tokenizer.encode(x[None])
    expected = pipe.resample(tokens, count=2).tokens
    assert torch.equal(expected.prologue, tokens.prologue.repeat(2, 1))
    for source in (picture, [picture], x, x[None], picture.convert("RGBA")):
        assert same(pipe.resample(source, count=2).tokens, expected)
    assert pipe.resample(picture).class_ids == [3] * 4


def test_images_of_another_size_are_resized_and_cropped(pipe: Pipeline) -> None:
    wide = noise_image((16, 40))
    middle = Image.fromarray(np.array(wide)[:, 8:32]).resize((12, 8), Image.Resampling.BOX)
    assert same(pipe.encode(wide), pipe.encode(middle))
    x = to_model_range(torch.from_numpy(np.array(wide)).permute(2, 0, 1))
    assert same(pipe.encode(x), pipe.encode(wide))
    assert same(pipe.encode([wide, noise_image()], batch=1), pipe.encode([wide, noise_image()]))


def test_resample_needs_a_prologue(tiny_models) -> None:
    for options, named in (({"variant": "2d"}, "tokenizer works without"), ({"prior_prologue": False}, "prior was")):
        with pytest.raises(SamplingError, match=named):
            Pipeline(*tiny_models(**options)).resample(noise_image())


def test_transparent_images_get_the_background_of_the_training(tiny_models) -> None:
    black = Pipeline(*tiny_models(), Manifest(class_names=NAMES, background=(0, 0, 0)))
    clear = Image.new("RGBA", (12, 8), (255, 255, 255, 0))
    assert same(black.encode(clear), black.encode(Image.new("RGB", (12, 8))))
    white = Pipeline(black.tokenizer, black.prior, Manifest(class_names=NAMES))
    assert same(white.encode(clear), white.encode(Image.new("RGB", (12, 8), "white")))
    assert not same(white.encode(clear), black.encode(clear))


def test_an_empty_batch_decodes_to_an_empty_list(pipe: Pipeline) -> None:
    assert pipe.decode(torch.zeros(0, pipe.tokenizer.config.visual_tokens, dtype=torch.int64)) == []


def test_a_prior_without_prologue_on_a_prologue_tokenizer(tiny_models) -> None:
    pipe = Pipeline(*tiny_models(prior_prologue=False))
    out = pipe.generate(count=3, guidance=SPLIT)
    assert out.tokens.prologue.shape == (3, 0)
    assert len(out.images) == 3
    sequence = pipe.prior.layout.pack(pipe.encode(noise_image()).without_prologue())
    assert sequence.shape == (1, 6)


@pytest.mark.parametrize("options", [{}, {"variant": "1d"}, {"prior_prologue": False}, {"num_classes": 0}])
def test_saved_pipelines_are_loaded_unchanged(tiny_models, tmp_path: Path, options: dict) -> None:
    names = NAMES if "num_classes" not in options else ()
    pipe = Pipeline(*tiny_models(**options), Manifest(names, Recipe(temperature=0.8), "shapes", ("lite0",)))
    pipe.save_pretrained(tmp_path / "out")
    back = Pipeline.from_pretrained(tmp_path / "out", device="cpu", dtype="fp32")
    assert back.manifest == pipe.manifest
    assert back.class_names == pipe.class_names
    assert same(back.sample(count=3), pipe.sample(count=3))


def test_a_pipeline_opens_in_another_dtype(pipe: Pipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    half = Pipeline.from_pretrained(tmp_path, dtype=torch.bfloat16, device="cpu")
    assert half.dtype == torch.bfloat16
    assert len(half.generate(count=2).images) == 2
    assert half.encode(noise_image()).visual.shape == (1, 6)
    with pytest.raises(ConfigError, match="fp33"):
        Pipeline.from_pretrained(tmp_path, dtype="fp33")


def test_tokens_may_be_trained_on(pipe: Pipeline) -> None:
    """Sampled tokens are not inference-mode tensors."""
    sequence = pipe.prior.layout.pack(pipe.sample("ring"))
    pipe.prior(sequence, torch.tensor([0])).sum().backward()
    assert pipe.prior.token_embedding.weight.grad is not None


def _edit(folder: Path, **changes: object) -> None:
    path = folder / "pipeline.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


FAULTS = {
    "no folder": (lambda f: f.rename(f.with_name("gone")), "does not exist"),
    "no manifest": (lambda f: (f / "pipeline.json").unlink(), "pipeline.json.*prologue train"),
    "other format": (lambda f: _edit(f, format=99), "format 99"),
    "unknown field": (lambda f: _edit(f, colour=1), "pipeline.json.*colour"),
    "impossible recipe": (lambda f: _edit(f, recipe={"top_k": 0}), "pipeline.json.*top_k"),
    "too many names": (lambda f: _edit(f, class_names=["a"] * 4), "4 class names.*3 classes"),
    "not JSON": (lambda f: (f / "pipeline.json").write_text("{"), "pipeline.json"),
    "no tokenizer": (lambda f: (f / "tokenizer" / "model.safetensors").unlink(), "tokenizer"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_errors_name_damaged_folders(pipe: Pipeline, tmp_path: Path, fault: str) -> None:
    change, named = FAULTS[fault]
    pipe.save_pretrained(tmp_path / "run")
    change(tmp_path / "run")
    with pytest.raises(CheckpointError, match=named) as caught:
        Pipeline.from_pretrained(tmp_path / "run")
    assert str(tmp_path) in str(caught.value)


def test_models_that_do_not_fit_are_refused(tiny_models) -> None:
    with pytest.raises(CheckpointError, match="not trained together"):
        Pipeline(tiny_models()[0], tiny_models(image_size=(8, 8))[1])


def test_all_chunks_are_computed_in_one_shape(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[int] = []
    sampled, decoded = pipelines.sample_sequences, pipe.tokenizer.decode_known
    monkeypatch.setattr(
        pipelines, "sample_sequences", lambda prior, ids, *rest: shapes.append(len(ids)) or sampled(prior, ids, *rest)
    )
    monkeypatch.setattr(pipe.tokenizer, "decode_known", lambda ids: shapes.append(len(ids)) or decoded(ids))
    tokens, images = pipe.chunk([0, 1, 2, 0], [5, 6, 7, 8], rows=4, guidance=SPLIT)
    fewer, some = pipe.chunk([0, 1], [5, 6], rows=4, guidance=SPLIT)
    assert shapes == [4] * 4
    assert images.shape == (4, 3, 8, 12)
    assert images.dtype == torch.uint8
    assert same(fewer, tokens[:2])
    assert torch.equal(some, images[:2])
    whole = pipe.generate(["ring", "star", "cross", "ring"], seed=5, guidance=SPLIT)
    assert same(whole.tokens, tokens)
    assert shapes[4:] == [4] * 2
    pipe.generate(["ring"], count=6, batch=4, guidance=SPLIT)
    assert shapes[6:] == [4] * 4  # the last two go with a full chunk before them


def test_compiling_depends_on_the_option_and_the_amount_of_work(
    pipe: Pipeline, tiny_models, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []

    def worth(config, device, size, rows, batches):
        seen.append((rows, batches))
        return batches > 2

    monkeypatch.setattr(pipelines, "worth_compiling", worth)
    engines: list[bool] = []
    monkeypatch.setattr(pipe, "_engine", lambda compiled: engines.append(compiled) or Engine(pipe.prior))
    pipe.sample("ring", count=8, batch=4)
    pipe.sample("ring", count=9, batch=4)
    assert seen == [(4, 2), (4, 3)]
    assert engines == [*[False] * 2, *[True] * 3]  # one for each chunk
    assert pipe.compiles(10, 10) is False
    assert pipe.compiles(100, 10) is True
    pipe.chunk([0], [1], rows=10, compiled=True)
    assert engines == [*[False] * 2, *[True] * 3, True, True]  # a chunk: tokens, then pixels
    assert len(seen) == 4
    for asked in (True, False):
        assert Pipeline(*tiny_models(), compile=asked).compiles(1, 1) is asked
    with pytest.raises(ConfigError, match="compile must be True, False or 'auto', not 'yes'"):
        Pipeline(*tiny_models(), compile="yes")


def test_int8_is_converted_at_opening_and_not_saved(pipe: Pipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "wide")
    small = Pipeline.from_pretrained(tmp_path / "wide", dtype="int8")
    assert small.prior.precision == "int8"
    assert small.dtype == torch.bfloat16
    assert len(small.generate(count=2, guidance=SPLIT).images) == 2
    with pytest.raises(CheckpointError, match="int8 weights are made when a pipeline is opened"):
        small.save_pretrained(tmp_path / "small")
    assert not (tmp_path / "small").exists()
