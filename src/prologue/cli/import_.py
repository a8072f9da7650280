"""`prologue import`: convert the authors' checkpoints to a folder that `Pipeline.from_pretrained` opens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from prologue.cli.options import parse
from prologue.errors import RunError
from prologue.interop.authors import ImportOptions, import_pipeline_models, load_config
from prologue.pipeline import Pipeline
from prologue.sampling.manifest import Manifest
from prologue.utils.locks import LOCK, folder_lock

_SIZE = arg(metavar="ROWS COLUMNS", help_behavior_hint="(default: that of --config, else 256 256)")


@dataclass(frozen=True, kw_only=True)
class ImportCommandOptions:
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """Folder to write; it must be new or empty."""
    tokenizer: Annotated[Path, arg(metavar="DIR")]
    """The authors' tokenizer folder, with model.safetensors, model_1.safetensors, …"""
    prior: Annotated[Path, arg(metavar="DIR")]
    """The authors' prior folder."""
    config: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """JSON file with the facts that tensors do not hold; needed for head sizes other than 64."""
    image_size: Annotated[tuple[int, int] | None, _SIZE] = None
    """Image size in pixels."""
    online: bool = False
    """Import the online weights instead of their EMA."""


def run(argv: list[str]) -> int:
    """Read the authors' checkpoints, fold their constant conditioning into plain weights, and write one folder."""
    description = "Convert the authors' checkpoints to a folder that this package opens."
    options = parse(ImportCommandOptions, argv, "prologue import", description)
    with folder_lock(options.out):
        return _import(options)


def _import(options: ImportCommandOptions) -> int:
    if any(path.name != LOCK for path in options.out.iterdir()):
        raise RunError(f"{options.out} is not an empty folder: give another one")
    config = load_config(options.config) if options.config is not None else None
    chosen = ImportOptions(image_size=options.image_size, config=config, online=options.online)
    tokenizer, prior = import_pipeline_models(options.tokenizer, options.prior, chosen)
    # The checkpoints have no class names.
    names = tuple(str(class_id) for class_id in range(prior.num_classes))
    Pipeline(tokenizer, prior, Manifest(class_names=names)).save_pretrained(options.out)
    size, layout = tokenizer.config.image_size, prior.layout
    print(
        f"{options.out}: {tokenizer.config.variant} tokenizer of {size[0]}×{size[1]} images, prior of "
        f"{layout.prologue_tokens} + {layout.visual_tokens} tokens and {prior.num_classes} classes"
    )
    return 0
