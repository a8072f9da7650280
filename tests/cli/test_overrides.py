"""Preset < file < flags, and a sentence for every flag that cannot be followed."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from tyro.conf import Suppress

from prologue.cli._overrides import given_fields, resolve_run_config, with_fields
from prologue.cli.options import parse
from prologue.config import REGISTRY, RunConfig, TransformerConfig
from prologue.errors import ConfigError
from prologue.presets import names, preset
from prologue.utils.serialization import to_dict

BASE = "shapes-smoke"


@dataclass(frozen=True, kw_only=True)
class Options:
    data: str = "shapes"
    tokenizer: str | None = None
    json: Path | None = None
    fields: Suppress[dict[str, Any]] = field(default_factory=dict)


def _parse(line: str | list[str]) -> Options:
    return parse(
        with_fields(Options, BASE), line.split() if isinstance(line, str) else line, "prologue fake", "A test."
    )


def _resolve(line: str | list[str], file: Path | None = None, base: str = BASE) -> RunConfig:
    return resolve_run_config(base, file, _parse(line).fields)


def test_flags_of_every_type() -> None:
    config = _resolve(
        "--seed 3 --precision=bf16 --data.background 0 10 255 --data.flip false --prior.tied --prior.prologue FALSE "
        "--tokenizer-training.autoencoder.lr 3e-4 --tokenizer_training.prior.betas 0.5,0.95 "
        "--tokenizer-training.perceptual-path w.safetensors --tokenizer-training.prologue-kmeans 5 6 7 "
        "--prior.rope-axes 12 10 10"
    )
    training = config.tokenizer_training
    assert (config.seed, config.precision) == (3, "bf16")
    assert (config.data.background, config.data.flip) == ((0, 10, 255), False)
    assert (config.prior.tied, config.prior.prologue, config.prior.rope_axes) == (True, False, (12, 10, 10))
    assert (training.autoencoder.lr, training.prior.betas) == (3e-4, (0.5, 0.95))
    assert (training.perceptual_path, training.prologue_kmeans) == ("w.safetensors", (5, 6, 7))


def test_flags_leave_the_rest_of_the_preset() -> None:
    assert _resolve("") == preset(BASE)
    assert _resolve("--seed 3") == dataclasses.replace(preset(BASE), seed=3)


def test_components_by_name_or_with_options() -> None:
    fsq = {"name": "fsq", "levels": [5, 5]}
    assert _resolve("--tokenizer.quantizer fsq").tokenizer.quantizer == {"name": "fsq"}
    assert _resolve([f"--tokenizer.quantizer={json.dumps(fsq)}"]).tokenizer.quantizer == fsq


def test_lists_of_components() -> None:
    terms = [{"name": "l2", "weight": 2.0, "start": 3}, {"name": "vq", "length": 1}]
    config = _resolve(["--tokenizer-training.losses", *map(json.dumps, terms), "--seed", "1"])
    assert (config.tokenizer_training.losses, config.seed) == (tuple(terms), 1)
    assert _resolve("--tokenizer-training.losses none").tokenizer_training.losses == ()


def test_fields_are_still_found_under_earlier_names(tmp_path: Path) -> None:
    flags = "--tokenizer-training.revive-every 7 --tokenizer_training.revive_until=0.5"
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"tokenizer_training": {"revive_every": 7, "revive_until": 0.5}}), encoding="utf-8")
    for found in (_resolve(flags), _resolve("", file)):
        training = found.tokenizer_training
        assert (training.dead_code_reset_every, training.dead_code_reset_until) == (7, 0.5)
    both = _resolve("--tokenizer-training.dead-code-reset-every 9", file).tokenizer_training
    assert (both.dead_code_reset_every, both.dead_code_reset_until) == (9, 0.5)


def _fields(kind: Any, where: str = "") -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    """Every field of a configuration that has no fields itself, by its dotted name."""
    for item in dataclasses.fields(kind):
        value = getattr(kind, item.name)
        if dataclasses.is_dataclass(value):
            yield from _fields(value, f"{where}{item.name}.")
        else:
            yield where + item.name, item


def _value(config: RunConfig, name: str) -> Any:
    return functools.reduce(getattr, name.split("."), config)


def test_every_component_field_names_its_registry() -> None:
    config = RunConfig()
    components = [(name, item) for name, item in _fields(config) if isinstance(_value(config, name), dict)]
    assert len(components) >= 2
    for name, item in components:
        module, _, registry = item.metadata[REGISTRY].partition(":")
        assert _value(config, name)["name"] in getattr(import_module(module), registry)


def test_none_and_empty() -> None:
    assert _resolve("--tokenizer-training.prologue-kmeans none").tokenizer_training.prologue_kmeans == ()
    assert _resolve("--prior.rope-axes none").prior.rope_axes is None


def test_optional_group_appears_with_its_first_field() -> None:
    config = _resolve("--tokenizer.variant prologue-post --tokenizer.prologue-encoder.width 96 "
                      "--tokenizer.prologue-encoder.heads 3")  # fmt: skip
    assert config.tokenizer.prologue_encoder == TransformerConfig(width=96, heads=3)
    none = _resolve("--tokenizer.variant prologue --tokenizer.prologue-encoder none", base="small-32-post")
    assert none.tokenizer == dataclasses.replace(
        preset("small-32-post").tokenizer, variant="prologue", prologue_encoder=None
    )


def test_preset_file_flags(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"seed": 1, "data": {"flip": False, "crop": "center"}}), encoding="utf-8")
    config = _resolve("--seed 2 --data.crop random", file)
    assert config == dataclasses.replace(
        preset(BASE), seed=2, data=dataclasses.replace(preset(BASE).data, flip=False, crop="random")
    )


def test_file_and_flags_are_validated_together(tmp_path: Path) -> None:
    """Neither half makes a valid `2d` tokenizer alone."""
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"tokenizer": {"variant": "2d"}}), encoding="utf-8")
    assert _resolve("--tokenizer.prologue-tokens 0", file).tokenizer.variant == "2d"
    with pytest.raises(ConfigError, match="set prologue_tokens to 0"):
        _resolve("", file)


@pytest.mark.parametrize("name", names())
def test_whole_config_as_file_wins_over_the_preset(name: str, tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text(json.dumps(to_dict(preset(name))), encoding="utf-8")
    assert _resolve("", file) == preset(name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"data": {"filp": true}}', r"run\.json: unknown field 'data\.filp': did you mean 'flip'\?"),
        ('{"data": 3}', r"run\.json: data must be a table of fields, not 3"),
        ("[]", r"run\.json: a configuration must be a table"),
        ("{", r"run\.json is not readable JSON"),
    ],
)
def test_bad_files_are_named(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        _resolve("", file)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--data.filp true", "unrecognized options: --data.filp, true (did you mean --data.flip?); see"),
        ("--tokenizer.widht 3", "unrecognized options: --tokenizer.widht, 3 (did you mean --tokenizer.encoder.width?)"),
        ("--sed 3", "unrecognized options: --sed, 3 (did you mean --seed?)"),
        ("--zzz.qqq 3", "unrecognized options: --zzz.qqq, 3; see `prologue fake --help`"),
        (
            "--tokenizer.encoder 3",
            "unrecognized options: --tokenizer.encoder, 3 (a group of options: set one of --tokenizer.encoder.width, ",
        ),
        (
            "--tokenizer.prologue-encoder 3",
            "invalid choice '3' for argument '--tokenizer.prologue-encoder'. Expected one of ('none',)",
        ),
        ("--seed x", "--seed must be a whole number, not 'x'"),
        ("--data.file-rule x", "--data.file-rule must be a whole number or none, not 'x'"),
        ("--prior.rope-axes 8 8", "--prior.rope-axes must be none|INT INT INT, not '8', '8'"),
        ("--seed", "missing value for argument '--seed'"),
        ("--seed 1 2", "unrecognized options: 2 (a value too many after --seed)"),
        ("--data.flip maybe", "unrecognized options: maybe (a value too many after --data.flip)"),
        ("--data.flip=maybe", "--data.flip must be true or false, not 'maybe'"),
        ("--data.background 0 0", "missing value for argument '--data.background'. Expected 3 values"),
        ("--data.crop diagonal", "invalid choice 'diagonal' for argument '--data.crop'. Expected one of ('random', "),
        ("--tokenizer.quantizer {name", "--tokenizer.quantizer: '{name' is neither a name nor JSON"),
        ("--tokenizer.quantizer no_such_module:A", "the quantizer 'no_such_module:A' cannot be imported"),
        ('--tokenizer.quantizer {"levels":[3]}', "TokenizerConfig.quantizer must be a table {"),
        ("--tokenizer.patch-size 5", "image rows 32 is not divisible by the patch size 5"),
    ],
)
def test_flags_that_cannot_be_followed(line: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _resolve(line)
    assert str(caught.value).startswith(message)


def test_a_command_keeps_its_own_options() -> None:
    """`--tokenizer` and `--data` are options of the command, and groups of fields begin with the same words."""
    options = _parse(
        "--seed 3 --data digits --data.background 0 0 0 --tokenizer runs/a --data.flip "
        "--prior.width=64 --tokenizer-training.prologue-kmeans 1 2 --json x.json"
    )
    assert (options.data, options.tokenizer, options.json) == ("digits", "runs/a", Path("x.json"))
    assert given_fields(options.fields) == {
        "seed": 3,
        "data": {"background": (0, 0, 0), "flip": True},
        "prior": {"width": 64},
        "tokenizer_training": {"prologue_kmeans": (1, 2)},
    }


def _written(value: Any) -> list[str]:
    """A configuration's value as the command line takes it."""
    if isinstance(value, tuple) and value:
        return [text for item in value for text in _written(item)]
    if isinstance(value, dict):
        return [value["name"] if value.keys() == {"name"} else json.dumps(value)]
    return ["none" if value in (None, ()) else str(value).lower() if isinstance(value, bool) else str(value)]


def _flags(config: RunConfig) -> Iterator[tuple[str, list[str]]]:
    for name, _ in _fields(config):
        yield f"--{name.replace('_', '-')}", _written(_value(config, name))


def test_help_lists_every_field_and_its_value(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        parse(with_fields(Options, "small-32-post"), ["--help"], "prologue fake", "")
    shown = " ".join(line.strip(" │") for line in capsys.readouterr().out.splitlines())
    for flag, values in _flags(preset("small-32-post")):
        found = re.search(rf" {flag}[ ,](?P<about>.*?)\(default: (?P<value>.*?)\)", shown)
        assert found is not None, flag
        assert found["value"] == " ".join(values), flag
        assert found["about"].rstrip().endswith("."), f"{flag} has no description"


def test_every_scalar_can_be_set_from_its_own_text() -> None:
    """Each value of a preset, written as the help writes it, gives the same configuration."""
    config = preset("small-32-post")
    line = [text for flag, values in _flags(config) for text in (flag, *values)]
    assert _resolve(line, base="base-b") == config
