"""Copy Twitter's emoji (CC-BY 4.0) into one folder per group of the Unicode standard.

    npm pack emoji-datasource-twitter@16.0.0 && tar xzf emoji-datasource-twitter-16.0.0.tgz
    python benchmarks/lay_out.py package emoji

Pictures that occur twice are laid out once.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path


def emoji(package: Path, folder: Path) -> None:
    """Copy the icons of an unpacked `emoji-datasource-twitter` into one folder per group, without duplicates."""
    seen: set[bytes] = set()
    for each in json.loads((package / "emoji.json").read_text(encoding="utf-8")):
        source = package / "img" / "twitter" / "64" / each["image"]
        group = re.sub(r"[^a-z]+", "-", each["category"].lower().replace("&", "and"))
        if group == "component" or not each["has_img_twitter"] or not source.is_file():
            continue
        content = source.read_bytes()
        if content not in seen:  # some flags have the same picture
            seen.add(content)
            (folder / group).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / group / each["image"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="the unpacked npm package")
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    emoji(options.package, options.out)


if __name__ == "__main__":
    main()
