"""Write results into docs/study.md, between the markers of their names.

    python benchmarks/study_page.py map=DIR/prologue-map.md shapes=STUDY

PATH may be a Markdown file, whose headings move one level down; the folder of a study (`prologue reproduce`), whose
verdict and main tables are inserted with pictures of the first seed; or the folder of a first try
(benchmarks/first_try.py), whose table is inserted with its pictures. Pictures are copied to docs/images. The settings,
tables and results of a study, from which it can be continued, are copied to benchmarks/results/study-NAME, and the
figures of a first try to benchmarks/results.
The markers `<!-- NAME -->` and `<!-- end of NAME -->` have their own lines.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
PICTURES = {
    ("2d", "unguided"): "The first unguided samples of 2d, not picked",
    ("prologue", "unguided"): "The first unguided samples of prologue, not picked",
    ("prologue", "resampled"): "Images drawn again from one prologue each",
}
SECTIONS = ("Claims", "Reconstruction", "Generation", "What the prologue carries")
"""Tables of a study that the page shows. All are in `benchmarks/results/study-NAME/tables.md`."""
FIRST_TRY_PICTURES = (
    ("samples/grid.png", "samples", "The first unguided samples, not picked, by class"),
    ("run/evaluations/memorisation-*-closest.png", "closest",
     "The samples nearest to a training image, and the held-out images nearest to one, decoded"),
)  # fmt: skip


def filled(page: str, name: str, content: str) -> str:
    """The page with `content` between the markers of `name`."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    if page.count(begin) != 1 or page.count(end) != 1:
        raise SystemExit(f"the page must have one {begin} and one {end}")
    before, _, rest = page.partition(begin)
    deeper = re.sub(r"^#", "##", content.strip(), flags=re.MULTILINE)
    return f"{before}{begin}\n\n{deeper}\n\n{end}{rest.partition(end)[2]}"


def study(folder: Path, name: str, root: Path) -> Iterator[str]:
    """The tables and pictures of a study. Its results and pictures are copied below `root`."""
    keep(folder, root / "benchmarks" / "results" / f"study-{name}")
    yield summary((folder / "tables.md").read_text(encoding="utf-8"))
    yield f"\n\n[All tables of this study](../benchmarks/results/study-{name}/tables.md)."
    seed = min(json.loads(file.read_text(encoding="utf-8"))["seed"] for file in (folder / "results").glob("*.json"))
    pictures = {}
    for variant, kind in PICTURES:
        file = root / "docs" / "images" / f"study-{name}-{variant}-{kind}.png"
        source = folder / "pictures" / f"{variant}-s{seed}-{kind}.png"
        if source.is_file():
            shutil.copyfile(source, file)
        if file.is_file():  # a study that was continued from its results has no pictures of its first seed
            pictures[file.name] = f"{PICTURES[variant, kind]}, seed {seed}"
    if pictures:
        yield "\n\n## Pictures"
    yield from shown(pictures)


def summary(tables: str) -> str:
    """The verdict and the sections that the page shows."""
    intro, *sections = re.split(r"^(?=## )", tables.strip(), flags=re.MULTILINE)
    verdict = intro.partition("\n\n")[0]
    wanted = [each.strip() for each in sections if each.partition("\n")[0].removeprefix("## ") in SECTIONS]
    return "\n\n".join([verdict, *wanted])


def shown(pictures: Mapping[str, str]) -> Iterator[str]:
    """Pictures of docs/images, with their captions."""
    for file_name, caption in pictures.items():
        yield f"\n\n![{caption}](images/{file_name})\n*{caption}.*"


def first_try(folder: Path, name: str, root: Path) -> Iterator[str]:
    """The table and pictures of a first try. The pictures and the figures are copied below `root`."""
    shutil.copyfile(folder / "first-try.json", root / "benchmarks" / "results" / f"first-try-{name}.json")
    yield (folder / "first-try.md").read_text(encoding="utf-8").strip()
    pictures = {}
    for pattern, kind, caption in FIRST_TRY_PICTURES:
        (source,) = folder.glob(pattern)
        file_name = f"study-{name}-{kind}.png"
        shutil.copyfile(source, root / "docs" / "images" / file_name)
        pictures[file_name] = caption
    yield from shown(pictures)


def keep(folder: Path, kept: Path) -> None:
    """Copy the settings and the tables of a study, and the results of its finished runs."""
    known, now = (path / "study.json" for path in (kept, folder))
    if known.is_file() and known.read_bytes() != now.read_bytes():
        raise SystemExit(f"{kept} keeps a study of other settings: delete it first")
    (kept / "results").mkdir(parents=True, exist_ok=True)
    for file in (folder / "study.json", folder / "tables.md", *(folder / "results").glob("*.json")):
        shutil.copyfile(file, kept / file.relative_to(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", metavar="NAME=PATH")
    parser.add_argument("--root", type=Path, default=ROOT, help="root of the repository")
    options = parser.parse_args()
    file = options.root / "docs" / "study.md"
    page = file.read_text(encoding="utf-8")
    for part in options.parts:
        name, _, where = part.partition("=")
        path = Path(where)
        if (path / "first-try.md").is_file():
            content = "".join(first_try(path, name, options.root))
        elif path.is_dir():
            content = "".join(study(path, name, options.root))
        else:
            content = path.read_text(encoding="utf-8")
        page = filled(page, name, content)
    file.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
