"""Every key of the authors' golden data, through the native modules (fixtures/parity/README.md)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.func import functional_call

from prologue.interop.authors import (
    ImportOptions,
    _Reader,
    fold_prior,
    fold_tokenizer,
    import_prior,
    import_tokenizer,
    load_config,
)
from prologue.models.prior import Prior
from prologue.models.quantizers import monitored_entropies
from prologue.models.tokenizer import Encoding, Tokenizer, to_model_range, to_uint8
from prologue.sampling.decode import sample_sequences
from prologue.sampling.guidance import Guidance
from prologue.sampling.recipe import Recipe
from prologue.training.losses import cross_entropy_terms

PARITY = Path(__file__).parents[1] / "fixtures" / "parity"
VARIANTS = ("2d", "1d", "prologue", "prologue-post")
TAGS = ("online", "ema")


@dataclass
class Case:
    """One variant: its golden data, with a record of the keys that a test has compared."""

    folder: Path
    golden: dict[str, Tensor]
    config: dict
    compared: set[str]

    def tokenizer(self, tag: str) -> Tokenizer:
        return import_tokenizer(self.folder / "tokenizer", ImportOptions(config=self.config, online=tag == "online"))

    def prior(self, tag: str) -> Prior:
        name = "model.safetensors" if tag == "online" else "model_1.safetensors"
        options = ImportOptions(config=self.config)
        return import_prior(self.folder / "prior" / name, self.tokenizer(tag).config, options)

    def stage_one_prior(self) -> tuple[_Reader, Prior]:
        name = "model_4.safetensors" if self.config["variant"] == "prologue-post" else "model_5.safetensors"
        path = self.folder / "tokenizer" / name
        model = import_prior(path, self.tokenizer("online").config, ImportOptions(config=self.config))
        return _Reader(path), model

    def take(self, key: str) -> Tensor:
        self.compared.add(key)
        return self.golden[key]

    def close(self, key: str, value: Tensor) -> None:
        torch.testing.assert_close(value, self.take(key), atol=2e-5, rtol=1e-4, msg=lambda text: f"{key}: {text}")

    def exact(self, key: str, value: Tensor) -> None:
        assert torch.equal(value, self.take(key)), key

    def gradients(self, prefix: str, tensors: dict[str, Tensor]) -> None:
        """All golden gradients under `prefix`, named as in the checkpoint."""
        keys = [key for key in self.golden if key.startswith(prefix)]
        assert keys, prefix
        for key in keys:
            expected = self.take(key)
            actual = tensors[key.removeprefix(prefix)].grad
            actual = torch.zeros_like(expected) if actual is None else actual
            bound = 1e-6 + 1e-3 * expected.abs().max()
            assert (actual - expected).abs().max() <= bound, key


@pytest.fixture(scope="module", params=VARIANTS)
def case(request: pytest.FixtureRequest) -> Case:
    folder = PARITY / request.param
    return Case(folder, load_file(folder / "golden.safetensors"), load_config(folder / "config.json"), set())


def trainable(reader: _Reader) -> dict[str, Tensor]:
    """The checkpoint's own tensors as leaves, so that gradients flow back through the folding."""
    for value in reader.tensors.values():
        value.requires_grad_()
    return reader.tensors


def folded_tokenizer(case: Case) -> tuple[Tokenizer, dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Model, folded state, and the encoder and decoder files' tensors that it was folded from."""
    model = case.tokenizer("online")
    encoder, decoder = (
        _Reader(case.folder / "tokenizer" / name) for name in ("model.safetensors", "model_1.safetensors")
    )
    leaves = trainable(encoder), trainable(decoder)
    return model, fold_tokenizer(model.config, encoder, decoder), *leaves


class _Quantize(torch.nn.Module):
    """`Tokenizer.quantize` as a forward, for `functional_call`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, images: Tensor) -> Encoding:
        return self.tokenizer.quantize(images)


@pytest.mark.parametrize("tag", TAGS)
def test_tokenizer_outputs(case: Case, tag: str) -> None:
    model = case.tokenizer(tag)
    images = to_model_range(case.golden["image"])
    if tag == "ema":
        case.close("patches", model.patchify(images))
        case.compared.add("image")
    with torch.no_grad():
        encoding, reconstruction = model(images)
    tokens = model.encode(images)
    case.exact(f"{tag}.visual_ids", tokens.visual)
    assert torch.equal(encoding.tokens.visual, tokens.visual)
    case.close(f"{tag}.visual_codes", encoding.visual.codes)
    case.close(f"{tag}.visual_vq_loss", encoding.visual.loss)
    sample, batch = monitored_entropies(model.visual_quantizer, encoding.visual.z)
    case.close(f"{tag}.visual_sample_entropy", sample)
    case.close(f"{tag}.visual_batch_entropy", batch)
    if encoding.prologue is not None:
        case.exact(f"{tag}.prologue_ids", tokens.prologue)
        case.close(f"{tag}.prologue_one_hot", encoding.prologue.one_hot)
        sample, batch = monitored_entropies(model.prologue_quantizer, encoding.prologue.z)
        case.close(f"{tag}.prologue_sample_entropy", sample)
        case.close(f"{tag}.prologue_batch_entropy", batch)
    case.close(f"{tag}.reconstruction", reconstruction)
    case.close(f"{tag}.reconstruction", model.decode(tokens.visual))
    golden = case.take(f"{tag}.reconstruction_uint8")
    assert torch.equal(to_uint8(case.golden[f"{tag}.reconstruction"]), golden)
    exact = 127.5 * case.golden[f"{tag}.reconstruction"] + 128
    near = (exact - exact.round()).abs() < 2e-3
    assert not ((to_uint8(reconstruction) != golden) & ~near).any()


def test_reconstruction_step(case: Case) -> None:
    model, state, encoder, decoder = folded_tokenizer(case)
    images = to_model_range(case.golden["image"])
    encoding, reconstruction = functional_call(model, state, images)
    l1 = (reconstruction - images).abs().mean()
    case.close("reconstruction_step.l1", l1)
    case.close("reconstruction_step.vq", encoding.visual.loss)
    (l1 + encoding.visual.loss).backward()
    case.gradients("reconstruction_step.grad.encoder.", encoder)
    case.gradients("reconstruction_step.grad.decoder.", decoder)


@pytest.mark.parametrize("step", ["encoder_step", "encoder_step_dropout"])
def test_encoder_step(case: Case, step: str) -> None:
    if case.config["prologue_tokens"] == 0:
        assert not [key for key in case.golden if key.startswith(step)]
        return
    model, state, encoder, _ = folded_tokenizer(case)
    state = {f"tokenizer.{key}": value for key, value in state.items()}
    _, prior = case.stage_one_prior()
    prior.requires_grad_(False)
    encoding = functional_call(_Quantize(model), state, to_model_range(case.golden["image"]))
    sequence = prior.layout.pack(encoding.tokens)
    dropout = case.take("visual_dropout_mask") if step.endswith("dropout") else None
    classes = torch.full((len(sequence),), prior.null_class)
    logits = prior(sequence, classes, visual_dropout=dropout, prologue_one_hot=encoding.prologue.one_hot)
    terms = cross_entropy_terms(logits, sequence, prior.layout)
    compare_terms(case, step, terms)
    loss = 3 * terms.total
    case.close(f"{step}.loss", loss)
    loss.backward()
    case.gradients(f"{step}.grad.", encoder)


@pytest.mark.parametrize("step", ["prior_step", "prior_step_dropout"])
def test_prior_step(case: Case, step: str) -> None:
    if step.endswith("dropout") and case.config["prologue_tokens"] == 0:
        assert not [key for key in case.golden if key.startswith(step)]
        return
    reader, prior = case.stage_one_prior()
    leaves = trainable(reader)
    tokens = case.tokenizer("online").encode(to_model_range(case.golden["image"]))
    sequence = prior.layout.pack(tokens)
    dropout = case.take("visual_dropout_mask") if step.endswith("dropout") else None
    logits = functional_call(
        prior, fold_prior(prior.config, reader), (sequence, case.take("class_ids")), {"visual_dropout": dropout}
    )
    terms = cross_entropy_terms(logits, sequence, prior.layout)
    compare_terms(case, step, terms)
    case.close(f"{step}.loss", terms.total)
    terms.total.backward()
    case.gradients(f"{step}.grad.", leaves)


def compare_terms(case: Case, step: str, terms: tuple[Tensor, ...]) -> None:
    for name, value in zip(("ce_prologue", "ce_eos", "ce_visual"), terms, strict=True):
        if f"{step}.{name}" in case.golden:
            case.close(f"{step}.{name}", value)


@pytest.mark.parametrize("tag", TAGS)
def test_prior_logits(case: Case, tag: str) -> None:
    prior = case.prior(tag)
    tokens = case.tokenizer("ema").encode(to_model_range(case.golden["image"]))
    sequence = prior.layout.pack(tokens)
    case.exact("prior.sequence", sequence)
    unpacked = prior.layout.unpack(sequence)
    assert torch.equal(unpacked.visual, tokens.visual)
    assert torch.equal(unpacked.prologue, tokens.prologue)
    with torch.no_grad():
        case.close(f"prior.{tag}.logits_class", prior(sequence, case.take("class_ids")))
        null = torch.full((len(sequence),), prior.null_class)
        case.close(f"prior.{tag}.logits_null", prior(sequence, null))


def guidance_of(settings: dict) -> Guidance:
    """A guidance from parity's config.json, where `semantic` is the prologue segment."""
    if settings["cfg"] == 0:
        return Guidance.none()
    if "semantic_cfg_schedule" in settings:
        return Guidance.split(
            prologue=(settings["semantic_cfg_schedule"], settings["semantic_cfg_scale"]),
            visual=(settings["visual_cfg_schedule"], settings["visual_cfg_scale"], settings["visual_cfg_power"]),
        )
    return Guidance.overall(settings["cfg_schedule"], settings["cfg"], settings.get("cfg_power", 1.0))


def test_greedy_sampling(case: Case) -> None:
    prior, tokenizer = case.prior("ema"), case.tokenizer("ema")
    classes = case.take("sample.class_ids")
    for name, settings in case.config["sampling"].items():
        recipe = Recipe(guidance_of(settings), top_k=1)
        sequence = sample_sequences(prior, classes, recipe, list(range(len(classes))))
        case.exact(f"sample.{name}.sequence", sequence)
        case.close(f"sample.{name}.images", tokenizer.decode(prior.layout.unpack(sequence).visual))


def test_every_key_was_compared(case: Case) -> None:
    """Runs last for each variant: nothing in the golden file is left out."""
    left = set(case.golden) - case.compared
    assert not left, sorted(left)
