"""The authors' published checkpoints: read, fold the constant condition away, write ours (METHOD §11)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prologue.config import LayoutConfig, PriorConfig, TokenizerConfig, TransformerConfig, load_json
from prologue.errors import CheckpointError
from prologue.prior import Prior
from prologue.tokenizer import Tokenizer
from prologue.weights import load_exactly, read_tensors

Tensors = dict[str, Tensor]

_DROPPED = ("pos_select_mask", "uncond_ar_labels")
_PUBLISHED_HEAD_DIM = 64
_CODE_TEMPERATURE = 0.1


class _Reader:
    """The tensors of one file; what is taken is counted, so that nothing is left unread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors = {k: v for k, v in read_tensors(path).items() if not k.endswith(_DROPPED)}
        self.unread = set(self.tensors)

    def __contains__(self, key: str) -> bool:
        return key in self.tensors

    def take(self, key: str, shape: tuple[int, ...] | None = None) -> Tensor:
        if key not in self.tensors:
            raise CheckpointError(f"{self.path} lacks the tensor {key!r}")
        self.unread.discard(key)
        value = self.tensors[key].float()
        if shape is not None and tuple(value.shape) != shape:
            raise CheckpointError(f"{self.path}: tensor {key!r} has shape {tuple(value.shape)}, expected {shape}")
        return value

    def peek(self, key: str) -> Tensor:
        if key not in self.tensors:
            raise CheckpointError(f"{self.path} lacks the tensor {key!r}")
        return self.tensors[key]

    def count(self, prefix: str) -> int:
        """Number of numbered children under `prefix`."""
        numbers = {key[len(prefix) :].split(".")[0] for key in self.tensors if key.startswith(prefix)}
        return len(numbers)

    def finish(self) -> None:
        if self.unread:
            raise CheckpointError(f"{self.path} has an unexpected tensor {min(self.unread)!r}")


@dataclass(frozen=True)
class ImportOptions:
    """What the tensors do not tell. Head sizes other than 64 need `config`, in the form of parity's config.json."""

    image_size: tuple[int, int] | None = None
    config: dict[str, Any] | None = None
    online: bool = False


def import_pipeline_models(tokenizer: Path, prior: Path, options: ImportOptions) -> tuple[Tokenizer, Prior]:
    """Both models from the authors' directories, variant and sizes recognised from the tensors."""
    imported = import_tokenizer(tokenizer, options)
    name = "model.safetensors" if options.online else "model_1.safetensors"
    return imported, import_prior(prior / name, imported.config, options)


def import_tokenizer(folder: Path, options: ImportOptions) -> Tokenizer:
    """The tokenizer of a directory: encoder and decoder files `_2`, `_3` (EMA), or the online ones."""
    names = ("model.safetensors", "model_1.safetensors") if options.online else (
        "model_2.safetensors", "model_3.safetensors")  # fmt: skip
    encoder, decoder = (_Reader(folder / name) for name in names)
    config = _tokenizer_config(encoder, decoder, options)
    model = Tokenizer(config)
    load_exactly(model, fold_tokenizer(config, encoder, decoder), str(folder))
    encoder.finish()
    decoder.finish()
    return model.eval()


def import_prior(path: Path, tokenizer: TokenizerConfig, options: ImportOptions) -> Prior:
    """A prior file, whose sequences are made by `tokenizer`."""
    reader = _Reader(path)
    config = _prior_config(reader, tokenizer, options)
    model = Prior(config)
    load_exactly(model, fold_prior(config, reader), str(path))
    reader.finish()
    return model.eval()


def fold_tokenizer(config: TokenizerConfig, encoder: _Reader, decoder: _Reader) -> Tensors:
    """Our state dict from the authors' encoder and decoder files."""
    out = _fold_network(encoder, "enc", "encoder", config.encoder)
    out |= _quantizer(encoder, "quantizer", "visual_quantizer")
    if config.prologue_encoder is not None:
        out |= _fold_network(encoder, "semantic_enc", "prologue_encoder", config.prologue_encoder)
    if config.prologue_tokens:
        out |= _quantizer(encoder, "semantic_quantizer", "prologue_quantizer")
    condition = _condition(decoder, "dec")
    out |= _fold_network(decoder, "dec", "decoder", config.decoder, condition)
    out["out_norm.weight"] = _affine(decoder, "dec.out_norm.affine", condition)
    out["out.weight"], out["out.bias"] = decoder.take("dec.out.weight"), decoder.take("dec.out.bias")
    return out


def fold_prior(config: PriorConfig, reader: _Reader) -> Tensors:
    """Our state dict from an authors' prior file."""
    condition = _condition(reader, "ar_model")
    out = {
        "class_embedding.weight": reader.take("bos_emb.weight"),
        "token_embedding.weight": reader.take("semantic_emb.weight"),
        "out_norm.weight": _affine(reader, "ar_model.out_norm.affine", condition),
    }
    if not config.tied:
        out["out.weight"] = reader.take("ar_model.out.weight")
    return out | _fold_blocks(reader, "ar_model", "transformer", config.transformer, condition, bias=False)


def _condition(reader: _Reader, network: str) -> Tensor:
    """The constant condition `c` of a network: its null class, projected, normalised, activated."""
    weight, bias = reader.take(f"{network}.cond_proj.0.weight"), reader.take(f"{network}.cond_proj.0.bias")
    c = weight[:, -1] + bias
    scale = 1 + reader.take(f"{network}.cond_proj.1.weight")
    return F.gelu(F.normalize(c, dim=0) * math.sqrt(len(c)) * scale, approximate="tanh")


def _affine(reader: _Reader, name: str, condition: Tensor) -> Tensor:
    return reader.take(f"{name}.weight") @ condition + reader.take(f"{name}.bias")


def _gate(reader: _Reader, name: str, condition: Tensor, bias: bool) -> Tensor:
    gate = reader.take(f"{name}.weight") @ condition
    return gate + reader.take(f"{name}.bias") if bias else gate


def _fold_network(
    reader: _Reader, theirs: str, ours: str, config: TransformerConfig, condition: Tensor | None = None
) -> Tensors:
    condition = _condition(reader, theirs) if condition is None else condition
    out = {
        f"{ours}.input.weight": reader.take(f"{theirs}.input_layer.weight"),
        f"{ours}.input.bias": reader.take(f"{theirs}.input_layer.bias"),
    }
    if f"{theirs}.learnable_query" in reader:
        out[f"{ours}.queries.weight"] = reader.take(f"{theirs}.learnable_query")
    return out | _fold_blocks(reader, theirs, f"{ours}.transformer", config, condition, bias=True)


def _fold_blocks(
    reader: _Reader, theirs: str, ours: str, config: TransformerConfig, condition: Tensor, bias: bool
) -> Tensors:
    out: Tensors = {}
    for index in range(config.depth):
        source, target = f"{theirs}.layers.{index}", f"{ours}.blocks.{index}"
        out[f"{target}.norm1.weight"] = _affine(reader, f"{source}.adaln_1.affine", condition)
        out[f"{target}.norm2.weight"] = _affine(reader, f"{source}.adaln_mlp.affine", condition)
        q, kv = reader.take(f"{source}.attn1.to_q.weight"), reader.take(f"{source}.attn1.to_kv.weight")
        out[f"{target}.attn.qkv.weight"] = torch.cat([q, kv])
        for norm in ("q_norm", "k_norm"):
            out[f"{target}.attn.{norm}.weight"] = reader.take(f"{source}.attn1.{norm}.weight")
        out[f"{target}.ffn.fc1.weight"] = reader.take(f"{source}.ffn.fc1.weight")
        if bias:
            out[f"{target}.ffn.fc1.bias"] = reader.take(f"{source}.ffn.fc1.bias")
        gated = (("gate1", "attn1.proj", "attn.proj"), ("gate_mlp", "ffn.fc2", "ffn.fc2"))
        for gate_name, their_layer, our_layer in gated:
            gate = _gate(reader, f"{source}.{gate_name}", condition, bias)
            out[f"{target}.{our_layer}.weight"] = gate[:, None] * reader.take(f"{source}.{their_layer}.weight")
            if bias:
                out[f"{target}.{our_layer}.bias"] = gate * reader.take(f"{source}.{their_layer}.bias")
    return out


def _quantizer(reader: _Reader, theirs: str, ours: str) -> Tensors:
    return {
        f"{ours}.codebook": reader.take(f"{theirs}.embedding.weight"),
        f"{ours}.proj.weight": reader.take(f"{theirs}.proj_in.weight"),
        f"{ours}.proj.bias": reader.take(f"{theirs}.proj_in.bias"),
    }


def _transformer_config(
    reader: _Reader, network: str, default_ratio: str, declared: dict[str, Any] | None
) -> TransformerConfig:
    """Sizes of a network from its tensors, checked against `declared`, which also gives what tensors cannot tell."""
    width = reader.peek(f"{network}.layers.0.attn1.to_q.weight").shape[1]
    head_dim = reader.peek(f"{network}.layers.0.attn1.q_norm.weight").shape[0]
    hidden = reader.peek(f"{network}.layers.0.ffn.fc2.weight").shape[1]
    depth = reader.count(f"{network}.layers.")
    if declared is None and head_dim != _PUBLISHED_HEAD_DIM:
        raise CheckpointError(
            f"{reader.path}: head size {head_dim} of {network!r} is not the published {_PUBLISHED_HEAD_DIM}, so its "
            "rotary axes are not known: give them with --config (the form of parity's config.json)"
        )
    found = TransformerConfig(
        width=width,
        depth=depth,
        heads=width // head_dim,
        mlp_ratio=str(declared["mlp_ratio"]) if declared else _ratio(width, hidden, default_ratio),
        rope_axes=tuple(declared["rope_axes"]) if declared and declared.get("rope_axes") else None,
    )
    if found.hidden != hidden:
        raise CheckpointError(
            f"{reader.path}: {network!r} has a feed-forward size of {hidden}, mlp_ratio {found.mlp_ratio} "
            f"would give {found.hidden}"
        )
    for name in ("width", "depth", "heads"):
        if declared and declared[name] != getattr(found, name):
            raise CheckpointError(
                f"{reader.path}: {network!r} has {name} {getattr(found, name)}, the config says {declared[name]}"
            )
    return found


def _ratio(width: int, hidden: int, default: str) -> str:
    return default if round(width * Fraction(default)) == hidden else str(Fraction(hidden, width))


def _tokenizer_config(encoder: _Reader, decoder: _Reader, options: ImportOptions) -> TokenizerConfig:
    declared = options.config or {}
    variant = _recognise_variant(encoder, decoder)
    _agree(encoder.path, "variant", variant, declared)
    patch_dim, code_dim = decoder.peek("dec.out.weight").shape[0], encoder.peek("quantizer.proj_in.weight").shape[0]
    patch = math.isqrt(patch_dim // 3)
    if 3 * patch * patch != patch_dim:
        raise CheckpointError(f"{decoder.path}: {patch_dim} outputs per patch are not those of a square RGB patch")
    _agree(decoder.path, "patch_size", patch, declared)
    size = declared.get("image_size", 256)
    image_size = options.image_size or ((size, size) if isinstance(size, int) else tuple(size))
    prologue = variant.startswith("prologue")
    query = {"prologue": "enc.learnable_query", "prologue-post": "semantic_enc.learnable_query"}.get(variant)
    config = TokenizerConfig(
        variant=variant,  # type: ignore[arg-type]
        image_size=image_size,
        patch_size=patch,
        encoder=_transformer_config(encoder, "enc", "8/3", declared.get("encoder")),
        decoder=_transformer_config(decoder, "dec", "8/3", declared.get("decoder")),
        prologue_encoder=_transformer_config(encoder, "semantic_enc", "11/4", declared.get("prologue_encoder"))
        if variant == "prologue-post"
        else None,
        code_dim=code_dim,
        codebook_size=encoder.peek("quantizer.embedding.weight").shape[0],
        prologue_tokens=encoder.peek(query).shape[1] if query else 0,
        prologue_codebook_size=encoder.peek("semantic_quantizer.embedding.weight").shape[0] if prologue else 0,
        prologue_temperature=(declared.get("prologue_temperature") or _CODE_TEMPERATURE) if prologue else 0.1,
    )
    for name in ("code_dim", "codebook_size", "prologue_tokens"):
        _agree(encoder.path, name, getattr(config, name), declared)
    _check_grid(encoder, config)
    return config


def _recognise_variant(encoder: _Reader, decoder: _Reader) -> str:
    if any(key.startswith("semantic_enc.") for key in encoder.tensors):
        return "prologue-post"
    if "semantic_quantizer.embedding.weight" in encoder:
        return "prologue"
    return "1d" if "dec.learnable_query" in decoder else "2d"


def _check_grid(encoder: _Reader, config: TokenizerConfig) -> None:
    """Only `1d` tensors, and the authors' position masks, know the number of visual tokens."""
    if config.variant != "1d":
        return
    count = encoder.peek("enc.learnable_query").shape[1]
    if count != config.visual_tokens:
        raise CheckpointError(
            f"{encoder.path}: {count} queries, but an image of {config.image_size[0]}×{config.image_size[1]} has "
            f"{config.visual_tokens} patches: give the right --image-size"
        )


def _agree(path: Path, name: str, found: object, declared: dict[str, Any]) -> None:
    if declared.get(name) is not None and declared[name] != found:
        raise CheckpointError(f"{path}: {name} is {found!r} in the tensors, the config says {declared[name]!r}")


def _prior_config(reader: _Reader, tokenizer: TokenizerConfig, options: ImportOptions) -> PriorConfig:
    declared = options.config or {}
    vocabulary = reader.peek("semantic_emb.weight").shape[0]
    prologue = tokenizer.prologue_tokens > 0 and vocabulary != tokenizer.codebook_size
    layout = LayoutConfig(
        prologue_tokens=tokenizer.prologue_tokens if prologue else 0,
        prologue_codebook_size=tokenizer.prologue_codebook_size if prologue else 0,
        visual_tokens=tokenizer.visual_tokens,
        visual_codebook_size=tokenizer.codebook_size,
    )
    classes = reader.peek("bos_emb.weight").shape[0] - 1
    _agree(reader.path, "num_classes", classes, declared)
    return PriorConfig(
        layout=layout,
        num_classes=classes,
        transformer=_transformer_config(reader, "ar_model", "11/4", declared.get("prior")),
        tied="ar_model.out.weight" not in reader,
    )


def load_config(path: Path) -> dict[str, Any]:
    """A config in the form of parity's config.json."""
    config = load_json(path)
    if not isinstance(config, dict) or "variant" not in config:
        raise CheckpointError(f"{path} is not a checkpoint config: it must be a table with 'variant', 'encoder', …")
    return config
