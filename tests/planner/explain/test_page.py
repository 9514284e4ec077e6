"""The page is whole by itself, says what the text says, and lets nothing through that is not text."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from planner.made_up import any_decision, chain, cluster, costs, decision, profile
from samestep.plan.prediction import PARTS, in_ms
from samestep.planner.explain.charts import LEFT, RIGHT, WIDTH, parts_chart
from samestep.planner.explain.explanation import explain
from samestep.planner.explain.page import page
from samestep.planner.explain.plan_comparison import compare_to_pick, runners_up
from samestep.planner.explain.timeline import UNITS, timeline_bars, timeline_svg, timeline_text
from samestep.planner.search.decision import Decision

VOID = {"meta", "br", "link", "img"}


class Reader(HTMLParser):
    """Holds that every element is closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def page_of(of: Decision, answer: str = "") -> str:
    return page(of, explain(of), str(of.pick.plan), ["worker 0: needs 1.0 MB"], answer)


def test_it_parses_and_refers_to_nothing_elsewhere() -> None:
    text = page_of(decision(on=cluster(2, 1)))
    read = Reader(text)
    assert not {"script", "link", "img", "iframe", "object", "embed", "audio", "video"} & set(read.tags)
    assert not [name for name, _ in read.attributes if name in ("src", "href", "xlink:href", "srcset", "data")]
    assert not re.findall(r"@import|url\((?!#)|javascript:", text)
    assert set(re.findall(r"https?://[^\s\"<]+", text)) == {"http://www.w3.org/2000/svg"}
    assert "prefers-color-scheme: dark" in text


def test_it_has_the_pictures_the_table_and_all_that_the_text_says() -> None:
    of = decision(on=cluster(2, 1), may_slice=True)
    read = Reader(page_of(of, "data, as <much> slower"))
    assert read.tags.count("svg") == 2
    assert read.tags.count("tr") == 1 + len(explain(of).layers)
    said = " ".join("".join(read.words).split())
    for lines in explain(of).sections().values():
        for line in lines:
            assert line in said or any(layer.text() == line for layer in explain(of).layers), line
    assert "data, as <much> slower" in said
    assert str(of.pick.plan).splitlines()[0] in said


def test_names_cannot_become_elements() -> None:
    evil = "<script>alert('fc')</script>\"&"
    units = tuple(replace(unit, name=f"{evil}{n}", signature=f"{n}") for n, unit in enumerate(chain().units))
    of = chain(units=units, regions=(), why_whole={f"{evil}0": evil})
    found = decision(replace(profile(of, costs(of)), job=evil), cluster(2, 1))
    read = Reader(page_of(found, evil))
    assert "script" not in read.tags
    assert any(evil in word for word in read.words)


@pytest.mark.parametrize("seed", range(10))
def test_the_chart_is_to_scale(seed: int) -> None:
    of = any_decision(seed)
    plans = [compare_to_pick(of, of.pick), *runners_up(of)]
    picture = ElementTree.fromstring(parts_chart(plans))
    bars = [bar for bar in picture.iter("rect") if bar.find("title") is not None]
    assert len(bars) == len(PARTS) * len(plans)
    scale = (WIDTH - LEFT - RIGHT) / max(plan.seconds for plan in plans)
    for bar, (plan, part) in zip(bars, [(plan, part) for plan in plans for part in PARTS], strict=True):
        assert float(bar.attrib["width"]) == pytest.approx(plan.parts[part] * scale, abs=0.006)
        assert bar.attrib["class"] == part
    assert all(f"{in_ms(plan.seconds)} ms" in [text.text for text in picture.iter("text")] for plan in plans)


# The timeline.


@pytest.mark.parametrize("seed", range(10))
def test_the_timeline_has_the_simulated_times(seed: int) -> None:
    of = any_decision(seed)
    found = of.pick.estimate
    bars = timeline_bars(found)
    ends = [span.stop for spans in found.outcome.spans for span in spans]
    assert min(bar.start for bar in bars) >= 0
    assert max(bar.stop for bar in bars) <= max(ends)
    assert {bar.worker for bar in bars} == set(range(of.pick.plan.workers))
    letters = {"F": "Forward", "B": "Backward", "W": "BackwardWeight"}
    if not any(stage.slices for stage in of.pick.plan.stages):  # whose bars hold waiting for rows too
        for kind, name in letters.items():
            drawn_seconds = sum(bar.stop - bar.start for bar in bars if bar.kind == kind)
            said = sum(worker.get(name, 0.0) for worker in found.actions)
            assert drawn_seconds == pytest.approx(said, rel=0.03, abs=1e-3 * found.seconds)
    ElementTree.fromstring(timeline_svg(found, "A step"))


def test_the_drawing_says_how_long_a_column_is() -> None:
    found = decision().pick.estimate
    *rows, legend = timeline_text(found).splitlines()
    assert [row.split()[:2] for row in rows] == [["worker", "0"], ["worker", "1"]]
    columns = len(rows[0].split()) - 2
    column = float(legend.split()[3])
    assert legend.startswith("a column is ")
    assert columns * column == pytest.approx(1e3 * max(bar.stop for bar in timeline_bars(found)), rel=0.05)
    assert "F0" in rows[0]
    assert "U" in rows[0]


def test_the_picture_tells_milliseconds_to_those_who_point_at_it() -> None:
    found = decision().pick.estimate
    picture = timeline_svg(found, "A step")
    end = 1e3 * max(bar.stop for bar in timeline_bars(found))
    assert f"take {end:.4g} ms;" in picture
    assert "communication" in picture
    assert int(re.search(r'width="(\d+)"', picture)[1]) - 16 == UNITS * 30 + 84  # type: ignore[index]
