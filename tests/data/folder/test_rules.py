"""Which formats each rule reads, and what runs of the first rule keep."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, ImageOps
from tests.data.pictures import fill, opened, same

from prologue.config import DataConfig
from prologue.data.decode import READS_AVIF
from prologue.data.splits import place
from prologue.errors import ConfigError


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".bmp", ".tif", ".TIFF", ".gif", ".avif"])
def test_the_second_rule_reads_more_formats(tmp_path: Path, suffix: str) -> None:
    if suffix == ".avif" and not READS_AVIF:
        pytest.skip("Pillow reads no AVIF here")
    fill(tmp_path, "a")
    fill(tmp_path, "b", suffix=suffix)
    data = opened(tmp_path)
    assert data.class_names == ("a", "b")
    assert data.left_out == ()
    old = opened(tmp_path, file_rule=1)
    assert old.class_names == ("a",)
    assert len(old.files) == 4


def test_the_place_of_a_name_is_that_of_the_first_versions() -> None:
    assert place("cat/1.png") == 0.41497065056175686
    assert place("Käfer/é.png") == 0.8475201667357943
    assert 0 <= place("caf\udce9.png") < 1


def test_a_run_of_the_first_rule_skips_what_it_skipped_before(tmp_path: Path) -> None:
    fill(tmp_path, "a")
    Image.new("RGB", (20, 20)).save(tmp_path / "a" / "odd.png", exif=b"Exif\0\0no TIFF")
    Image.new("RGB", (20, 20)).save(tmp_path / "a" / "tiff.png", "TIFF")
    assert len(opened(tmp_path).files) == 6
    assert len(opened(tmp_path, file_rule=1, skip_damaged=True).files) == 4
    with pytest.raises(SyntaxError), Image.open(tmp_path / "a" / "odd.png") as image:
        ImageOps.exif_transpose(image)


def test_the_rules_agree_on_what_the_first_versions_could_read(tmp_path: Path) -> None:
    for folder, height in (("cat", 20), ("dog", 24)):
        (tmp_path / folder).mkdir()
        for number in range(4):  # BMP has the same size with every version of Pillow, unlike PNG
            Image.new("RGB", (20, height), (number, 0, 0)).save(tmp_path / folder / f"{number}.png", "BMP")
    same(opened(tmp_path), opened(tmp_path, file_rule=1))
    assert opened(tmp_path, file_rule=1).fingerprint == "8829140951839ea21a6a8fd908656c31"
    with pytest.raises(ConfigError, match=r"data\.file_rule must be none or 1 to 2, not 3"):
        DataConfig(file_rule=3)
