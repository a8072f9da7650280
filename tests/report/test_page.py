"""Reports hold all they show, and name nothing outside."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prologue.errors import ConfigError
from prologue.report.figures import Bars, Curve, bar_chart, line_chart, running_mean
from prologue.report.page import Commands, Fold, Gallery, Picture, Points, Report, Section, Table, Text


def _picture(name: str, colour: str = "red") -> Picture:
    return Picture(name, Image.new("RGB", (8, 6), colour), f"a {colour} field", wide=True)


def _report(*sections: Section, verdict: str = "It went well.") -> Report:
    return Report("A title", verdict, sections, good=True)


class _Outside(HTMLParser):
    """Everything that a browser would fetch, and every tag that is open at the end."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.fetched += [value or "" for key, value in attrs if key in ("src", "href", "srcset", "data", "action")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_page_holds_its_pictures_and_files_lie_beside_it(tmp_path: Path) -> None:
    section = Section("Some pictures", [_picture("one"), Gallery([_picture("two", "blue")])])
    _report(section).write(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    inside = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", page)
    for name, content in zip(("one", "two"), inside, strict=True):
        assert (tmp_path / "pictures" / f"{name}.png").read_bytes() == base64.b64decode(content)
        assert Image.open(io.BytesIO(base64.b64decode(content))).size == (8, 6)


def test_nothing_is_fetched_and_every_tag_is_closed(tmp_path: Path) -> None:
    section = Section("All kinds", [Text("a"), _picture("p"), Table(["a"], [["b"]]), Commands([("ls", "list")])])
    _report(section).write(tmp_path / "report.html")
    found = _Outside((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert found.open == []
    assert found.fetched
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in found.fetched)


def test_text_is_escaped(tmp_path: Path) -> None:
    report = _report(Section("A <b>", [Text("1 < 2"), Table(["<i>"], [["&"]])]), verdict="<script>")
    report.write(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "1 &lt; 2" in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"<(script|i|b)>", page)


def test_empty_sections_are_left_out(tmp_path: Path) -> None:
    _report(Section("Nothing here", []), Section("Something", [Text("x")])).write(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Nothing here" not in page
    assert '<a href="#something">' in page
    assert '<section id="something">' in page


def test_one_name_for_two_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'one'"):
        _report(Section("S", [_picture("one"), _picture("one", "blue")])).write(tmp_path / "report.html")


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ConfigError, match="2 columns"):
        Table(["a", "b"], [["c"]])


def test_a_running_mean_keeps_lines_straight() -> None:
    values = np.arange(200.0)
    assert np.allclose(running_mean(values, 0.1), values)
    assert np.ptp(running_mean(np.tile([0.0, 1.0], 100), 0.2)[20:-20]) < 0.1


def test_charts_show_their_curves() -> None:
    x = np.linspace(0, 1, 30)
    empty = np.array(line_chart("t", "x", [Curve("", x, np.zeros(30))], zero=True))
    full = np.array(line_chart("t", "x", [Curve("", x, x), Curve("two", x, 1 - x, 1, dashed=True)], zero=True))
    assert full.shape == empty.shape
    assert (full != empty).any()
    bars = np.array(bar_chart("t", list("abcdefgh"), [Bars("n", [0.5] * 8, [0.4] * 8, [0.7] * 8)], whole=1.0))
    assert (bars.reshape(-1, 3) == (0x2F, 0x6F, 0xB3)).all(1).sum() > 5000


def test_folds_points_and_sortable_tables(tmp_path: Path) -> None:
    inner = Fold("More", [Table(["a", "b"], [["x", "1\n0 … 2"]], sortable=True), _picture("deep"), Points(["p"], "of")])
    report = _report(Section("S", [inner]))
    report.write(tmp_path / "report.html", beside=False)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    found = _Outside(page.replace("<br>", ""))
    assert found.open == []
    assert len(found.fetched) == 2
    assert page.index("<details>") < page.index("<summary>More") < page.index("<li>p</li>") < page.index("</details>")
    assert '<td class="number">1<br><small>0 … 2</small></td>' in page
    assert page.count("<script>") == 1
    assert "beside this page" not in page
