"""File names, grids and archives of samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from prologue.data.pictures import SampleArchive, class_grid, file_name, labelled_grid


def test_file_names_are_safe() -> None:
    assert file_name(3, "ring", 0) == "00003_ring_seed0.png"
    assert file_name(3, "../a b/ü:*", -1) == "00003_a-b-ü_seed-1.png"
    assert file_name(3, "///", 2) == file_name(3, None, 2) == "00003_seed2.png"
    assert len(file_name(0, "x" * 500, 0)) < 100


def test_grids_hold_every_tile_and_label() -> None:
    red, blue = (Image.new("RGB", (8, 4), colour) for colour in ("red", "blue"))
    grid = labelled_grid([[red, blue], [None, red]], ["a", "b"], ["first", "second"])
    pixels = np.array(grid)
    tile = 128 * 64
    assert (pixels == (255, 0, 0)).all(-1).sum() == 2 * tile
    assert (pixels == (0, 0, 255)).all(-1).sum() == tile
    bare = labelled_grid([[red, blue], [None, red]])
    assert grid.width > bare.width
    assert grid.height > bare.height
    assert labelled_grid([[red.resize((300, 200))]]).width < 330


def test_many_classes_are_stacked_in_bands() -> None:
    tile = Image.new("RGB", (128, 128), "red")
    names = [f"class {index}" for index in range(23)]
    grid = np.array(class_grid([tile] * 46, names * 2))
    assert (grid == (255, 0, 0)).all(-1).sum() == 46 * 128 * 128
    alone = np.array(class_grid([tile] * 9, ["one"] * 9))
    assert abs(alone.shape[1] - alone.shape[0]) < 40


def test_an_archive_given_up_leaves_nothing(tmp_path: Path) -> None:
    with SampleArchive(tmp_path / "samples.npz", 2, (4, 8)) as archive:
        archive.add([Image.new("RGB", (8, 4))])
    assert list(tmp_path.iterdir()) == []
