"""Imports the authors' checkpoints and folds their constant condition into plain weights (METHOD §11)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prologue.config import VARIANTS, PriorConfig, TokenizerConfig, TransformerConfig, Variant
from prologue.errors import CheckpointError, ConfigError
from prologue.models.prior import Prior
from prologue.models.sequence import SequenceLayout
from prologue.models.tokenizer import Tokenizer
from prologue.models.weights import load_exactly, read_tensors
from prologue.utils.serialization import from_dict, load_json, to_dict

Tensors = dict[str, Tensor]

_DROPPED = ("pos_select_mask", "uncond_ar_labels")
_PUBLISHED_HEAD_DIM = 64
_CODE_TEMPERATURE = 0.1


class _Reader:
    """The tensors of one file. It records the tensors that are read, so that `finish` can find unexpected ones."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise CheckpointError(
                f"{path} does not exist: the EMA weights are the later files of the authors' directory, and --online "
                "reads the earlier ones"
            )
        whole = read_tensors(path)
        self.tensors = {k: v for k, v in whole.items() if not k.endswith(_DROPPED)}
        self.dropped_shapes = {k: tuple(v.shape) for k, v in whole.items() if k not in self.tensors}
        self.unread = set(self.tensors)

    def __contains__(self, key: str) -> bool:
        return key in self.tensors

    def take(self, key: str, like: tuple[int | None, ...] | None = None) -> Tensor:
        """The tensor in fp32. `like` is its expected shape, in which None matches any size."""
        shape = self.shape(key)
        self.unread.discard(key)
        if like is not None:
            fits = len(shape) == len(like) and all(b in (None, a) for a, b in zip(shape, like, strict=True))
            if not fits:
                expected = " × ".join("any" if size is None else str(size) for size in like)
                raise CheckpointError(f"{self.path}: tensor {key!r} has shape {shape}, expected {expected}")
        return self.tensors[key].float()

    def shape(self, key: str) -> tuple[int, ...]:
        if key not in self.tensors:
            raise CheckpointError(f"{self.path} lacks the tensor {key!r}")
        return tuple(self.tensors[key].shape)

    def size(self, key: str, axis: int, dims: int) -> int:
        """One size of a tensor with `dims` dimensions."""
        shape = self.shape(key)
        if len(shape) != dims:
            raise CheckpointError(f"{self.path}: tensor {key!r} has shape {shape}, expected {dims} dimensions")
        return shape[axis]

    def count(self, prefix: str) -> int:
        """The number of numbered children of `prefix`."""
        numbers = {key[len(prefix) :].split(".")[0] for key in self.tensors if key.startswith(prefix)}
        return len(numbers)

    def finish(self) -> None:
        if self.unread:
            raise CheckpointError(f"{self.path} has an unexpected tensor {min(self.unread)!r}")


@dataclass(frozen=True)
class ImportOptions:
    """Settings that the tensors do not determine. Head sizes other than 64 need `config`, in the format of parity's
    config.json."""

    image_size: tuple[int, int] | None = None
    config: dict[str, Any] | None = None
    online: bool = False


def import_pipeline_models(tokenizer: Path, prior: Path, options: ImportOptions) -> tuple[Tokenizer, Prior]:
    """Both models from the authors' directories, with variant and sizes from the tensors."""
    imported = import_tokenizer(tokenizer, options)
    name = "model.safetensors" if options.online else "model_1.safetensors"
    return imported, import_prior(prior / name, imported.config, options)


def import_tokenizer(folder: Path, options: ImportOptions) -> Tokenizer:
    """The tokenizer of a directory, from the EMA files `_2` (encoder) and `_3` (decoder) or the online ones."""
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
    """The prior of a file, for sequences of `tokenizer`."""
    reader = _Reader(path)
    config = _prior_config(reader, tokenizer, options)
    model = Prior(config)
    load_exactly(model, fold_prior(config, reader), str(path))
    reader.finish()
    return model.eval()


def fold_tokenizer(config: TokenizerConfig, encoder: _Reader, decoder: _Reader) -> Tensors:
    """The state dict of a `Tokenizer` from the authors' encoder and decoder files."""
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
    """The state dict of a `Prior` from the authors' file."""
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
    """The constant condition `c` of a network, computed from its null class."""
    weight = reader.take(f"{network}.cond_proj.0.weight", (None, None))
    c = weight[:, -1] + reader.take(f"{network}.cond_proj.0.bias", (len(weight),))
    scale = 1 + reader.take(f"{network}.cond_proj.1.weight", (len(weight),))
    return F.gelu(F.normalize(c, dim=0) * math.sqrt(len(c)) * scale, approximate="tanh")


def _affine(reader: _Reader, name: str, condition: Tensor) -> Tensor:
    scale = reader.take(f"{name}.weight", (None, len(condition))) @ condition
    return scale + reader.take(f"{name}.bias", (len(scale),))


def _gate(reader: _Reader, name: str, condition: Tensor, bias: bool) -> Tensor:
    gate = reader.take(f"{name}.weight", (None, len(condition))) @ condition
    return gate + reader.take(f"{name}.bias", (len(gate),)) if bias else gate


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
        q = reader.take(f"{source}.attn1.to_q.weight", (config.width, config.width))
        kv = reader.take(f"{source}.attn1.to_kv.weight", (2 * config.width, config.width))
        out[f"{target}.attn.qkv.weight"] = torch.cat([q, kv])
        for norm in ("q_norm", "k_norm"):
            out[f"{target}.attn.{norm}.weight"] = reader.take(f"{source}.attn1.{norm}.weight")
        out[f"{target}.ffn.fc1.weight"] = reader.take(f"{source}.ffn.fc1.weight")
        if bias:
            out[f"{target}.ffn.fc1.bias"] = reader.take(f"{source}.ffn.fc1.bias")
        gated = (("gate1", "attn1.proj", "attn.proj"), ("gate_mlp", "ffn.fc2", "ffn.fc2"))
        for gate_name, their_layer, our_layer in gated:
            gate = _gate(reader, f"{source}.{gate_name}", condition, bias)
            weight = reader.take(f"{source}.{their_layer}.weight", (len(gate), None))
            out[f"{target}.{our_layer}.weight"] = gate[:, None] * weight
            if bias:
                out[f"{target}.{our_layer}.bias"] = gate * reader.take(f"{source}.{their_layer}.bias", (len(gate),))
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
    """Sizes of a network from its tensors. They must agree with `declared`, which gives the remaining sizes."""
    width = reader.size(f"{network}.layers.0.attn1.to_q.weight", 1, 2)
    head_dim = reader.size(f"{network}.layers.0.attn1.q_norm.weight", 0, 1)
    hidden = reader.size(f"{network}.layers.0.ffn.fc2.weight", 1, 2)
    depth = reader.count(f"{network}.layers.")
    if declared is None and head_dim != _PUBLISHED_HEAD_DIM:
        raise CheckpointError(
            f"{reader.path}: head size {head_dim} of {network!r} is not the published {_PUBLISHED_HEAD_DIM}, so its "
            "rotary axes are not known: give them with --config (the format of parity's config.json)"
        )
    sizes = {"width": width, "depth": depth, "heads": width // head_dim}
    for name, size in sizes.items():
        if declared and declared[name] != size:
            raise CheckpointError(f"{reader.path}: {network!r} has {name} {size}, the config says {declared[name]}")
    found = TransformerConfig(
        **sizes,
        mlp_ratio=str(declared["mlp_ratio"]) if declared else _ratio(width, hidden, default_ratio),
        rope_axes=tuple(declared["rope_axes"]) if declared and declared.get("rope_axes") else None,
    )
    if found.hidden != hidden:
        raise CheckpointError(
            f"{reader.path}: {network!r} has a feed-forward size of {hidden}, but mlp_ratio {found.mlp_ratio} "
            f"gives {found.hidden}"
        )
    return found


def _ratio(width: int, hidden: int, default: str) -> str:
    return default if round(width * Fraction(default)) == hidden else str(Fraction(hidden, width))


def _tokenizer_config(encoder: _Reader, decoder: _Reader, options: ImportOptions) -> TokenizerConfig:
    declared = options.config or {}
    variant = _recognise_variant(encoder, decoder)
    _agree(encoder.path, "variant", variant, declared)
    patch_dim = decoder.size("dec.out.weight", 0, 2)
    patch = math.isqrt(patch_dim // 3)
    if 3 * patch * patch != patch_dim:
        raise CheckpointError(f"{decoder.path}: {patch_dim} outputs per patch do not make a square RGB patch")
    _agree(decoder.path, "patch_size", patch, declared)
    size = declared.get("image_size", 256)
    image_size = options.image_size or ((size, size) if isinstance(size, int) else tuple(size))
    traits = VARIANTS[variant]
    network = "semantic_enc" if traits.post_hoc else "enc"
    config = TokenizerConfig(
        variant=variant,
        image_size=image_size,
        patch_size=patch,
        encoder=_transformer_config(encoder, "enc", "8/3", declared.get("encoder")),
        decoder=_transformer_config(decoder, "dec", "8/3", declared.get("decoder")),
        prologue_encoder=_transformer_config(encoder, "semantic_enc", "11/4", declared.get("prologue_encoder"))
        if traits.post_hoc
        else None,
        code_dim=encoder.size("quantizer.proj_in.weight", 0, 2),
        codebook_size=encoder.size("quantizer.embedding.weight", 0, 2),
        prologue_tokens=encoder.size(f"{network}.learnable_query", 1, 3) if traits.has_prologue else 0,
        prologue_codebook_size=encoder.size("semantic_quantizer.embedding.weight", 0, 2) if traits.has_prologue else 0,
        prologue_temperature=(traits.has_prologue and declared.get("prologue_temperature")) or _CODE_TEMPERATURE,
    )
    for name in ("visual_tokens", "code_dim", "codebook_size", "prologue_tokens", "prologue_codebook_size"):
        _agree(encoder.path, name, getattr(config, name), declared)
    _check_grid(encoder, config)
    return config


def _recognise_variant(encoder: _Reader, decoder: _Reader) -> Variant:
    """The variant that has these tensors."""
    post_hoc = any(key.startswith("semantic_enc.") for key in encoder.tensors)
    has_prologue = post_hoc or "semantic_quantizer.embedding.weight" in encoder
    found = has_prologue, post_hoc, not has_prologue and "dec.learnable_query" in decoder
    return next(
        name
        for name, traits in VARIANTS.items()
        if (traits.has_prologue, traits.post_hoc, traits.visual_queries) == found
    )


def _check_grid(encoder: _Reader, config: TokenizerConfig) -> None:
    """Compare the number of visual tokens with the queries and position masks that a file has."""
    counts = []
    if config.traits.visual_queries:
        counts.append(encoder.size("enc.learnable_query", 1, 3))
    mask = encoder.dropped_shapes.get("quantizer.pos_select_mask", ())
    if len(mask) == 2:
        counts.append(mask[0])
    for count in counts:
        if count != config.visual_tokens:
            raise CheckpointError(
                f"{encoder.path} has {count} visual tokens, but an image of "
                f"{config.image_size[0]}×{config.image_size[1]} has {config.visual_tokens} patches: "
                "give the right --image-size"
            )


def _agree(path: Path, name: str, found: object, declared: dict[str, Any]) -> None:
    if declared.get(name) is not None and declared[name] != found:
        raise CheckpointError(f"{path}: {name} is {found!r} in the tensors, but {declared[name]!r} in the config")


def _prior_config(reader: _Reader, tokenizer: TokenizerConfig, options: ImportOptions) -> PriorConfig:
    declared = options.config or {}
    vocabulary = reader.size("semantic_emb.weight", 0, 2)
    layout, without = SequenceLayout.of(tokenizer), SequenceLayout.of(tokenizer, prologue=False)
    if vocabulary == without.vocabulary:
        layout = without
    if vocabulary != layout.vocabulary:
        raise CheckpointError(
            f"{reader.path} has {vocabulary} token embeddings, but a prior of this {tokenizer.variant!r} tokenizer has "
            f"{layout.vocabulary}: the two were not trained together"
        )
    classes = reader.size("bos_emb.weight", 0, 2) - 1
    tied = "ar_model.out.weight" not in reader
    _agree(reader.path, "num_classes", classes, declared)
    _agree(reader.path, "tied_embeddings", tied, declared.get("prior", {}))
    return PriorConfig(
        layout=layout.config,
        num_classes=classes,
        transformer=_transformer_config(reader, "ar_model", "11/4", declared.get("prior")),
        tied=tied,
    )


def load_config(path: Path) -> dict[str, Any]:
    """A config in the format of parity's config.json; a `CheckpointError` names a value that is wrong."""
    try:
        config = load_json(path)
        if not isinstance(config, dict) or not {"variant", "encoder", "decoder", "prior"} <= config.keys():
            raise ConfigError(f"{path} is not a checkpoint config: it must be a table with 'variant', 'encoder', …")
        for name in ("encoder", "decoder", "prior", "prologue_encoder"):
            if config.get(name) is not None:
                config[name] = config[name] | to_dict(_declared_sizes(config[name], name))
        size, temperature = config.get("image_size", 256), config.get("prologue_temperature")
        sides = size if isinstance(size, list) else [size, size]
        if len(sides) != 2 or not all(isinstance(side, int) for side in sides):
            raise ConfigError(f"image_size must be a number or [rows, columns], not {size!r}")
        if temperature is not None and not isinstance(temperature, int | float):
            raise ConfigError(f"prologue_temperature must be a number, not {temperature!r}")
    except ConfigError as error:
        raise CheckpointError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    return config


def _declared_sizes(network: Any, name: str) -> TransformerConfig:
    """The sizes of one network of a config, which may have further keys."""
    asked = {field.name for field in dataclasses.fields(TransformerConfig)}
    if not isinstance(network, dict):
        raise ConfigError(f"{name} must be a table of sizes, not {network!r}")
    for field in sorted(asked - {"rope_axes"}):
        if field not in network:
            raise ConfigError(f"{name} lacks {field!r}")
    return from_dict(TransformerConfig, {key: value for key, value in network.items() if key in asked}, name)
