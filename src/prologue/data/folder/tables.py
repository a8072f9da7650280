"""Tables of labels: `labels.csv` (file,label), and `metadata.csv` (file_name,label) as Hugging Face writes it."""

from __future__ import annotations

import csv
import posixpath
from collections import defaultdict
from collections.abc import Collection, Iterator
from pathlib import PurePosixPath, PureWindowsPath
from typing import NamedTuple

from prologue.data.folder.rules import FileRule
from prologue.data.folder.storage import Storage
from prologue.data.names import readable, same_letters
from prologue.errors import DataError

LABELS_FILE = "labels.csv"
_TABLES = {LABELS_FILE: ("file", "file_name"), "metadata.csv": ("file_name", "file")}
"""Names of tables in lower case, the preferred first, and the names of their column of files."""
_LABEL_COLUMN = "label"
_OTHER_TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
_DELIMITERS = ",;\t"


class Table(NamedTuple):
    """A table's name, and the label of each image that it names."""

    name: str
    labels: dict[str, str]


def find_table(
    storage: Storage, folder: str, images: Collection[str], rule: FileRule
) -> tuple[Table | None, list[str]]:
    """The table of labels in `folder` ("" or "name/"), and sentences about tables that are not read.

    Raises `DataError` naming file and line for a table that cannot be read or contradicts itself or the images.
    """
    beside = sorted(name for name in storage.sizes if posixpath.dirname(name) == folder.rstrip("/"))
    if rule.first:
        beside = [name for name in beside if name == LABELS_FILE]
    chosen: Table | None = None
    for wanted, columns in _TABLES.items():
        found = [name for name in beside if posixpath.basename(name).lower() == wanted]
        if len(found) > 1:
            raise DataError(
                f"{' and '.join(storage.shown(name) for name in found)} are two tables of labels: remove one"
            )
        if found and chosen is None:
            labels = _read(storage, found[0], folder, columns, frozenset(images), rule)
            chosen = None if labels is None else Table(found[0], labels)
    unread = [name for name in beside if name.lower().endswith(_OTHER_TABLES) and (not chosen or name != chosen.name)]
    if chosen is not None:
        unread = [name for name in unread if posixpath.basename(name).lower() in _TABLES]
    listed = ", ".join(map(readable, unread))
    return chosen, [f"Not read as labels: {listed} (labels are read from {LABELS_FILE} with file,label)."] * bool(
        unread
    )


class _Row(NamedTuple):
    line: int
    values: list[str]


def _rows(shown: str, text: str) -> Iterator[_Row]:
    """The rows of a table. Each is one line: labels have no line breaks, so an open quotation mark is a mistake."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    header = next((line for line in lines if line.strip()), "")
    # In some countries, spreadsheets use another delimiter than the comma.
    delimiter = max(_DELIMITERS, key=header.count)
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                (values,) = csv.reader([line], delimiter=delimiter, skipinitialspace=True, strict=True)
            except csv.Error as error:
                beginning = line if len(line) <= 60 else f"{line[:60]}…"
                raise DataError(
                    f"{shown} line {number} cannot be read ({error}): {readable(beginning)}. Close its quotation mark, "
                    'or write a quotation mark inside quoted text twice ("")'
                ) from error
            yield _Row(number, [value.strip() for value in values])


def _read(
    storage: Storage, table: str, folder: str, file_columns: tuple[str, ...], images: frozenset[str], rule: FileRule
) -> dict[str, str] | None:
    """{image name: label}; None for a metadata file without labels."""
    shown = storage.shown(table)
    try:
        text = storage.read(table).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{shown} is not UTF-8 text: save it as UTF-8") from error
    rows = _rows(shown, text)
    header = next(rows, _Row(1, [])).values
    file_column = next((name for name in file_columns if name in header), file_columns[0])
    for column in (file_column, _LABEL_COLUMN):
        if column not in header:
            if posixpath.basename(table).lower() != LABELS_FILE:
                return None
            raise DataError(f"{shown} lacks the column '{column}': its first line must be 'file,label', not {header}")
        if header.count(column) > 1:
            raise DataError(f"{shown} has the column '{column}' twice: remove one")
    places = [header.index(column) for column in (file_column, _LABEL_COLUMN)]
    spellings: defaultdict[str, list[str]] = defaultdict(list)
    for name in images:
        spellings[same_letters(name)].append(name)
    labelled: dict[str, str] = {}
    for number, values in rows:
        given, label = (values[place] if place < len(values) else "" for place in places)
        line = f"{shown} line {number}"
        if not given or not label:
            raise DataError(f"{line} has no {'label' if given else 'file'}: give both, or remove the line")
        path = posixpath.normpath(folder + given.replace("\\", "/"))
        # An exact match comes first. Otherwise accents may be encoded in another way than on the disk.
        found = [path] if path in images else spellings.get(same_letters(path), [])
        if len(found) > 1:
            raise DataError(
                f"{line} names {path}, and {len(found)} files differ from it in the spelling of accents: write the "
                "name exactly as one of these files has it"
            )
        if not found:
            if PurePosixPath(given).is_absolute() or PureWindowsPath(given).anchor or path.startswith("../"):
                raise DataError(f"{line} names {given}: write file names relative to the folder of the table")
            state = f"is not a {rule.formats} image" if path in storage.sizes else "does not exist there"
            raise DataError(f"{line} names {given}, which {state}: correct or remove the line")
        if labelled.setdefault(found[0], label) != label:
            raise DataError(f"{line} labels {given} {label!r}, an earlier line {labelled[found[0]]!r}: keep one line")
    if not labelled:
        raise DataError(f"{shown} names no image: add lines 'file,label'")
    return labelled
