"""Pixels, fingerprints, order and stored tokens, bit by bit: a change here changes every run that exists."""

from __future__ import annotations

import hashlib
import platform
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.data.pictures import fill

from prologue.config import DataConfig
from prologue.data.order import batch_indices, train_batch
from prologue.data.source import Data, open_data
from prologue.data.token_store import StoreShape, TokenStoreWriter
from prologue.models.sequence import TokenIds

ONE_PLATFORM = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="the last bit of a sine depends on the platform"
)


def views(data: Data) -> str:
    """A hash of some center, training and token views of both splits, and of all labels."""
    found = hashlib.sha256()
    for images in (data.train, data.validation):
        found.update(images.labels.tobytes())
        for index in range(0, len(images), max(1, len(images) // 12)):
            found.update(images.center_view(index).tobytes())
            found.update(images.train_view(index, np.random.default_rng(index)).tobytes())
            found.update(images.token_views(index).tobytes())
    return found.hexdigest()[:16]


@ONE_PLATFORM
@pytest.mark.parametrize(
    ("where", "fingerprint", "seen"),
    [
        ("shapes", "82b46f5c3c952c0d3ea5cdfd55e08887", "a5d3a1a2cda51dcb"),
        ("shapes:grain=0.4,cell=2", "c34c779ebc389fcba41c9c74572beaa6", "62e341f6dfdd9f60"),
        ("plates:figures=kinds", "4819bdacd4887f152272399d8f330ab5", "189e7203a63a0d7b"),
        ("plates:noise=0.2", "af4c20a8a4fa712699ef6e4d0fcd1c1c", "52caad44de70da9a"),
        ("digits", "8dadea7781b1bdf06fedfb81be9b00e5", "63ef18308d9291c4"),
    ],
)
def test_embedded_images(where: str, fingerprint: str, seen: str) -> None:
    if where in ("digits", "plates:noise=0.2"):
        pytest.importorskip("sklearn")
    data = open_data(where, DataConfig(shapes_images=64, shapes_validation=24), (32, 40))
    assert data.fingerprint == fingerprint
    assert views(data) == seen


@pytest.mark.parametrize(
    ("folders", "options", "fingerprint", "seen"),
    [
        (("cat", "dog"), {}, "3e791ddeeb4ab978e2a9e1b198520f75", "44d54ceb28e49239"),
        (
            ("",),
            {"token_views": "center", "flip": False, "validation_fraction": 0.3},
            "1703f2818c8db14299daf75a22c25503",
            "3e411702a49ab066",
        ),
        (("train/a", "val/a"), {"crop": "center"}, "d92d30f291ed9dc9bb3c5f0d48670654", "ed805dc81da0c814"),
        (("train/a", "val/a"), {"file_rule": 1}, "7c65b712b1154794bf62b66b6d0698fa", "74f0b6b1dfaedcb0"),
    ],
)
def test_a_folder(
    tmp_path: Path, folders: tuple[str, ...], options: dict[str, object], fingerprint: str, seen: str
) -> None:
    fill(tmp_path, *folders, count=9, suffix=".bmp" if "file_rule" not in options else ".png")
    if "file_rule" in options:  # this rule takes no BMP by name, and the size of a PNG depends on zlib
        for path in tmp_path.rglob("*.png"):
            path.write_bytes(path.read_bytes().ljust(4096, b"\0"))
    data = open_data(str(tmp_path), DataConfig(**options), (16, 20))  # type: ignore[arg-type]
    assert data.fingerprint == fingerprint
    assert views(data) == seen


def test_order_and_training_crops() -> None:
    order = np.concatenate([batch_indices(3, step, 8, 21, 1, 2) for step in range(9)])
    assert order.tolist()[:6] == [2, 3, 8, 15, 7, 17]
    assert hashlib.sha256(order.tobytes()).hexdigest()[:16] == "ae3fac8e11f466ab"


@ONE_PLATFORM
def test_a_training_batch() -> None:
    data = open_data("shapes", DataConfig(shapes_images=24), (16, 16))
    batch = train_batch(data.train, 5, 2, 8)
    assert hashlib.sha256(batch.images.numpy().tobytes()).hexdigest()[:16] == "ffe6c3e609128e65"


def test_a_token_store(tmp_path: Path) -> None:
    writer = TokenStoreWriter(
        tmp_path,
        StoreShape(2, 3, views=2, prologue_codebook_size=16, visual_codebook_size=99),
        {"tokenizer": "abc", "data": "def"},
        shard_images=4,
    )
    prologue, visual = torch.arange(24).reshape(12, 2) % 16, torch.arange(36).reshape(12, 3) + 50
    writer.append(TokenIds(prologue, visual), torch.arange(6))
    writer.finish()
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in sorted(tmp_path.iterdir())}
    assert found == {
        "index.json": "02a7c1aedaff526f",
        "shard-00000.bin": "23bfaca04e44e12e",
        "shard-00001.bin": "f7e16bb258105cda",
    }
