"""Model folders with `config.json` and `model.safetensors`, written atomically and read strictly."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from prologue.errors import CheckpointError, ConfigError
from prologue.utils.files import replacing
from prologue.utils.serialization import from_dict, load_json, save_json, to_dict

WEIGHTS = "model.safetensors"
CONFIG = "config.json"

T = TypeVar("T")


def read_tensors(path: Path, only: tuple[str, ...] = ("",)) -> dict[str, Tensor]:
    """The tensors of a safetensors file whose names begin with one of `only`.

    Raises:
        CheckpointError: the file is missing, truncated or a pickle.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: give the folder or file with these weights")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys() if key.startswith(only)}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        with path.open("rb") as raw:
            magic = raw.read(4)
        if magic[:2] in (b"PK", b"\x80\x02"):
            raise CheckpointError(
                f"{path} is a pickled PyTorch checkpoint, which could run code and is not read: "
                "convert it with safetensors.torch.save_file"
            ) from error
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}): copy or write it again") from error


def check_model(folder: Path, kind: type[Any]) -> None:
    """Raise `CheckpointError` if a file of a model is missing or truncated; tensors are not read."""
    read_config(folder, kind)
    read_tensors(folder / WEIGHTS, only=())


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file atomically."""
    plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    with replacing(path) as temporary:
        save_file(plain, temporary, metadata=metadata)


def load_exactly(module: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Copy `tensors` into `module`.

    Raises:
        CheckpointError: a tensor is missing, unexpected or of another shape.
    """
    own = module.state_dict()
    missing = sorted(own.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - own.keys())
    if missing or unexpected:
        name = f"lacks {missing[0]!r}" if missing else f"has an unexpected tensor {unexpected[0]!r}"
        raise CheckpointError(f"{source} {name}: it belongs to another model or configuration")
    for key, value in own.items():
        if tensors[key].shape != value.shape:
            raise CheckpointError(
                f"{source}: tensor {key!r} has shape {tuple(tensors[key].shape)}, expected {tuple(value.shape)}"
            )
        with torch.no_grad():
            value.copy_(tensors[key])


def read_config(folder: Path, kind: type[T]) -> T:
    """The `config.json` of a model folder; a `CheckpointError` names the file and the field that is wrong."""
    path = folder / CONFIG
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no finished model, since it has no {path.name}: give a finished run")
    try:
        return from_dict(kind, load_json(path))
    except ConfigError as error:
        raise CheckpointError(f"{path} does not describe a {kind.__name__}: {error}") from error


class SavedModel(nn.Module):
    """A module that is built from its configuration and saved in a folder."""

    config: Any
    config_type: ClassVar[type[Any]]

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` into `folder`."""
        save_json(Path(folder) / CONFIG, to_dict(self.config))
        write_tensors(Path(folder) / WEIGHTS, self.state_dict())

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """A saved model on the CPU, in fp32 and eval mode.

        Raises:
            CheckpointError: a file, a field or a tensor is missing or wrong.
            ConfigError: a component from outside the package is not registered.
        """
        path = Path(folder)
        model = cls(read_config(path, cls.config_type))
        load_exactly(model, read_tensors(path / WEIGHTS), str(path / WEIGHTS))
        return model.eval()


def model_hashes(folder: Path, name: str = WEIGHTS) -> dict[str, str]:
    """sha256 of the existing files of this name in a run's two model folders."""
    files = {part: folder / part / name for part in ("tokenizer", "prior")}
    return {part: file_hash(file) for part, file in files.items() if file.is_file()}


def file_hash(path: Path) -> str:
    """sha256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
