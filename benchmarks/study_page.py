"""Put what commands wrote into docs/study.md, between the page's markers of their names.

    python benchmarks/study_page.py ablation=DIR/ablation.md shapes=STUDY

A Markdown file goes in as it is, its headings one level down. Of the folder of a study (`prologue reproduce`) the
tables go in, with pictures of the first seed, which are copied to docs/images; its `results.json` becomes
benchmarks/results/study-NAME.json. `<!-- NAME -->` and `<!-- end of NAME -->` stand alone in their lines.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PICTURES = {
    ("2d", "unguided"): "The first unguided samples of 2d, not picked",
    ("prologue", "unguided"): "The first unguided samples of prologue, not picked",
    ("prologue", "resampled"): "Images drawn again from one prologue each",
}


def filled(page: str, name: str, content: str) -> str:
    """The page with `content` between the markers of `name`."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    if page.count(begin) != 1 or page.count(end) != 1:
        raise SystemExit(f"the page must have one {begin} and one {end}")
    before, _, rest = page.partition(begin)
    deeper = re.sub(r"^#", "##", content.strip(), flags=re.MULTILINE)
    return f"{before}{begin}\n\n{deeper}\n\n{end}{rest.partition(end)[2]}"


def study(folder: Path, name: str, root: Path) -> Iterator[str]:
    """The tables of a study and the pictures that it has; its results and pictures are copied below `root`."""
    shutil.copyfile(folder / "results.json", root / "benchmarks" / "results" / f"study-{name}.json")
    yield (folder / "tables.md").read_text(encoding="utf-8").strip()
    pieces = json.loads((folder / "results.json").read_text(encoding="utf-8"))["pieces"]
    seed = min(piece["seed"] for piece in pieces)
    found = {
        (variant, kind): picture
        for variant, kind in PICTURES
        if (picture := folder / "pictures" / f"{variant}-s{seed}-{kind}.png").is_file()
    }
    if found:
        yield "\n\n## Pictures"
    for key, picture in found.items():
        file, caption = f"study-{name}-{'-'.join(key)}.png", f"{PICTURES[key]}, seed {seed}"
        shutil.copyfile(picture, root / "docs" / "images" / file)
        yield f"\n\n![{caption}](images/{file})\n*{caption}.*"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", metavar="NAME=PATH")
    parser.add_argument("--root", type=Path, default=ROOT, help="of the repository")
    options = parser.parse_args()
    file = options.root / "docs" / "study.md"
    page = file.read_text(encoding="utf-8")
    for part in options.parts:
        name, _, where = part.partition("=")
        path = Path(where)
        content = "".join(study(path, name, options.root)) if path.is_dir() else path.read_text(encoding="utf-8")
        page = filled(page, name, content)
    file.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
