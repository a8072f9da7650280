"""Preset < file < flags, and a sentence for every flag that cannot be followed."""

from __future__ import annotations

import dataclasses
import functools
import json
import typing
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from prologue.cli import _overrides
from prologue.cli._overrides import fields_help, parse_overrides, resolve_run_config, split_overrides
from prologue.config import RunConfig, TransformerConfig
from prologue.errors import ConfigError
from prologue.presets import names, preset
from prologue.utils.serialization import from_dict, to_dict

BASE = "shapes-smoke"


def _resolve(line: str, file: Path | None = None) -> RunConfig:
    return resolve_run_config(BASE, file, line.split())


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
    assert resolve_run_config(BASE, None, [f"--tokenizer.quantizer={json.dumps(fsq)}"]).tokenizer.quantizer == fsq
    assert "--tokenizer.quantizer NAME|{" in fields_help(preset(BASE))


def test_lists_of_components() -> None:
    terms = [{"name": "l2", "weight": 2.0, "start": 3}, {"name": "vq", "length": 1}]
    for flags in (["--tokenizer-training.losses", *map(json.dumps, terms), "--seed", "1"], ["--seed=1"]):
        found = resolve_run_config(BASE, None, flags)
        assert found.tokenizer_training.losses == tuple(terms if "--seed" in flags else ())
        assert found.seed == 1
    assert _resolve("--tokenizer-training.losses none").tokenizer_training.losses == ()


def test_fields_are_still_found_under_earlier_names(tmp_path: Path) -> None:
    flags = "--tokenizer-training.revive-every 7 --tokenizer_training.revive_until=0.5"
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"tokenizer_training": {"revive_every": 7, "revive_until": 0.5}}), encoding="utf-8")
    for found in (_resolve(flags), _resolve("", file)):
        training = found.tokenizer_training
        assert (training.dead_code_reset_every, training.dead_code_reset_until) == (7, 0.5)


def test_every_component_field_names_its_registry() -> None:
    components = [field for field in _overrides._fields().values() if typing.get_origin(field.hint) is dict]
    assert len(components) >= 2
    for field in components:
        module, _, name = str(field.registry).partition(":")
        registry = getattr(import_module(module), name)
        assert _default(field.path)["name"] in registry


def _default(path: str) -> Any:
    return functools.reduce(getattr, path.split("."), RunConfig())


def test_none_and_empty() -> None:
    assert _resolve("--tokenizer-training.prologue-kmeans none").tokenizer_training.prologue_kmeans == ()
    assert _resolve("--prior.rope-axes none").prior.rope_axes is None


def test_optional_group_appears_with_its_first_field() -> None:
    config = _resolve("--tokenizer.variant prologue-post --tokenizer.prologue-encoder.width 96 "
                      "--tokenizer.prologue-encoder.heads 3")  # fmt: skip
    assert config.tokenizer.prologue_encoder == TransformerConfig(width=96, heads=3)
    assert resolve_run_config(
        "small-32-post", None, ["--tokenizer.variant", "prologue", "--tokenizer.prologue-encoder", "none"]
    ).tokenizer == dataclasses.replace(preset("small-32-post").tokenizer, variant="prologue", prologue_encoder=None)


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
        ("--data.filp true", "unknown field --data.filp: did you mean --data.flip?"),
        ("--tokenizer.widht 3", "unknown field --tokenizer.widht: did you mean --tokenizer.encoder.width?"),
        ("--sed 3", "unknown field --sed: did you mean --seed?"),
        ("--zzz.qqq 3", "unknown field --zzz.qqq: groups are data, tokenizer, prior, "),
        ("--tokenizer.encoder 3", "--tokenizer.encoder is a group of fields: set one of --tokenizer.encoder.width"),
        ("--tokenizer.prologue-encoder 3", "--tokenizer.prologue-encoder can only be set to none, or field by field"),
        ("--seed x", "--seed must be int, not 'x'"),
        ("--seed", "--seed needs a value (int)"),
        ("--seed 1 2", "unexpected value '2'"),
        ("--data.flip maybe", "--data.flip must be true or false, not 'maybe'"),
        ("--data.background 0 0", "--data.background needs 3 values (int int int), got 2"),
        ("--data.crop diagonal", "data.crop must be one of ['random', 'center'], not 'diagonal'"),
        ("--tokenizer.quantizer {name", "--tokenizer.quantizer must be NAME|{"),
        ("--tokenizer.quantizer no_such_module:A", "the quantizer 'no_such_module:A' cannot be imported"),
        ('--tokenizer.quantizer {"levels":[3]}', "TokenizerConfig.quantizer must be a table {"),
        ("--tokenizer.patch-size 5", "image rows 32 is not divisible by the patch size 5"),
    ],
)
def test_flags_that_cannot_be_followed(line: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _resolve(line)
    assert str(caught.value).startswith(message)


def test_split_leaves_the_commands_own_options() -> None:
    line = (
        "--preset base-b --seed 3 --data shapes --data.background 0 0 0 --tokenizer runs/a --data.flip "
        "--prior.width=64 --out r --tokenizer-training.prologue-kmeans 1 2 --json x.json"
    )
    own, overrides = split_overrides(line.split())
    assert own == "--preset base-b --data shapes --tokenizer runs/a --out r --json x.json".split()  # noqa: SIM905
    assert parse_overrides(overrides) == {
        "seed": 3,
        "data": {"background": [0, 0, 0], "flip": True},
        "prior": {"width": 64},
        "tokenizer_training": {"prologue_kmeans": [1, 2]},
    }


def _leaves(data: dict[str, Any], where: str = "") -> list[str]:
    paths: list[str] = []
    for key, value in data.items():
        path = f"{where}{key}"
        paths += _leaves(value, f"{path}.") if isinstance(value, dict) else [path]
    return paths


def test_help_lists_every_field_and_its_value() -> None:
    shown = fields_help(preset("small-32-post"))
    for path in _leaves(to_dict(preset("small-32-post"))):
        assert f"  --{path.replace('_', '-')} " in shown
    assert "--data.background int int int  (255 255 255)\n      RGB colour under transparent pixels." in shown


def test_every_scalar_can_be_set_from_its_own_text() -> None:
    """Each value of a preset, written as the help writes it, gives the same configuration."""
    config = preset("small-32-post")
    arguments: list[str] = []
    for path in _leaves(to_dict(config)):
        value: Any = to_dict(config)
        for key in path.split("."):
            value = value[key]
        items = value if isinstance(value, list) else [value]
        arguments += [f"--{path.replace('_', '-')}", *("none" if item is None else str(item) for item in items)]
    assert from_dict(RunConfig, parse_overrides(arguments), base=preset("base-b")) == config


def test_every_field_says_what_it_is() -> None:
    assert [field.path for field in _overrides._fields().values() if not field.doc] == []
