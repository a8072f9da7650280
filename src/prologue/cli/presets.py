"""`prologue presets`: a table of the named configurations, or one of them as JSON for `--config`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

from rich import box
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg

from prologue import presets
from prologue.cli.options import parse
from prologue.config import RunConfig, TokenizerConfig, TransformerConfig
from prologue.utils.measurements import export_measurement, provenance
from prologue.utils.options import JsonOption
from prologue.utils.serialization import to_dict

_CAPTION = "tokens: prologue + visual; tokenizer, prior: parameters; steps: tokenizer stage, prior stage"

_CLASSES = 1000
"""Classes that the number of a prior's parameters assumes; each class has one embedding row."""


_NAME = arg(metavar="[PRESET]", help_behavior_hint="(default: a table of all)")


@dataclass(frozen=True)
class PresetsOptions:
    name: Annotated[Positional[str | None], _NAME] = None
    """Preset to print as JSON, with all fields of its configuration."""
    json: JsonOption = None


def run(argv: list[str]) -> int:
    """Print the table of presets, or the configuration of one."""
    options = parse(PresetsOptions, argv, "prologue presets", "List the named configurations, or print one as JSON.")
    if options.name is not None:
        presets.PRESETS.import_named(options.name)
    chosen = [options.name] if options.name is not None else presets.names()
    records = [_record(name, presets.preset(name)) for name in chosen]
    if options.name is not None:
        print(json.dumps(to_dict(presets.preset(options.name)), indent=1))
    else:
        Console().print(_table(records))
    export_measurement(options.json, provenance(["presets", *argv]), records)
    return 0


def _record(name: str, config: RunConfig) -> dict[str, Any]:
    tokenizer = config.tokenizer
    return {
        "name": name,
        "purpose": presets.describe(name),
        "variant": tokenizer.variant,
        "image_size": list(tokenizer.image_size),
        "prologue_tokens": tokenizer.prologue_tokens,
        "visual_tokens": tokenizer.visual_tokens,
        "tokenizer_parameters": tokenizer_parameters(tokenizer),
        "prior_parameters": prior_parameters(config, _CLASSES),
        "tokenizer_steps": config.tokenizer_training.steps,
        "tokenizer_batch": config.tokenizer_training.batch,
        "prior_steps": 0 if config.tokenizer_training.one_stage else config.prior_training.steps,
        "prior_batch": config.prior_training.batch,
    }


def _table(records: list[dict[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, caption=_CAPTION, caption_justify="left")
    for heading in ("preset", "px", "tokens", "tokenizer", "prior", "steps", "for"):
        table.add_column(heading, no_wrap=heading != "for")
    for record in records:
        rows, columns = record["image_size"]
        stages = [record["tokenizer_steps"], record["prior_steps"]]
        table.add_row(
            record["name"],
            str(rows) if rows == columns else f"{rows}×{columns}",
            f"{record['prologue_tokens']} + {record['visual_tokens']}",
            _count(record["tokenizer_parameters"]),
            _count(record["prior_parameters"]),
            ", ".join(_count(steps) for steps in stages if steps),
            record["purpose"],
        )
    return table


def _count(number: int) -> str:
    """1300000 as `1.3M`, 20000 as `20k`."""
    for unit, size in (("M", 1_000_000), ("k", 1000)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)


def tokenizer_parameters(config: TokenizerConfig) -> int:
    """Count the parameters of encoders, quantizers and decoder (METHOD §4, §5) without building them."""
    encoder, decoder, dim = config.encoder, config.decoder, config.code_dim
    prologue_width = config.prologue_encoder.width if config.prologue_encoder else encoder.width
    count = _linear(config.patch_dim, encoder.width) + _blocks(encoder, biases=True)
    count += _linear(encoder.width, dim) + config.codebook_size * dim
    if config.traits.visual_queries:
        count += config.patches * (encoder.width + decoder.width)
    if config.prologue_encoder:
        count += _linear(encoder.width, prologue_width) + _blocks(config.prologue_encoder, biases=True)
    if config.prologue_tokens:
        count += config.prologue_queries * prologue_width
        count += _linear(prologue_width, dim) + config.prologue_codebook_size * dim
    count += _linear(dim, decoder.width) + _blocks(decoder, biases=True)
    return count + decoder.width + _linear(decoder.width, config.patch_dim)


def prior_parameters(config: RunConfig, classes: int) -> int:
    """Count the parameters of the prior (METHOD §6) with `classes` classes without building it."""
    tokenizer, options = config.tokenizer, config.prior
    extra = tokenizer.prologue_codebook_size + 1 if tokenizer.prologue_tokens and options.prologue else 0
    vocabulary = tokenizer.codebook_size + extra
    tables = vocabulary * (1 if options.tied else 2) + classes + 1
    return tables * options.width + _blocks(options.transformer, biases=False) + options.width


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def _blocks(config: TransformerConfig, biases: bool) -> int:
    """Parameters of blocks (METHOD §3): q, k, v without bias, QK-norm, projection, gated feed-forward, two norms."""
    width, hidden = config.width, config.hidden
    weights = 4 * width * width + 3 * width * hidden + 2 * config.head_dim + 2 * width
    return config.depth * (weights + (2 * width + 2 * hidden if biases else 0))
