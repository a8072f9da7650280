"""What the evaluations share: a run and its images, features, intervals over images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from prologue.config import DataConfig, RunConfig
from prologue.data.folder.inventory import changed_files
from prologue.data.order import center_batch
from prologue.data.source import Data, ImageSet, fingerprint, open_data
from prologue.errors import DataError, EvaluationError
from prologue.evaluation.features import FeatureExtractor
from prologue.models.sequence import TokenIds
from prologue.models.weights import CONFIG, model_hashes
from prologue.sampling.manifest import NAME as MANIFEST
from prologue.sampling.manifest import Manifest
from prologue.training.models import RunModels, Which, unfinished_manifest
from prologue.training.run import RunFolder
from prologue.utils.rng import numpy_stream

LIKELIHOOD_IMAGES = 1024
"""Below, what a prior and a prologue are measured to carry is indicative (METHOD §1)."""

ProgressCallback = Callable[[Sequence[int], str], Iterable[int]]
"""Gives the steps back one by one, and may show how far they are; the text names them."""
Record = dict[str, Any]


def unwatched(steps: Sequence[int], what: str) -> Iterable[int]:
    """The steps, shown nowhere."""
    return steps


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; afterwards each model is in the mode that it was in."""
    modes = [model.training for model in models]
    for model in models:
        model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for model, mode in zip(models, modes, strict=True):
            model.train(mode)


def choose_images(total: int, count: int | None, seed: int, name: str) -> Int64[np.ndarray, " n"]:
    """All `total` images, or `count` of them at random (stream `name` of `seed`), in their order."""
    if count is not None and count < 1:
        raise EvaluationError(f"count must be at least 1, not {count}")
    if total < 1:
        raise EvaluationError("there are no images to measure")
    if count is None or count >= total:
        return np.arange(total)
    return np.sort(numpy_stream(seed, "evaluation", name).permutation(total)[:count])


def center_crops(
    images: ImageSet,
    indices: Int64[np.ndarray, " n"],
    *,
    batch: int,
    watch: ProgressCallback = unwatched,
    what: str = "images",
) -> Iterator[UInt8[Tensor, "b 3 h w"]]:
    """The center crops of the images at `indices`, batch by batch, in their order."""
    for start in watch(range(0, len(indices), batch), what):
        yield center_batch(images, indices[start : start + batch]).images


def crop_features(
    extractor: FeatureExtractor,
    images: ImageSet,
    indices: Int64[np.ndarray, " n"],
    *,
    batch: int = 64,
    watch: ProgressCallback = unwatched,
    what: str = "images",
) -> Float[Tensor, "n d"]:
    """Features of the center crops of the images at `indices`, in their order."""
    crops = center_crops(images, indices, batch=batch, watch=watch, what=what)
    return torch.cat([extractor(pictures) for pictures in crops])


@dataclass(frozen=True)
class Split:
    """The images that a run is measured on: held out of its training, trained on, or given by the user."""

    name: Literal["validation", "train", "given"]
    images: ImageSet
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunImages:
    """The images that a run is measured with: those of its training, or others that the user gave."""

    source: str
    data: Data
    own: bool
    """They are those of the training, so that what was held out there is held out."""
    notes: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """What figures on these images depend on."""
        return {
            "data": self.source,
            "data_fingerprint": self.data.fingerprint,
            "data_content": self.data.content,
            "data_own": self.own,
        }

    def measured(self) -> Split:
        """The images held out of the training; the trained ones, with a note, where there are none. Others whole."""
        data = self.data
        if not self.own:
            return Split("given", data.whole())
        if len(data.validation):
            return Split("validation", data.validation)
        note = "no images are held out, so these figures are of training images: they flatter a model that memorises"
        return Split("train", data.train, (note,))

    def reference(self) -> ImageSet:
        """What samples are compared with: the training images, or all of others."""
        return self.data.train if self.own else self.data.whole()


@dataclass(frozen=True)
class RunInfo:
    """What a run folder says of itself. `config` and `fingerprint` are None for imported and exported folders."""

    path: Path
    manifest: Manifest
    config: RunConfig | None = None
    fingerprint: str | None = None
    data: str | None = None
    """Where the training images lay; None where the folder does not say."""

    models: RunModels | None = field(default=None, repr=False)
    """Where its models are read from."""

    @classmethod
    def load(cls, path: Path, checkpoint: Which = "finished") -> Self:
        """Read it. Of an unfinished run the tokenizer must be finished; else `Manifest.load`'s errors.

        `checkpoint="newest"` reads what is not finished from the newest checkpoint (`RunModels.open`).
        """
        models = RunModels.open(path, checkpoint)
        if not (path / "run.json").is_file():
            manifest = Manifest.load(path)
            return cls(path, manifest, data=manifest.data, models=models)
        run = models.run or RunFolder.load(path)
        tokenizer_only = run.finished("tokenizer") and not (path / MANIFEST).is_file()
        manifest = unfinished_manifest(run) if tokenizer_only else models.manifest()
        facts = run.record["facts"]
        found = facts.get("data", manifest.data)
        return cls(path, manifest, run.config, facts.get("data_fingerprint"), found, models)

    @property
    def source(self) -> RunModels:
        """Where its models are read from."""
        return self.models or RunModels(self.path)

    @property
    def weights(self) -> dict[str, str]:
        """sha256 of the weight files of both models, of those that are there."""
        return self.source.hashes()

    def facts(self) -> dict[str, Any]:
        """What figures of the run depend on: the files of its models, and of its manifest all but the recipe."""
        manifest = self.manifest
        return {
            "weights": self.weights,
            "configs": model_hashes(self.path, CONFIG),
            "manifest": fingerprint(class_names=manifest.class_names, trained_on=manifest.trained_on),
        }

    def open_data(self, where: str | None, image_size: tuple[int, int]) -> RunImages:
        """The run's images, or those at `where`, read with the run's own options.

        Raises `EvaluationError` where neither the folder nor the caller says where images are; `open_data`'s errors.
        """
        source = self.data_name(where)
        config = self.config.data if self.config is not None else DataConfig()
        try:
            data = open_data(source, config, image_size)
        except DataError as error:
            if where is not None and "--data." in str(error):
                raise DataError(
                    f"{error}. (Those flags belong to `prologue train`: a run is measured with its own options)"
                ) from error
            if where is not None:
                raise
            raise DataError(f"{error}. These are the run's own images; give other ones with --data WHERE") from error
        same = self.fingerprint in (None, data.fingerprint)
        notes = list(data.notes)
        if where is None and not same:
            changed = changed_files(self.path, data.files) or "files or labels have changed"
            notes.append(f"the images in {source} are not those of the training any more: {changed}")
        own = where is None or source == self.data or (self.fingerprint is not None and same)
        return RunImages(source, data, own, tuple(notes))

    def data_name(self, where: str | None) -> str:
        """`where`, or what the run was trained on; an `EvaluationError` where nobody says."""
        source = where if where is not None else self.data
        if source is None:
            raise EvaluationError(
                f"{self.path} does not say which images it was trained on (it was imported): give --data WHERE"
            )
        return source


def true_classes(
    labels: Int64[np.ndarray, " n"], data_names: Sequence[str], run_names: Sequence[str], num_classes: int
) -> tuple[Int64[Tensor, " n"], tuple[str, ...]]:
    """The prior's class ids of images labelled with `data_names`, and notes. Classes are matched by name.

    Without classes of the prior or of the images they are null classes. Names of an imported model that are only
    numbers match as many classes in their order. A class that the prior does not know is an `EvaluationError`.
    """
    given = torch.from_numpy(labels.astype(np.int64))
    if not num_classes:
        return torch.zeros_like(given), ()
    if not data_names:
        return torch.full_like(given, num_classes), ("the images have no classes, so the null class is measured",)
    if tuple(data_names) == tuple(run_names):
        return given, ()
    numbered = tuple(run_names) == tuple(str(index) for index in range(num_classes))
    if numbered and len(data_names) == num_classes:
        return given, ("the run numbers its classes, and the images' classes are taken in their order",)
    unknown = [name for name in data_names if name not in run_names]
    if unknown:
        raise EvaluationError(
            f"the images have the class {unknown[0]!r}, which the run was not trained on: "
            "measure on images of the run's classes"
        )
    table = torch.tensor([list(run_names).index(name) for name in data_names])
    return table[given], ()


def check_paired(tokens: TokenIds, class_ids: Int64[Tensor, " n"]) -> None:
    """Raise `EvaluationError` unless there are images with one class each."""
    if not len(tokens) or len(tokens) != len(class_ids):
        raise EvaluationError(f"every image needs a class: there are {len(tokens)} images and {len(class_ids)} classes")
