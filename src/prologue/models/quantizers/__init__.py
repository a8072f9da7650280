"""Quantizers by name: the paper's, the package's, and quantizers that the caller registers.

`tokenizer.quantizer` and `tokenizer.prologue_quantizer` of the configuration name them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prologue.config import TokenizerConfig
from prologue.errors import ConfigError
from prologue.models.quantizers.base import Quantized, Quantizer, Rows
from prologue.models.quantizers.cosine import (
    CosineQuantizer,
    PrologueQuantizer,
    VisualQuantizer,
    monitored_entropies,
    spherical_kmeans,
)
from prologue.utils.registry import Registry

__all__ = [
    "PROLOGUE_QUANTIZERS",
    "QUANTIZERS",
    "CosineQuantizer",
    "PrologueQuantizer",
    "Quantized",
    "Quantizer",
    "Rows",
    "VisualQuantizer",
    "build_prologue_quantizer",
    "build_quantizer",
    "monitored_entropies",
    "spherical_kmeans",
]

QUANTIZERS: Registry[type[Quantizer]] = Registry(
    "quantizer", {"cosine": VisualQuantizer, "fsq": "prologue.models.quantizers.fsq:FSQ"}
)
"""Quantizers of visual tokens."""
PROLOGUE_QUANTIZERS: Registry[type[Quantizer]] = Registry("prologue quantizer", {"cosine": PrologueQuantizer})
"""Quantizers of prologue tokens, which give a straight-through one-hot."""


def build_quantizer(config: TokenizerConfig, width: int) -> Quantizer:
    """The visual quantizer of a tokenizer for features of `width` numbers."""
    context = {"width": width, "code_dim": config.code_dim, "size": config.codebook_size}
    return _build(QUANTIZERS, config.quantizer, context, "codebook_size")


def build_prologue_quantizer(config: TokenizerConfig, width: int) -> Quantizer:
    """The prologue quantizer of a tokenizer for features of `width` numbers."""
    context = {
        "width": width,
        "code_dim": config.code_dim,
        "size": config.prologue_codebook_size,
        "temperature": config.prologue_temperature,
    }
    return _build(PROLOGUE_QUANTIZERS, config.prologue_quantizer, context, "prologue_codebook_size")


def _build(
    registry: Registry[type[Quantizer]], component: Mapping[str, Any], context: Mapping[str, Any], field: str
) -> Quantizer:
    """Build a quantizer and check that it agrees with the numbers of the configuration.

    Raises:
        ConfigError: the name, an option, the number of ids, or the ids for each position do not fit.
    """
    name = component["name"]
    options = {key: value for key, value in component.items() if key != "name"}
    kind = registry.get(name)
    if not (isinstance(kind, type) and issubclass(kind, Quantizer)):
        raise ConfigError(f"the {registry.kind} {name!r} must be a subclass of prologue.models.quantizers.Quantizer")
    quantizer: Quantizer = registry.build(name, options, **context)
    if quantizer.size != context["size"]:
        raise ConfigError(
            f"the {registry.kind} {name!r} has {quantizer.size} ids: set tokenizer.{field} to {quantizer.size}, "
            f"not {context['size']}"
        )
    stated = options.get("ids_per_position", 1)
    if quantizer.ids_per_position != stated:
        raise ConfigError(
            f"the {registry.kind} {name!r} gives {quantizer.ids_per_position} ids for each position and its option "
            f"ids_per_position is {stated}: set the option to {quantizer.ids_per_position}"
        )
    return quantizer
