"""`prologue weights`: make the weight files of published networks that training and evaluation need."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor, nn
from tyro.conf import Positional, arg

from prologue.cli.options import parse
from prologue.errors import CheckpointError, ConfigError
from prologue.models.perceptual import ConvNeXtLogits, Lpips
from prologue.models.published import PUBLISHED, Network, Source, fetch, place, read_published
from prologue.models.weights import file_hash, load_exactly, read_tensors, write_tensors
from prologue.utils.files import atomic_write
from prologue.utils.options import OUTPUT_FILE

Tensors = dict[str, Tensor]

_LINEAR = ".model.1.weight"
"""Ending of the names of the lpips package's linear layers."""

_OUT = arg(metavar="FILE", help_behavior_hint="(default: in the user's cache)")


@dataclass(frozen=True, kw_only=True)
class WeightsOptions:
    network: Annotated[Positional[Network], arg(metavar="NETWORK")]
    """Network to make; its sources are listed below."""
    files: Annotated[Positional[tuple[Path, ...]], arg(metavar="[FILE…]", help_behavior_hint="")] = ()
    """Published files that you already have, under any name. Others come from an installed package, torch's cache or a
    download."""
    out: Annotated[Path | None, _OUT, OUTPUT_FILE] = None
    """File to write. Training and evaluation find it in the user's cache."""


def _lpips(files: Sequence[Path]) -> Tensors:
    """VGG-16's convolutions and the linear layers, under the names of `Lpips`."""
    vgg, linear = (read_published(file) for file in files)
    found = {name: tensor for name, tensor in vgg.items() if name.startswith("features.")}
    return found | {name.replace(_LINEAR, ".weight"): tensor for name, tensor in linear.items()}


def _convnext(files: Sequence[Path]) -> Tensors:
    (file,) = files
    return read_published(file)


MADE: dict[Network, tuple[Callable[[Sequence[Path]], Tensors], Callable[[], nn.Module]]] = {
    "lpips": (_lpips, Lpips),
    "convnext": (_convnext, lambda: ConvNeXtLogits().net),
}
"""Network → conversion of the published files to tensors, and the module that must take these tensors."""


def run(argv: list[str]) -> int:
    """Make one file unless a complete one exists. Print its path and its sources."""
    description = "Make the weight file of a published network."
    options = parse(WeightsOptions, argv, "prologue weights", description, _listed())
    out = options.out if options.out is not None else place(options.network)
    if not options.files and out.is_file() and _is_whole(options.network, out):
        print(f"{out} exists already")
        return 0
    sources = PUBLISHED[options.network].sources
    files = [_checked(source, file) for source, file in zip(sources, _located(options, sources), strict=True)]
    if options.network in MADE:
        tensors = MADE[options.network][0](files)
        made_of = ", ".join(source.name for source in sources)
        _fit(options.network, tensors, made_of)
        write_tensors(out, tensors, {"made_of": made_of})
    else:
        read_published(files[0])
        with files[0].open("rb") as source, atomic_write(out) as target:
            while block := source.read(1 << 20):
                target.write(block)
    print(f"{out}: {options.network}, made from {', '.join(map(str, files))}")
    if options.out is None:
        print(f"It is for {PUBLISHED[options.network].use}.")
    return 0


def _located(options: WeightsOptions, sources: Iterable[Source]) -> list[Path]:
    """Return a file for each source: the given file with its hash, else one from a package, cache or download."""
    given = {file: _hash(file) for file in options.files}
    wanted = [source.sha256 for source in sources]
    for file, digest in given.items():
        if not digest.startswith(tuple(wanted)):
            listed = "\n  ".join(source.title for source in sources)
            raise CheckpointError(
                f"{file} is none of the published files of {options.network}: its sha256 begins with {digest[:8]}. "
                f"It is damaged, truncated or another file; get it again:\n  {listed}"
            )
    located = []
    for source in sources:
        fitting = [file for file, digest in given.items() if digest.startswith(source.sha256)]
        if not fitting:
            print(f"getting {source.name} ({source.size}) from torch's cache or by download", file=sys.stderr)
        try:
            located.append(fitting[0] if fitting else fetch(source))
        except CheckpointError as error:
            told = f"{error}, then run `prologue weights {options.network} {source.name}` with the path of that file"
            raise CheckpointError(told) from error
    return located


def _hash(file: Path) -> str:
    if not file.is_file():
        raise ConfigError(f"{file} is not a file: give published weight files (.pth)")
    return file_hash(file)


def _checked(source: Source, file: Path) -> Path:
    digest = file_hash(file)
    if not digest.startswith(source.sha256):
        raise CheckpointError(
            f"{file} is not the published {source.name}: its sha256 begins with {digest[:8]}, not {source.sha256[:8]}; "
            "delete it and run the same command again"
        )
    return file


def _fit(network: Network, tensors: Tensors, source: str) -> None:
    """Raise `CheckpointError` if names or shapes differ from the network's; uses no memory for the network."""
    with torch.device("meta"):
        module = MADE[network][1]()
    load_exactly(module, tensors, source)


def _is_whole(network: Network, file: Path) -> bool:
    try:
        if network in MADE:
            _fit(network, read_tensors(file), str(file))
        else:
            _checked(PUBLISHED[network].sources[0], file)
    except CheckpointError as error:
        print(f"note: {error}; making it again", file=sys.stderr)
        return False
    return True


def _listed() -> str:
    """The sources of each network, for `--help`."""
    lines = ["networks:"]
    for network, published in PUBLISHED.items():
        lines.append(f"  {network}: for {published.use}; made from")
        lines += [f"    {source.title}" for source in published.sources]
    return "\n".join([*lines, "", f"The cache is {place('lpips').parent}."])
