"""Tables of labels: names, separators, line ends, quotes and spellings."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tests.data.pictures import fill, labelled, opened, save

from prologue.errors import DataError

EXPECTED = {f"{number}.png": "even" if number % 2 == 0 else "odd" for number in range(4)}


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    return fill(tmp_path / "flat", "")


def table(separator: str = ",", end: str = "\n", columns: tuple[str, str] = ("file", "label")) -> str:
    rows = [columns, *EXPECTED.items()]
    return "".join(separator.join(row) + end for row in rows)


@pytest.mark.parametrize("name", ["labels.csv", "Labels.csv", "LABELS.CSV"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\n"])
@pytest.mark.parametrize("separator", [",", ";", "\t", ", "])
def test_line_ends_and_separators(flat: Path, name: str, end: str, separator: str) -> None:
    (flat / name).write_bytes(table(separator, end).encode("utf-8-sig"))
    assert labelled(opened(flat)) == EXPECTED


@pytest.mark.parametrize("name", ["metadata.csv", "Metadata.csv"])
def test_metadata_as_hugging_face_has_them(flat: Path, name: str) -> None:
    (flat / name).write_text(table(columns=("file_name", "label")))
    data = opened(flat)
    assert labelled(data) == EXPECTED
    assert data.notes == ()
    assert opened(flat, file_rule=1).class_names == ()


@pytest.mark.parametrize(
    ("name", "text"),
    [("metadata.csv", "file_name,caption\n0.png,a cat\n"), ("annotations.csv", "file,label\n0.png,cat\n")],
)
def test_tables_that_are_not_read_are_named(flat: Path, name: str, text: str) -> None:
    (flat / name).write_text(text)
    data = opened(flat)
    assert data.class_names == ()
    assert data.notes == (f"Not read as labels: {name} (labels are read from labels.csv with file,label).",)


def test_labels_lead_and_metadata_beside_them_are_named(flat: Path) -> None:
    (flat / "labels.csv").write_text(table())
    (flat / "metadata.csv").write_text("file_name,label\n0.png,other\n")
    data = opened(flat)
    assert labelled(data) == EXPECTED
    assert data.notes[0].startswith("Not read as labels: metadata.csv ")


@pytest.mark.skipif(sys.platform != "linux", reason="names differ in more than case here")
def test_two_tables_of_one_name_are_refused(flat: Path) -> None:
    (flat / "labels.csv").write_text(table())
    (flat / "Labels.csv").write_text(table())
    with pytest.raises(DataError, match=r"Labels\.csv and .*labels\.csv are two tables of labels: remove one"):
        opened(flat)


@pytest.mark.parametrize("rows", [3, 20_000])
@pytest.mark.parametrize(("line", "number"), [('0.png,"even', 2), ('"0.png,even', 2), ('"0.png"x,even', 2)])
def test_a_stray_quote_is_told_with_its_line(flat: Path, rows: int, line: str, number: int) -> None:
    rest = "1.png,odd\n" * rows
    (flat / "labels.csv").write_text(f"file,label\n{line}\n{rest}")
    with pytest.raises(DataError, match=rf"labels\.csv line {number} cannot be read .*Close its quotation mark"):
        opened(flat)


def test_a_line_beyond_every_limit_is_told(flat: Path) -> None:
    (flat / "labels.csv").write_text(f"file,label\n0.png,{'x' * 200_000}\n")
    with pytest.raises(DataError, match=r"labels\.csv line 2 cannot be read \(field larger than field limit"):
        opened(flat)


def test_quoted_labels(flat: Path) -> None:
    (flat / "labels.csv").write_text('file,label\n0.png,"a, b"\n1.png, "say ""x"""\n2.png,5" disk\n3.png,"c"\n')
    assert labelled(opened(flat)) == {"0.png": "a, b", "1.png": 'say "x"', "2.png": '5" disk', "3.png": "c"}


@pytest.mark.parametrize(
    ("on_disk", "given"), [("cafe\u0301.png", "caf\u00e9.png"), ("caf\u00e9.png", "cafe\u0301.png")]
)
def test_accents_may_be_spelled_in_either_way(flat: Path, on_disk: str, given: str) -> None:
    (flat / "0.png").rename(flat / on_disk)
    (flat / "labels.csv").write_text(table().replace("0.png", given), encoding="utf-8")
    assert labelled(opened(flat))[on_disk] == "even"
    save(flat / (given if on_disk != given else "x.png"))
    assert labelled(opened(flat))[given] == "even"  # the exact spelling leads


def test_repeated_lines_of_one_label_are_one(flat: Path) -> None:
    (flat / "labels.csv").write_text(table() + "0.png,even\n./0.png,even\n")
    assert labelled(opened(flat)) == EXPECTED


def test_a_table_may_name_some_of_the_images(tmp_path: Path) -> None:
    fill(tmp_path, "cat10", "cat2", "Bird", count=12)
    rows = "".join(f"{name}/{n}.png,{'odd' if n % 2 else 'even'}\n" for name in ("Bird", "cat2") for n in range(12))
    (tmp_path / "labels.csv").write_text("file,label\n" + rows, encoding="utf-8-sig")
    data = opened(tmp_path)
    assert data.class_names == ("even", "odd")
    assert len(labelled(data)) == 24
    assert all(label == ("odd" if int(Path(name).stem) % 2 else "even") for name, label in labelled(data).items())
    assert data.notes == ("12 images that labels.csv does not name are left out.",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\nBird/99.png,x\n", r"line 2 names Bird/99.png, which does not exist"),
        ("file,label\n/data/1.png,x\n", r"line 2 names /data/1.png: write .* relative to the folder of the table"),
        ("file,label\nC:\\data\\1.png,x\n", r"line 2 names C:.*: write .* relative to the folder of the table"),
        ("file,label\n../Bird/1.png,x\n", r"line 2 names ../Bird/1.png: write .* relative to the folder of the table"),
        ("file,label\nnotes.txt,x\n", r"notes.txt, which is not a PNG, JPEG, .* image"),
        ("file,class\nBird/1.png,x\n", r"lacks the column 'label'"),
        ("Bird/1.png,x\n", r"lacks the column 'file'"),
        ("", r"lacks the column 'file'"),
        ("file,label\n", r"names no image"),
        ("file,label\nBird/1.png,\n", r"line 2 has no label"),
        ("file,label\nBird/1.png,a\nBird/1.png,b\n", r"line 3 labels Bird/1.png 'b', an earlier line 'a'"),
        ("file,label,label\n0.png,a,b\n", r"labels\.csv has the column 'label' twice: remove one"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (fill(tmp_path, "Bird") / "notes.txt").write_text("not an image")
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        opened(tmp_path)
