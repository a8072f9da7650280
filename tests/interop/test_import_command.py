"""`prologue import`: all variants to a folder that samples as the golden data say, and every fault named."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from prologue import Pipeline, Prior, Tokenizer
from prologue.cli.main import main
from prologue.sampling.guidance import Guidance

PARITY = Path(__file__).parents[1] / "fixtures" / "parity"
VARIANTS = ("2d", "1d", "prologue", "prologue-post")


def arguments(source: Path, out: Path, *more: str, config: bool = True) -> list[str]:
    given = ["import", "--tokenizer", str(source / "tokenizer"), "--prior", str(source / "prior"), str(out), *more]
    return [*given, "--config", str(source / "config.json")] if config else given


def guidance_of(settings: dict) -> Guidance:
    if settings["cfg"] == 0:
        return Guidance.none()
    if "semantic_cfg_schedule" in settings:
        return Guidance.split(
            prologue=(settings["semantic_cfg_schedule"], settings["semantic_cfg_scale"]),
            visual=(settings["visual_cfg_schedule"], settings["visual_cfg_scale"], settings["visual_cfg_power"]),
        )
    return Guidance.overall(settings["cfg_schedule"], settings["cfg"], settings.get("cfg_power", 1.0))


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_sampling_of_an_imported_folder_is_golden(variant: str, tmp_path: Path) -> None:
    source = PARITY / variant
    assert main(arguments(source, tmp_path / "out")) == 0
    pipe = Pipeline.from_pretrained(tmp_path / "out", device="cpu", dtype="fp32")
    assert pipe.class_names == tuple(str(index) for index in range(10))
    golden = load_file(source / "golden.safetensors")
    config = json.loads((source / "config.json").read_text())
    for name, settings in config["sampling"].items():
        tokens = pipe.sample(golden["sample.class_ids"], guidance=guidance_of(settings), top_k=1)
        assert torch.equal(pipe.prior.layout.pack(tokens), golden[f"sample.{name}.sequence"]), name


def test_online_weights(tmp_path: Path) -> None:
    source = PARITY / "prologue"
    assert main(arguments(source, tmp_path / "out", "--online")) == 0
    pipe = Pipeline.from_pretrained(tmp_path / "out", device="cpu", dtype="fp32")
    golden = load_file(source / "golden.safetensors")
    x = golden["image"].float() / 127.5 - 1
    assert torch.equal(pipe.tokenizer.encode(x).visual, golden["online.visual_ids"])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of the `prologue` checkpoint that a test may damage."""
    return Path(shutil.copytree(PARITY / "prologue", tmp_path / "source"))


def edit(path: Path, change: Callable[[dict], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def edit_config(source: Path, change: Callable[[dict], object]) -> None:
    config = json.loads((source / "config.json").read_text())
    change(config)
    (source / "config.json").write_text(json.dumps(config))


def reshape(key: str, *shape: int) -> Callable[[dict], None]:
    return lambda tensors: tensors.update({key: torch.zeros(*shape)})


ENCODER, DECODER, PRIOR = "tokenizer/model_2.safetensors", "tokenizer/model_3.safetensors", "prior/model_1.safetensors"
Q = "enc.layers.1.attn1.to_q.weight"
TENSOR_FAULTS: dict[str, tuple[str, Callable[[dict], object], str]] = {
    "encoder lacks one": (ENCODER, lambda t: t.pop(Q), f"lacks the tensor '{Q}'"),
    "decoder lacks one": (DECODER, lambda t: t.pop("dec.out.bias"), "lacks the tensor 'dec.out.bias'"),
    "prior lacks one": (PRIOR, lambda t: t.pop("bos_emb.weight"), "lacks the tensor 'bos_emb.weight'"),
    "encoder has one more": (ENCODER, reshape("enc.extra", 2), "unexpected tensor 'enc.extra'"),
    "decoder has one more": (DECODER, reshape("dec.extra", 2), "unexpected tensor 'dec.extra'"),
    "prior has one more": (PRIOR, reshape("ar_model.layers.0.extra", 2), "unexpected tensor 'ar_model.layers.0.extra'"),
    "wrong query shape": (ENCODER, reshape(Q, 5, 32), Q),
    "flat matrix": (ENCODER, reshape("quantizer.embedding.weight", 64), "quantizer.embedding.weight"),
    "wrong gate": (PRIOR, reshape("ar_model.layers.0.gate1.weight", 32, 9), "ar_model.layers.0.gate1.weight"),
    "wrong norm": (PRIOR, reshape("ar_model.out_norm.affine.bias", 31), "ar_model.out_norm.affine.bias"),
    "wrong k-norm": (PRIOR, reshape("ar_model.layers.1.attn1.k_norm.weight", 8), "k_norm"),
    "another vocabulary": (PRIOR, reshape("semantic_emb.weight", 80, 32), "not trained together"),
    "another grid": (ENCODER, reshape("quantizer.pos_select_mask", 64, 64), "64 visual tokens.*--image-size"),
}


@pytest.mark.parametrize("fault", TENSOR_FAULTS)
def test_wrong_tensors_are_named(fault: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, change, named = TENSOR_FAULTS[fault]
    edit(source / file, change)
    assert_refused(arguments(source, tmp_path / "out"), named, capsys)
    assert not (tmp_path / "out").exists()


def assert_refused(argv: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    message = capsys.readouterr().err
    assert re.search(named, message), message
    assert message.count("\n") == 1


FILE_FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-100]), "not a whole safetensors file"),
    "pickle": (lambda p: torch.save({"a": torch.zeros(2)}, p), "pickle"),
    "absent": (lambda p: p.unlink(), "does not exist"),
    "empty": (lambda p: p.write_bytes(b""), "not a whole safetensors file"),
}


@pytest.mark.parametrize("file", [ENCODER, PRIOR])
@pytest.mark.parametrize("fault", FILE_FAULTS)
def test_damaged_files_are_named(
    fault: str, file: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, named = FILE_FAULTS[fault]
    change(source / file)
    assert_refused(arguments(source, tmp_path / "out"), f"{file.split('/')[1]}.*{named}", capsys)


CONFIG_FAULTS: dict[str, tuple[Callable[[dict], object], str]] = {
    "variant": (lambda c: c.update(variant="2d"), "variant is 'prologue' in the tensors, but '2d' in the config"),
    "width": (lambda c: c["encoder"].update(width=64, rope_axes=[8, 8, 16]), "'enc' has width 32.*64"),
    "depth": (lambda c: c["prior"].update(depth=3), "'ar_model' has depth 2.*3"),
    "ratio": (lambda c: c["decoder"].update(mlp_ratio="4"), "feed-forward"),
    "axes": (lambda c: c["encoder"].update(rope_axes=[4, 4, 4]), "rope_axes.*16"),
    "axes of text": (lambda c: c["encoder"].update(rope_axes="4"), "encoder.rope_axes"),
    "no heads": (lambda c: c["prior"].pop("heads"), "prior lacks 'heads'"),
    "no networks": (lambda c: c.pop("encoder"), "not a checkpoint config"),
    "network of text": (lambda c: c.update(decoder="big"), "decoder"),
    "image size": (lambda c: c.update(image_size="big"), "image_size"),
    "another grid": (lambda c: c.update(image_size=32), "36 visual tokens|visual_tokens"),
    "temperature": (lambda c: c.update(prologue_temperature="cold"), "prologue_temperature"),
    "classes": (lambda c: c.update(num_classes=11), "num_classes is 10"),
    "tied": (lambda c: c["prior"].update(tied_embeddings=True), "tied_embeddings is False"),
}


@pytest.mark.parametrize("fault", CONFIG_FAULTS)
def test_wrong_configs_are_named(fault: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, named = CONFIG_FAULTS[fault]
    edit_config(source, change)
    assert_refused(arguments(source, tmp_path / "out"), named, capsys)


def test_unreadable_configs_are_named(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (source / "config.json").write_text("{")
    assert_refused(arguments(source, tmp_path / "out"), "config.json is not readable JSON", capsys)


def test_other_head_sizes_need_a_config(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(arguments(source, tmp_path / "out", config=False), "head size 16.*--config", capsys)


def test_a_folder_in_use_is_refused(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("mine")
    assert_refused(arguments(source, tmp_path / "out"), "not an empty folder", capsys)
    assert (tmp_path / "out" / "precious.txt").read_text() == "mine"


# Published head sizes: a tiny model of ours written in the authors' layout, conditions included


def save_as_authors(folder: Path, tokenizer: Tokenizer, prior: Prior) -> None:
    """The inverse of the fold: our weights behind conditions drawn at random, whose constant value gives them back."""
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "prior").mkdir()
    own = {key: value.detach().clone() for key, value in tokenizer.state_dict().items()}
    encoder = network(own, "encoder", "enc") | quantizer(own, "visual_quantizer", "quantizer")
    if tokenizer.prologue_encoder is not None:
        encoder |= network(own, "prologue_encoder", "semantic_enc")
    if tokenizer.prologue_quantizer is not None:
        encoder |= quantizer(own, "prologue_quantizer", "semantic_quantizer")
    decoder = network(own, "decoder", "dec") | affine("dec.out_norm.affine", own["out_norm.weight"])
    decoder |= {"dec.out.weight": own["out.weight"], "dec.out.bias": own["out.bias"]}
    own = {key: value.detach().clone() for key, value in prior.state_dict().items()}
    theirs = network({f"prior.{key}": value for key, value in own.items()}, "prior", "ar_model")
    theirs |= affine("ar_model.out_norm.affine", own["out_norm.weight"])
    theirs |= {"bos_emb.weight": own["class_embedding.weight"], "semantic_emb.weight": own["token_embedding.weight"]}
    if not prior.config.tied:
        theirs["ar_model.out.weight"] = own["out.weight"]
    save_file(encoder, folder / ENCODER)
    save_file(decoder, folder / DECODER)
    save_file(theirs, folder / PRIOR)


def projection(name: str) -> dict[str, torch.Tensor]:
    """`cond_proj` of 3 dims whose null class (the last column of 5) is (1, 2, 3)."""
    weight = torch.full((3, 5), 7.0)
    weight[:, -1] = torch.tensor([1.0, 2.0, 3.0]) - 0.5
    return {
        f"{name}.cond_proj.0.weight": weight,
        f"{name}.cond_proj.0.bias": torch.full((3,), 0.5),
        f"{name}.cond_proj.1.weight": torch.tensor([0.1, -0.2, 0.3]),
    }


def condition() -> torch.Tensor:
    """METHOD §11 and §3 for that null class, written out."""
    c = torch.tensor([1.0, 2.0, 3.0])
    c = c / c.norm() * 3**0.5 * (1 + torch.tensor([0.1, -0.2, 0.3]))
    return torch.nn.functional.gelu(c, approximate="tanh")


def affine(name: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    """A linear layer of the condition that gives `value`."""
    weight = torch.linspace(-1, 1, 3 * len(value)).view(-1, 3)
    return {f"{name}.weight": weight, f"{name}.bias": value - weight @ condition()}


def network(own: dict, ours: str, theirs: str) -> dict[str, torch.Tensor]:
    out = projection(theirs)
    for key, value in own.items():
        if not key.startswith(f"{ours}."):
            continue
        part = key.removeprefix(f"{ours}.")
        if part.startswith("transformer.blocks."):
            index, rest = part.removeprefix("transformer.blocks.").split(".", 1)
            out |= block(f"{theirs}.layers.{index}", rest, value)
        elif part.startswith("input."):
            out[f"{theirs}.input_layer.{part.removeprefix('input.')}"] = value
        elif part == "queries.weight":
            out[f"{theirs}.learnable_query"] = value
    for index in {key.split(".")[2] for key in out if ".layers." in key}:
        for gate in ("gate1", "gate_mlp"):
            width = len(out[f"{theirs}.layers.{index}.attn1.to_q.weight"])
            # Gates of 1/2, the halved rows doubled in `block`; a prior's gates have no bias.
            constant = condition() / condition().square().sum() / 2
            out[f"{theirs}.layers.{index}.{gate}.weight"] = constant.expand(width, 3).contiguous()
            if theirs != "ar_model":
                out[f"{theirs}.layers.{index}.{gate}.bias"] = torch.zeros(width)
    return out


def block(theirs: str, part: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    if part in ("norm1.weight", "norm2.weight"):
        return affine(f"{theirs}.{'adaln_1' if part[4] == '1' else 'adaln_mlp'}.affine", value)
    if part == "attn.qkv.weight":
        width = value.shape[1]
        return {
            f"{theirs}.attn1.to_q.weight": value[:width].clone(),
            f"{theirs}.attn1.to_kv.weight": value[width:].clone(),
        }
    if part.startswith(("attn.proj", "ffn.fc2")):
        value = 2 * value
    return {f"{theirs}.{part.replace('attn.', 'attn1.', 1)}": value}


def quantizer(own: dict, ours: str, theirs: str) -> dict[str, torch.Tensor]:
    return {
        f"{theirs}.embedding.weight": own[f"{ours}.codebook"],
        f"{theirs}.proj_in.weight": own[f"{ours}.proj.weight"],
        f"{theirs}.proj_in.bias": own[f"{ours}.proj.bias"],
    }


def imported_equals(folder: Path, tokenizer: Tokenizer, prior: Prior) -> None:
    pipe = Pipeline.from_pretrained(folder, device="cpu", dtype="fp32")
    assert pipe.tokenizer.config == tokenizer.config
    assert pipe.prior.config == prior.config
    for model, expected in ((pipe.tokenizer, tokenizer), (pipe.prior, prior)):
        for key, value in expected.state_dict().items():
            torch.testing.assert_close(model.state_dict()[key], value, atol=1e-5, rtol=1e-4, msg=key)


@pytest.mark.parametrize("variant", ["2d", "1d", "prologue"])
@pytest.mark.parametrize("tied", [False, True])
def test_published_head_sizes_need_no_config(tiny_models, variant: str, tied: bool, tmp_path: Path) -> None:
    """Everything from the tensors: the non-square grid by --image-size, the conditioned tied head by its absence."""
    tokenizer, prior = tiny_models(variant, width=64, heads=1, tied=tied)
    save_as_authors(tmp_path / "source", tokenizer, prior)
    assert main(arguments(tmp_path / "source", tmp_path / "out", "--image-size", "8", "12", config=False)) == 0
    imported_equals(tmp_path / "out", tokenizer, prior)


def test_a_prior_without_prologue_is_recognised(tiny_models, tmp_path: Path) -> None:
    tokenizer, prior = tiny_models(width=64, heads=1, prior_prologue=False)
    save_as_authors(tmp_path / "source", tokenizer, prior)
    assert main(arguments(tmp_path / "source", tmp_path / "out", "--image-size", "8", "12", config=False)) == 0
    imported_equals(tmp_path / "out", tokenizer, prior)


def test_a_wrong_image_size_is_named(tiny_models, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_as_authors(tmp_path / "source", *tiny_models("1d", width=64, heads=1))
    given = arguments(tmp_path / "source", tmp_path / "out", config=False)
    assert_refused(given, "6 visual tokens.*256×256.*--image-size", capsys)
    assert_refused([*given, "--image-size", "8", "10"], "columns 10.*not divisible", capsys)
