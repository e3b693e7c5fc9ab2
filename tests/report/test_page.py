"""The page holds everything, escapes every name, and loads nothing from elsewhere."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure

from shvit.bench.run import about
from shvit.report.blocks import (
    Card,
    Column,
    Command,
    ConfusionMatrix,
    Gallery,
    Headline,
    Label,
    Mark,
    Picture,
    Plot,
    Section,
    Table,
)
from shvit.report.charts import Axis, Series, Spot, line_chart
from shvit.report.page import Page, inline_svg, render, save_page
from shvit.report.pictures import heat_png, jpeg

HOSTILE = (
    "<script>alert(1)</script>",
    '"onload="alert(2)',
    "</td></table><h1>x",
    "קטגוריה עם שם",
    "evil‮gnp.exe",
    "x" * 5000,
    "🐈‍⬛ cat",
    "not utf-8 \udcff",
    "a\nb\x1b[31m",
)
VOID = {"meta", "img", "input", "br", "link"}


class Tree(HTMLParser):
    """The elements of a page, each with its attributes. Fails if elements are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def full_page(names=HOSTILE) -> Page:
    first, *_ = names
    photo = jpeg(np.zeros((8, 8, 3), np.uint8))
    pictures = [
        Picture(photo, name, labels=(Label("true", name, "wrong", 0.5),), boxes=(Mark((0, 0, 0.5, 1), name, "doubt"),))
        for name in names
    ]
    figure = Figure()
    figure.subplots().plot([1, 2], label="line", color="#3b5b7a")
    chart = line_chart(first, [Series(name, [(0, 0), (1, 1)]) for name in names], Axis(first, 0, 1), Axis(first, 0, 1))
    section = Section(
        first,
        names,
        (Table("t", first, tuple(Column(name) for name in names), [names, [1.5] * len(names), [None] * len(names)]),),
        (Plot("p", figure, first),),
        (Gallery(first, pictures, first),),
        (chart,),
        ConfusionMatrix(names, np.eye(len(names), dtype=int).tolist()),
        tuple(Command(name, name) for name in names),
    )
    cards = tuple(Card(name, name, (0.1, 0.3), name) for name in names)
    return Page(first, first, names, (section,), about("cpu"), first, (Headline(cards, first, first),), first)


def test_hostile_names_are_text(tmp_path):
    save_page(full_page(), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_bytes().decode("utf-8")
    tree = Tree(text)
    tags = [tag for tag, _ in tree.elements]
    assert tags.count("script") == 1
    assert tags.count("h1") == 1
    attributes = {name for _, each in tree.elements for name in each}
    assert not [name for name in attributes if name.startswith("on")]
    shown = "".join(tree.texts)
    assert "<script>alert(1)</script>" in shown
    assert "קטגוריה" in shown
    assert "\u202e" not in text  # would turn the direction of the text around it
    assert "\x1b" not in text
    assert r"not utf-8 \udcff" in shown


def test_nothing_is_loaded():
    text = render(full_page())
    for tag, attributes in Tree(text).elements:
        for name in ("src", "href", "srcset", "data", "poster", "action"):
            assert attributes.get(name, "data:").startswith(("data:", "#")), (tag, attributes[name])
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "http" not in text


def test_the_page_knows_dark_phone_and_print():
    text = render(full_page(("a", "b")))
    for feature in ("prefers-color-scheme: dark", "@media print", "max-width: 40rem", 'name="viewport"'):
        assert feature in text


def test_figures_of_matplotlib_follow_the_page():
    svg = inline_svg(full_page(("a", "b")).sections[0].pictures[0])
    assert "var(--x3b5b7a,#3b5b7a)" in svg
    styles = re.findall(r'style="([^"]*)"', svg)
    assert not [style for style in styles if re.search(r"(?<!,)#[0-9a-f]{6}", style)]
    assert not re.search(r'<g id="patch_1">\s*<path[^>]*fill: var\(--xffffff', svg)  # no white ground


def test_cards_and_cells_show_their_numbers():
    card = Card("accuracy", "80.0 %", (0.75, 0.85))
    rows = [["a", 0.25], ["b", 0.123456789]] + [["c", None]] * 4
    table = Table("t", "T", (Column("name"), Column("share", "{:.1%}", bar=True)), rows)
    tree = Tree(
        render(Page("t", "", (), (Section("s", tables=(table,)),), about("cpu"), headlines=(Headline((card,)),)))
    )
    cells = [each for tag, each in tree.elements if tag == "td"]
    assert (cells[1]["class"], cells[1]["style"], cells[1]["data-v"]) == ("bar", "--v:0.250", "0.25")
    assert cells[3]["data-v"] == "0.123457"
    assert "data-v" not in cells[5]
    assert "left:75.00%;width:10.00%" in [each.get("style") for tag, each in tree.elements if tag == "i"]
    assert "95 % CI 75.0–85.0" in tree.texts


def test_points_lie_where_their_values_are():
    x, y = Axis("x", 0, 10), Axis("y", 0, 1)
    svg = line_chart("t", [Series("s", [(0, 0), (10, 1)])], x, y, (Spot(5, 0.5, "half"),)).svg
    dots = [tuple(map(float, each)) for each in re.findall(r'<circle[^>]*cx="([\d.]+)" cy="([\d.]+)"', svg)]
    (left, bottom), (right, top), (across, up) = dots
    assert (across, up) == (pytest.approx((left + right) / 2, abs=0.1), pytest.approx((bottom + top) / 2, abs=0.1))
    assert left < right
    assert top < bottom


@pytest.mark.parametrize(
    ("values", "whole"), [([0.1, 0.9], False), ([1, 1], True), ([3, 3], False), ([0, 0], False), ([1, 300], True)]
)
def test_axes_hold_their_values_and_have_few_ticks(values, whole):
    axis = Axis.around("a", values, whole=whole)
    assert axis.low <= min(values) <= max(values) <= axis.high
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= 8
    assert not whole or all(tick == int(tick) for tick in ticks)


def test_heat_is_where_the_values_are():
    from io import BytesIO

    from PIL import Image

    values = np.zeros((4, 4))
    values[0, 3] = 2.0
    with Image.open(BytesIO(heat_png(values))) as image:
        red = np.asarray(image)[..., 0]
    row, column = np.unravel_index(red.argmax(), red.shape)
    assert row < red.shape[0] / 4
    assert column >= red.shape[1] * 3 / 4
    assert heat_png(np.zeros((4, 4))) is None
