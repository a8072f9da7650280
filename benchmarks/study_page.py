"""Put what commands wrote into docs/study.md: Markdown files between the page's markers of their names.

    python benchmarks/study_page.py ablation=DIR/ablation.md shapes=STUDY/tables.md

`<!-- NAME -->` and `<!-- end of NAME -->` stand alone in their lines; headings go down by one level.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "study.md"


def filled(page: str, name: str, content: str) -> str:
    """The page with `content` between the markers of `name`."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    if page.count(begin) != 1 or page.count(end) != 1:
        raise SystemExit(f"the page must have one {begin} and one {end}")
    before, _, rest = page.partition(begin)
    deeper = re.sub(r"^#", "##", content.strip(), flags=re.MULTILINE)
    return f"{before}{begin}\n\n{deeper}\n\n{end}{rest.partition(end)[2]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", metavar="NAME=FILE")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    page = options.page.read_text(encoding="utf-8")
    for part in options.parts:
        name, _, file = part.partition("=")
        page = filled(page, name, Path(file).read_text(encoding="utf-8"))
    options.page.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
