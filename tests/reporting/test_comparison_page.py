"""The page shows the exact values of the comparison, and escapes names."""

import dataclasses
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pneumoscope.core.interval import Interval
from pneumoscope.core.result_forms import to_json
from pneumoscope.reporting.checklists import CHECKLISTS
from pneumoscope.reporting.comparison_page import write_comparison_page
from pneumoscope.reporting.report_files import make_report
from pneumoscope.reporting.templating import environment
from pneumoscope.runs.evaluations import read_evaluation

MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"
VOID = {"meta", "link", "br", "path", "use", "rect"}


@dataclasses.dataclass
class Node:
    tag: str
    attributes: dict[str, str]
    children: "list[Node | str]"

    def walk(self) -> "Iterator[Node]":
        yield self
        for child in self.children:
            if isinstance(child, Node):
                yield from child.walk()

    def all(self, tag: str, **attributes: str) -> "list[Node]":
        return [
            node
            for node in self.walk()
            if node.tag == tag
            and all(
                node.attributes.get(name.rstrip("_").replace("_", "-")) == value for name, value in attributes.items()
            )
        ]

    def text(self) -> str:
        return " ".join(" ".join(c if isinstance(c, str) else c.text() for c in self.children).split())

    def values(self) -> list[float]:
        """Return the values in full precision."""
        return [float(node.attributes["value"]) for node in self.all("data")]


class Tree(HTMLParser):
    """Element tree of a page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Node("", {}, [])
        self.open = [self.root]
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, {name: value or "" for name, value in attrs}, [])
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Node(tag, {name: value or "" for name, value in attrs}, []))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
            self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


POINT_METRICS = (
    "sensitivity",
    "specificity",
    "accuracy",
    "positive_likelihood_ratio",
    "negative_likelihood_ratio",
)


@pytest.fixture(scope="module")
def page(three: Any) -> Node:
    return Tree(three[2].read_text(encoding="utf-8")).root


def shown(value: Interval) -> str:
    """Return a metric as the page shows it."""
    ends = f" {value.low:.3f} to {value.high:.3f}" if value.low is not None else f" {DASH} {value.reason}"
    return f"{value.value:.3f}{ends}".replace("-", MINUS)


def section(page: Node, name: str) -> Node:
    (node,) = page.all("section", id=name)
    return node


def test_the_table_has_every_metric_of_every_run(three: Any, page: Node) -> None:
    comparison, *_ = three
    for metric in [name for name in comparison.runs[0].test if name != "n"]:
        (row,) = section(page, "metrics").all("tr", data_metric=metric)
        for cell, run in zip(row.all("td"), comparison.runs, strict=True):
            value = run.test[metric]
            if value.value is None:
                continue
            assert cell.values() == [value.value]
            assert cell.text() == shown(value)


def test_undefined_values_are_a_dash_with_the_reason(page: Node) -> None:
    (row,) = section(page, "metrics").all("tr", data_metric="precision")
    assert row.all("td")[0].text() == f"{DASH} no image is <b>predicted</b> as pneumonia"
    (row,) = section(page, "metrics").all("tr", data_metric="f1")
    assert row.all("td")[0].text() == f"0.250 {DASH} the statistic is defined in only 3 of 100 resamples"
    _, p, holm, verdict = section(page, "pairs").all("tr", data_pair="accuracy")[0].all("td")
    assert p.text() == holm.text() == f"{DASH} no patient favors either run"
    assert verdict.text() == "no significant difference"


def test_confusion_matrices_have_the_counts(three: Any, page: Node) -> None:
    comparison, *_ = three
    counts = [table.values() for table in section(page, "confusion").all("table")]
    assert counts == [[r.confusion.tn, r.confusion.fp, r.confusion.fn, r.confusion.tp] for r in comparison.runs]


def test_every_pair_has_its_difference_p_and_verdict(three: Any, page: Node) -> None:
    comparison, *_ = three
    rows = [
        *section(page, "pairs").all("tr", data_pair="accuracy"),
        *section(page, "pairs").all("tr", data_pair="auroc"),
    ]
    assert len(rows) == len(comparison.pairs) == 6
    for row, pair in zip(rows, comparison.pairs, strict=True):
        difference, _, _, verdict = row.all("td")
        assert row.all("th")[0].text() == f"{pair.a} {MINUS} {pair.b}"
        assert row.values() == [v for v in (pair.difference.value, pair.p, pair.p_holm) if v is not None]
        assert difference.text().startswith(f"{pair.difference.value:+.3f}".replace("-", MINUS))
        better = {"a": f"{pair.a} is higher", "b": f"{pair.b} is higher"}
        assert verdict.text() == better.get(pair.verdict, "no significant difference")
    assert {pair.verdict for pair in comparison.pairs} == {"a", "b", "not distinguishable"}


def test_etiologies_and_operating_points_are_those_of_the_evaluations(three: Any, page: Node) -> None:
    _, folders, _ = three
    evaluations = [read_evaluation(folder / "evaluation" / "test" / "evaluation.json") for folder in folders]
    for index, evaluation in enumerate(evaluations):
        (row,) = section(page, "etiology").all("tr", data_etiology=str(index))
        etiology = evaluation.operating_points["half"].by_etiology
        expected = [
            *(etiology[name] for name in ("normal", "bacteria", "virus")),
            *evaluation.auroc_by_etiology.values(),
        ]
        assert row.values() == [value.value for value in expected]
        assert [cell.text() for cell in row.all("td")] == [f"{shown(v)} n = {v.n}" for v in expected]
    for name in ("half", "balanced", "rule_out"):
        rows = section(page, "operating_points").all("tr", data_point=name)
        for row, point in zip(rows, (evaluation.operating_points[name] for evaluation in evaluations), strict=True):
            metrics = [point.metrics[metric].value for metric in POINT_METRICS]
            assert row.values() == [point.threshold, *metrics]
            assert row.text().endswith(f" {point.confusion.fn} {point.confusion.fp}")
            assert point.rule in row.text()


def test_the_published_table_is_shown_as_printed_converted_and_compared(three: Any, page: Node) -> None:
    comparison, *_ = three
    part = section(page, "published")
    assert comparison.reference.note in part.text()
    printed, standard, compared = part.all("table")
    for metric in comparison.reference.rows[0].metrics:
        (row,) = standard.all("tr", data_published=metric)
        assert row.values() == [published.metrics[metric].value for published in comparison.reference.rows]
    for row, published in zip(printed.all("tr")[1:], comparison.reference.rows, strict=True):
        c = published.confusion
        assert row.values() == list(published.printed.values())
        assert row.text().endswith(f" {c.tp} {c.fn} {c.tn} {c.fp}")
        (row,) = compared.all("tr", data_comparison=published.name)
        run = next((run for run in comparison.runs if run.name == published.name), None)
        expected = [published.metrics["accuracy"].value]
        if run is not None:
            expected += [run.test["accuracy"].value, published.difference.value]
        expected.append(published.average_validation_accuracy)
        if run is not None:
            expected.append(run.average_validation_accuracy)
        else:
            assert f"{DASH} not run here" in row.text()
        assert row.values() == expected
        assert row.text().endswith(published.sentence)
    assert sum("not run here" in row.text() for row in compared.all("tr")) == 4


def test_the_page_begins_with_title_notice_images_and_findings(three: Any, page: Node) -> None:
    comparison, *_ = three
    text = page.all("header")[0].text() + page.all("main")[0].text()
    order = [
        "Comparison of 3 runs on 96 test images",
        comparison.notice,
        "Images",
        f"Test images 96 NORMAL 36 PNEUMONIA 60 Patients {comparison.images['patients']}",
        comparison.images["sha256"][:16],
        comparison.sentences[0],
        comparison.sentences[-1],
        "Significant differences",
        "No significant difference: 4 of 6 comparisons",
        "Metrics",
    ]
    positions = [text.index(part) for part in order]
    assert positions == sorted(positions)


@pytest.mark.parametrize(
    ("images", "text"),
    [
        ({"n": 96, "patients": 96}, "96"),  # of an earlier version
        ({"n": 96, "patients": 80, "unknown_patients": 0}, "80"),
        ({"n": 96, "patients": 96, "unknown_patients": 96}, "unknown each image counts as one"),
        ({"n": 96, "patients": 80, "unknown_patients": 6}, "74 known; 6 images have no known patient"),
        ({"n": 96, "patients": 80, "unknown_patients": 1}, "79 known; 1 image has no known patient"),
    ],
)
def test_unknown_patients_are_stated_as_unknown(images: dict[str, int], text: str) -> None:
    template = environment().from_string('{% import "parts.html" as part %}{{ part.patients(images) }}')
    assert Tree(template.render(images=images)).root.text() == text


def test_findings_without_a_significant_difference_are_collapsed(three: Any, page: Node) -> None:
    comparison, *_ = three
    part = section(page, "findings")
    lines = [node.text() for node in part.walk() if node.tag in {"li", "p"}]
    assert sorted(lines) == sorted(comparison.sentences)
    collapsed = [node.text() for node in part.all("details")[0].all("li")]
    assert collapsed == [pair.sentence for pair in comparison.pairs if pair.verdict == "not distinguishable"]


def test_runs_have_settings_times_versions_and_recipes(three: Any, page: Node) -> None:
    comparison, folders, _ = three
    part = section(page, "runs")
    text = part.text()
    for run in comparison.runs:
        assert str(run.network) in text
    assert "31 min 00 s" in text
    assert "Total training time: 1 h 33 min." in text
    for name in ("versions.torch 2.14.1", "machine.processor 2 cores", "evaluated 2026-01-02T03:04:05Z"):
        assert name in text
    recipes = [folder.joinpath("recipe.toml").read_text(encoding="utf-8") for folder in folders]
    assert [pre.children for pre in part.all("pre")] == [[recipe] for recipe in recipes]
    assert comparison.command in section(page, "command").text()


def test_each_figure_has_a_caption_with_n_and_a_text_alternative(page: Node) -> None:
    figures = page.all("figure")
    assert len(figures) == 10
    for figure in figures[:-2]:
        assert "n = 96 images" in figure.all("figcaption")[0].text()
    for svg in page.all("svg"):
        assert svg.attributes.get("aria-hidden") == "true" or (
            svg.attributes["role"],
            bool(svg.attributes["aria-label"]),
        ) == ("img", True)


def test_a_run_has_the_same_color_in_every_figure(page: Node) -> None:
    color = page.all("section", id="discrimination")[0].all("path")[2].attributes["stroke"]
    for key in ("reliability", "histogram", "curves"):
        svgs = [
            svg
            for svg in page.all("svg", role="img")
            if svg.all("clippath") and any(n.attributes.get("id", "").startswith(f"{key}-2-") for n in svg.walk())
        ]
        assert len(svgs) == 1
        colors = {
            value for node in svgs[0].walk() for name, value in node.attributes.items() if name in ("fill", "stroke")
        }
        assert color in colors


def test_names_are_escaped(three: Any, page: Node) -> None:
    text = three[2].read_text(encoding="utf-8")
    assert "<script" not in text
    assert not page.all("script")
    assert section(page, "metrics").all("th")[2].text() == three[0].runs[1].name
    assert not [name for node in page.walk() for name in node.attributes if name.startswith("on")]


def test_the_page_makes_no_requests(three: Any, page: Node) -> None:
    text = three[2].read_text(encoding="utf-8")
    assert "http:" not in text
    assert "https:" not in text
    assert "url(" not in text.replace("url(#", "")
    assert not [node for node in page.walk() if "src" in node.attributes]
    targets = {node.attributes["href"] for node in page.walk() if "href" in node.attributes}
    assert {target for target in targets if not target.startswith("#")} == {"data:,"}
    (policy,) = page.all("meta", http_equiv="Content-Security-Policy")
    assert policy.attributes["content"].startswith("default-src 'none'")


def test_ids_are_unique_and_internal_links_have_targets(page: Node) -> None:
    ids = [node.attributes["id"] for node in page.walk() if "id" in node.attributes]
    assert len(ids) == len(set(ids))
    for node in page.walk():
        target = node.attributes.get("href", "")
        assert not target.startswith("#") or target[1:] in ids


@pytest.mark.slow
def test_the_page_of_one_run_has_no_paired_tests_and_is_reproducible(build: Callable[..., Any], tmp_path: Path) -> None:
    comparison, folders = build(["alone"], epochs=1, published=False)
    first = write_comparison_page(comparison, folders, tmp_path / "1.html").read_bytes()
    assert write_comparison_page(comparison, folders, tmp_path / "2.html").read_bytes() == first
    page = Tree(first.decode()).root
    assert page.all("h1")[0].text() == "Run alone on 96 test images"
    assert not page.all("section", id="published")
    assert not page.all("section", id="pairs")
    assert not page.all("a", href="#published")
    assert "there is no comparison" in section(page, "findings").text()


@pytest.mark.slow
def test_images_of_one_label_have_no_curves_and_the_page_states_the_reason(
    build: Callable[..., Any], tmp_path: Path
) -> None:
    comparison, folders = build(["alone"], n=30, normal=0, epochs=1, published=False)
    page = Tree(write_comparison_page(comparison, folders, tmp_path / "1.html").read_text(encoding="utf-8")).root
    assert "0 NORMAL and 30 PNEUMONIA images" in section(page, "discrimination").text()
    assert not section(page, "discrimination").all("svg")
    (row,) = section(page, "metrics").all("tr", data_metric="specificity")
    assert row.all("td")[0].text() == f"{DASH} there is no NORMAL image"
    assert section(page, "confusion").text().count("no images") == 2


def test_net_benefit_and_predictive_values_are_those_of_the_evaluations(three: Any, page: Node) -> None:
    evaluations = [read_evaluation(folder / "evaluation" / "test" / "evaluation.json") for folder in three[1]]
    rows = section(page, "net_benefit").all("tr", data_threshold="0.5")
    assert len(rows) == 1
    steps = [next(s for s in e.decision_curve if s.threshold_probability == 0.5) for e in evaluations]
    expected = [steps[0].treat_all.value, *(v for s in steps for v in (s.net_benefit.value, s.gain.value))]
    assert rows[0].values() == expected
    (points, *_) = (section(page, "operating_points").all("tr", data_predictive="balanced"),)
    for row, evaluation in zip(points, evaluations, strict=True):
        at = evaluation.operating_points["balanced"].predictive_values
        assert row.values() == [at.precision.value, at.negative_predictive_value.value]


def test_operating_points_have_the_names_of_the_command_line(page: Node) -> None:
    names = [row.all("td")[0].text() for row in section(page, "operating_points").all("tr", data_point="rule_out")]
    assert names
    assert all(name.startswith("rule_out ") for name in names)


def test_images_without_an_etiology_have_no_section_and_no_term_on_it(
    build: Callable[..., Any], tmp_path: Path
) -> None:
    comparison, folders = build(["alexnet-sgd"])
    assert 'href="#etiology"' in write_comparison_page(comparison, folders, tmp_path / "with.html").read_text()
    file = folders[0] / "evaluation" / "test" / "evaluation.json"
    evaluation = read_evaluation(file)
    points = {name: dataclasses.replace(point, by_etiology={}) for name, point in evaluation.operating_points.items()}
    file.write_text(
        to_json(dataclasses.replace(evaluation, operating_points=points, auroc_by_etiology={})), encoding="utf-8"
    )
    text = write_comparison_page(comparison, folders, tmp_path / "without.html").read_text()
    assert "tiology" not in text


def test_the_page_has_no_backticks(build: Callable[..., Any]) -> None:
    comparison, folders = build(["alexnet-sgd"])
    comparison = dataclasses.replace(comparison, sentences=("See `evaluate --by`.", *comparison.sentences))
    page = make_report(comparison, folders, CHECKLISTS).page()
    assert "<code>sample-size</code>" in page
    assert "See <code>evaluate --by</code>." in page
    assert "`" not in page
