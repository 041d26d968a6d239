"""The report: complete in one file, safe, and true to the numbers it is given."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from rb_jax.eval.reasonworld import EditScore, summarize
from rb_jax.eval.report import ReportData, StageParameters, render_report, write_report
from rb_jax.report.curves import Curve, line_chart, smooth, ticks
from rb_jax.report.grids import GridRow

VOID = {"meta", "img", "path", "circle", "br"}


class Page(HTMLParser):
    """Collects text and attributes and checks that every element is closed."""

    def __init__(self, source):
        super().__init__()
        self.open, self.attributes, self.tags, self.cells, self.words = [], [], [], [], []
        self.feed(source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th") and self.cells:
            self.cells[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.words.append(data)
        if "tr" in self.open:
            self.cells[-1][-1] += data

    def row(self, *heads):
        """Cells of the first table row that begins with these texts."""
        rows = [cells for cells in self.cells if cells[: len(heads)] == list(heads)]
        assert rows, f"no row {heads}"
        return rows[0][len(heads) :]


def scores(*pairs):
    return summarize(
        (category, EditScore(aligned, "right" if aligned else "unchanged", edited, kept))
        for category, aligned, edited, kept in pairs
    )


RUN = scores(
    ("physical", True, 21.0, 31.5),
    ("physical", False, 12.5, 30.0),
    ("story", True, 24.25, 33.0),
    ("story", True, 22.75, 35.5),
)
COPY = scores(("physical", False, 11.0, 60.0), ("story", False, 10.0, 60.0))


def example(instruction="What if the dam broke?", category="causal", **changes):
    pictures = {
        name: np.full((8, 8, 3), value, np.uint8)
        for name, value in (("source", 10), ("edit", 130), ("truth", 250))
    }
    return GridRow(instruction, pictures, category, **changes)


def data(**changes):
    values = {
        "command": "rb-jax train --config=configs/reasonworld.py",
        "steps": 1234,
        "seconds": 125.0,
        "parameters": 4_870_000,
        "cores": 3,
        "examples": [example(aligned=True, psnr=23.456), example(category="temporal")],
        "metrics": [
            {"step": step, "kind": kind, "loss": 2.0, "loss_flow": 1.5 / step, "loss_mllm": 0.5}
            for step in (20, 40, 60)
            for kind in ("train", "val")
        ],
        "scores": {"test": {"this run": RUN, "copy": COPY}, "test_unseen": {"this run": COPY}},
        "ablation": [
            {"name": "baseline", "switches": ["frce off"], "steps": 2500, "scores": RUN},
            {"name": "full", "switches": {"cme.enabled": True}, "steps": 2501, "scores": COPY},
        ],
        "stages": [StageParameters("frce", 1200, 34), StageParameters("mmdit", 56_000, 0)],
    }
    return ReportData(**(values | changes))


def test_the_file_needs_nothing_else(tmp_path):
    path = write_report(tmp_path / "made" / "report.html", data())
    source = path.read_text(encoding="utf-8")
    page = Page(source)
    assert not re.search(r"https?:|file:|url\(|@import|//cdn", source)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    references = [value for name, value in page.attributes if name in ("src", "href", "srcset")]
    assert references and all(value.startswith("data:image/png;base64,") for value in references)


def test_pictures_are_the_ones_given():
    page = Page(render_report(data(examples=[example()])))
    sources = [value for name, value in page.attributes if name == "src"]
    shades = []
    for value in sources:
        image = Image.open(io.BytesIO(base64.b64decode(value.split(",")[1])))
        shades.append(np.unique(np.asarray(image)).tolist())
    assert shades == [[10], [130], [250]]


def test_markup_in_the_data_is_shown_as_text():
    evil = '<script>alert("&")</script>'
    source = render_report(
        data(
            command=evil,
            title=evil,
            examples=[example(evil, category='"><script>')],
            scores={evil: {evil: RUN}},
            ablation=[{"name": evil, "switches": [evil], "steps": 1, "scores": RUN}],
            stages=[StageParameters(evil, 1, 1)],
        )
    )
    page = Page(source)
    assert "script" not in page.tags
    assert page.words.count(evil) >= 7


def test_header_states_the_run():
    text = " ".join(Page(render_report(data())).words)
    for fact in ("1,234 training steps", "2 min 5 s", "4.87 M", "3 CPU cores", "0.750 Ins-Align"):
        assert fact in text


def test_scores_are_the_numbers_given():
    page = Page(render_report(data()))
    low, high = RUN["overall"]["ins_align_ci"]
    margin = RUN["overall"]["edited_psnr_ci"]
    cells = page.row("overall", "this run")
    assert cells[:2] == ["0.750", f"{low:.3f} to {high:.3f}"]
    assert cells[3].split() == ["20.12", f"±{margin:.2f}"]
    assert cells[4].split()[0] == "32.50" and cells[5] == "4"
    assert page.row("physical", "this run")[0] == "0.500"
    assert page.row("story", "this run")[0] == "1.000"
    assert page.row("copy")[0] == "0.000"
    # One score has no interval (nan): the mean stands alone.
    alone = Page(
        render_report(data(scores={"test": {"only": scores(("story", True, 20.0, 30.0))}}))
    )
    assert alone.row("overall", "only")[3] == "20.00"


def test_ablation_and_parameters_are_the_numbers_given():
    page = Page(render_report(data()))
    assert page.row("baseline", "frce off")[:2] == ["2,500", "0.750"]
    assert page.row("full", "cme.enabled=True")[:2] == ["2,501", "0.000"]
    assert page.row("frce")[:3] == ["1,200", "34", "1,234"]
    assert page.row("all")[:3] == ["57,200", "34", "57,234"]


def test_categories_come_in_the_papers_order():
    names = ["story", "other", "causal", "physical", "temporal"]
    page = Page(render_report(data(examples=[example(category=n) for n in names], scores=None)))
    shown = [word for word in page.words if word in names]
    assert shown == ["physical", "temporal", "causal", "story", "other"]


def test_verdict_and_psnr_follow_the_example():
    assert "23.5 dB" in render_report(data())
    verdicts = {True: "\u2713 right outcome", False: "\u2717 not the right outcome", None: ""}
    for aligned, verdict in verdicts.items():
        page = Page(render_report(data(examples=[example(aligned=aligned)])))
        assert [word for word in page.words if word in verdicts.values()] == [verdict] * bool(
            verdict
        )


def test_sections_without_data_are_left_out():
    page = Page(render_report(ReportData("make demo", 1, 2.0)))
    assert "h2" not in page.tags and "table" not in page.tags and "svg" not in page.tags


@pytest.mark.parametrize(
    "metrics",
    [
        [{"step": 1}, {"loss_flow": 2.0}, {}],
        [{"step": 1, "loss_flow": float("nan")}, {"step": 2, "loss_flow": None}],
        [{"step": 1, "kind": "start", "peak_source": "x", "loss_flow": "broken"}],
    ],
)
def test_metrics_without_usable_values_draw_nothing(metrics):
    assert "chart" not in dict(Page(render_report(data(metrics=metrics))).attributes).values()


def test_curves_show_the_last_values_and_skip_holes():
    metrics = [
        {"step": 10, "loss_flow": 1.25},
        {"step": 20, "loss_flow": float("nan"), "val_loss_flow": 0.875},
        {"step": 30, "loss_flow": 0.625},
    ]
    text = " ".join(Page(render_report(data(metrics=metrics))).words)
    assert "Flow matching loss" in text and "L_MLLM" not in text
    assert "0.625" in text and "0.875" in text


def test_missing_scores_are_dashes():
    page = Page(render_report(data(scores={"test": {"run": {"overall": {"ins_align": 0.5}}}})))
    assert page.row("overall", "run") == ["0.500", "–", "", "–", "–", "–"]


def test_a_point_is_drawn_where_its_values_put_it():
    chart = line_chart("t", [Curve("a", "red", [(0, 1.0), (5, 2.0), (10, 3.0)], dots=True)])
    places = np.array(re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', chart), float)
    assert np.allclose(np.diff(places[:, 0], 2), 0, atol=0.2) and (np.diff(places[:, 0]) > 0).all()
    assert np.allclose(np.diff(places[:, 1], 2), 0, atol=0.2) and (np.diff(places[:, 1]) < 0).all()
    assert "log scale" not in chart


def test_a_steep_fall_gets_a_log_scale_on_which_it_is_even():
    chart = line_chart("t", [Curve("a", "red", [(0, 1.0), (5, 0.1), (10, 0.01)], dots=True)])
    heights = np.array(re.findall(r'cy="([\d.]+)"', chart), float)
    assert "log scale" in chart and np.allclose(np.diff(heights, 2), 0, atol=0.2)


@pytest.mark.parametrize("points", [[(0, 0.0)], [(5, 2.0), (10, 2.0)], [(3, -1.0)], [(7, 1e-9)]])
def test_flat_and_single_curves_are_drawn(points):
    chart = line_chart("t", [Curve("a", "red", points)])
    assert "<svg" in chart and "nan" not in chart and "inf" not in chart


def test_smoothing_keeps_a_line_and_calms_noise():
    line = [(float(x), 3.0 - 2 * x) for x in range(100)]
    assert np.allclose(smooth(line), line)
    noise = [(float(x), float((-1) ** x)) for x in range(100)]
    assert np.abs([y for _, y in smooth(noise)][5:-5]).max() < 0.25


def test_ticks_are_round_and_inside():
    assert ticks(0, 600) == [0, 100, 200, 300, 400, 500, 600]
    assert ticks(0.13, 0.42) == [0.15, 0.2, 0.25, 0.3, 0.35, 0.4]
    assert ticks(2, 2) == [2]
