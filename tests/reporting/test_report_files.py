"""Files of a report: figures that other programs open, tables read back, and flow diagrams with the recorded numbers."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from pneumoscope.core.errors import UnknownNameError
from pneumoscope.core.image_flow import ImageCount, ImageFlow
from pneumoscope.core.interval import Interval
from pneumoscope.data.layouts import load_manifest
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.reporting.binary_checklist_facts import BINARY_FACTS
from pneumoscope.reporting.checklist_facts import SHARED_FACTS
from pneumoscope.reporting.checklists import checklist_table, fill_checklist
from pneumoscope.reporting.flow_diagram import excluded_lines
from pneumoscope.reporting.latex_table import to_latex
from pneumoscope.reporting.report_files import ReportFiles, make_report
from pneumoscope.reporting.report_files import report as make_named_report
from pneumoscope.reporting.run_data import load_run_data
from pneumoscope.reporting.table_forms import Table, to_csv, to_markdown
from pneumoscope.reporting.tables import comparison_tables, flow_table, reliability_table
from pneumoscope.runs.evaluations import read_evaluation
from pneumoscope.statistics.calibration import reliability_bins


@pytest.fixture(scope="module")
def report(three: Any, tmp_path_factory: pytest.TempPathFactory) -> ReportFiles:
    comparison, folders, _ = three
    return make_report(comparison, folders, ["claim"]).write(tmp_path_factory.mktemp("report"))


def rows(report: ReportFiles, name: str) -> list[dict[str, str]]:
    (file,) = (file for file in report.tables if file.name == f"{name}.csv")
    return list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"))))


@pytest.fixture
def external(maker: Any, tmp_path: Path) -> Path:
    """A run that was evaluated on its test images, and on others of the north by sex, with the differences."""
    run: Path = maker.run()
    ledger = tmp_path / "ledger.jsonl"
    evaluate(run, maker.images(normal=40, pneumonia=60), ledger=ledger)
    north = maker.images("north", seed=4, normal=20, pneumonia=30)
    lines = load_manifest(north).to_csv().splitlines()
    data = maker.root / "north.csv"
    # Paths in a manifest are relative to its folder.
    images = [f"north/{line},{'FM'[i % 2]}" for i, line in enumerate(lines[1:])]
    data.write_text("\n".join([f"{lines[0]},sex", *images]))
    evaluate(run, data, name="north", reference="test", by=["sex"], ledger=ledger)
    return run


def test_differences_from_other_images_are_a_table_a_section_and_a_fact(external: Path, tmp_path: Path) -> None:
    difference = read_evaluation(external / "evaluation/north/evaluation.json").difference
    assert difference is not None
    named = difference.named_intervals()

    made = make_named_report([external], evaluation="north", checklists=["claim", "stard-ai"])
    files = made.write(tmp_path / "report")

    found = {row["Metric"]: row for row in rows(files, "differences")}
    assert found.keys() == named.keys()
    for name, interval in named.items():
        assert float(found[name]["Difference"]) == interval.value
        assert (found[name]["Reference"], found[name]["Images of the reference"]) == ("test", "100")
    page = files.page.read_text(encoding="utf-8")
    section = page.partition('<section id="differences">')[2].partition("</section>")[0]
    assert section.count("<data value=") == len(named)
    assert "minus test, 100 images" in section
    assert '<a href="#differences">' in page
    claim, stard = ({each.item.number: each for each in checklist.answers} for checklist in made.checklists.values())
    assert claim["32"].facts == ()
    for item in (claim["33"], stard["29"]):
        (fact,) = item.facts
        assert fact.text.startswith(
            "Evaluation 'north' on 50 images of north.csv. gray, minus test (100 images): auroc "
        )
        assert fact.place == "differences"


def test_findings_of_one_run_state_the_differences_from_other_images(external: Path) -> None:
    difference = read_evaluation(external / "evaluation/north/evaluation.json").difference
    assert difference is not None
    at_point = difference.operating_points["balanced"]
    made = make_named_report([external], evaluation="north")
    expected = (
        f"gray, these 50 images minus test (100 images): AUROC {difference.metrics['auroc']:+.3f},"
        f" sensitivity at balanced {at_point['sensitivity']:+.3f}, specificity at balanced {at_point['specificity']:+.3f}."
    )
    assert any(sentence.startswith(expected) for sentence in made.comparison.sentences)
    findings = made.page().partition('<section id="findings">')[2].partition("</section>")[0]
    assert expected in findings
    own = make_named_report([external]).comparison.sentences
    assert not any("minus test" in sentence for sentence in own)


def test_own_test_images_are_internal_data(external: Path) -> None:
    (claim,) = make_named_report([external], checklists=["claim"]).checklists.values()
    items = {each.item.number: each for each in claim.answers}
    assert items["32"].facts[0].text.startswith("Evaluation 'test' on 100 images.")
    assert items["33"].facts == ()


def test_tests_of_interaction_are_a_table(external: Path, tmp_path: Path) -> None:
    tests = read_evaluation(external / "evaluation/north/evaluation.json").interactions
    files = make_named_report([external], evaluation="north").write(tmp_path / "north")
    found = rows(files, "interactions")
    assert [(row["Column"], row["Subgroups"], float(row["p"]), float(row["Holm p"])) for row in found] == [
        ("sex", "F, M", test.p, test.p_holm) for test in tests
    ]
    assert len(found) >= 3


@pytest.mark.slow
def test_each_figure_is_written_as_svg_pdf_and_png(report: ReportFiles) -> None:
    names = {file.stem for file in report.figures}
    assert {"roc", "pr", "flow-0", "flow-2", "decision-curves", "reliability-1", "metric-accuracy"} <= names
    assert len(report.figures) == 3 * len(names)
    for file in report.figures:
        content = file.read_bytes()
        if file.suffix == ".svg":
            root = ElementTree.fromstring(content)
            assert root.attrib["aria-label"]
        elif file.suffix == ".pdf":
            assert content.startswith(b"%PDF-")
            assert b"CreationDate" not in content
        else:
            with Image.open(file) as image:
                image.load()
                assert min(image.size) > 500
                assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.slow
def test_figures_of_several_runs_have_a_legend_in_the_file(report: ReportFiles, three: Any) -> None:
    (roc,) = (file for file in report.figures if file.name == "roc.svg")
    texts = {element.text for element in ElementTree.fromstring(roc.read_bytes()).iter() if element.text}
    assert {"alexnet-sgd", "vgg19-adam-32"} <= texts
    (curves,) = (file for file in report.figures if file.name == "decision-curves.svg")
    assert "treat all" in curves.read_text(encoding="utf-8")


@pytest.mark.slow
def test_flow_diagram_and_its_table_have_the_recorded_numbers(report: ReportFiles, three: Any) -> None:
    evaluation = read_evaluation(three[1][0] / "evaluation" / "test" / "evaluation.json")
    counts = evaluation.operating_points["half"].confusion
    (figure,) = (file for file in report.figures if file.name == "flow-0.svg")
    texts = {element.text for element in ElementTree.fromstring(figure.read_bytes()).iter() if element.text}
    flow = evaluation.flow
    assert flow is not None
    assert "Kermany <2018> & others" in texts
    assert f"{flow.labeled.images} images, {flow.labeled.patients} patients" in texts
    assert "split train: 40 images, 30 patients" in texts
    assert "cannot be read: 1 image" in texts
    assert f"{evaluation.n} images, {evaluation.patients} patients" in texts
    assert f"{counts.tp + counts.fp} images" in texts
    assert {f"Label PNEUMONIA: {counts.tp}", f"Label NORMAL: {counts.fp}", f"Label NORMAL: {counts.tn}"} <= texts
    table = [row for row in rows(report, "flow") if row["Run"] == "alexnet-sgd"]
    numbers = {row["Images"]: row["Number of images"] for row in table}
    assert numbers["labeled images of Kermany <2018> & others"] == str(flow.labeled.images)
    assert numbers["evaluated"] == str(evaluation.n)
    left_out = [int(value) for name, value in numbers.items() if name == "not evaluated: train"]
    assert flow.labeled.images - sum(left_out) == evaluation.n


def test_lines_of_the_flow_name_unknown_patients_and_images_that_were_set_aside() -> None:
    count = ImageCount(4, 4, 0)
    others = {"train": ImageCount(4, 4, 4), "unused": ImageCount(3, 2, 1), "validation": ImageCount(2, 1)}
    assert excluded_lines(ImageFlow("images", 0, 0, count, others, count)) == [
        "split train: 4 images, patients unknown",
        "set aside (unused): 3 images, 1 patient, 1 unknown",
        "split validation: 2 images, 1 patient",
    ]


def test_table_of_the_flow_does_not_count_unknown_patients_as_patients() -> None:
    others = {"train": ImageCount(4, 4, 4), "validation": ImageCount(2, 1)}
    flow = ImageFlow("images", 0, 0, ImageCount(106, 105, 94), others, ImageCount(100, 100, 90))
    evaluation = SimpleNamespace(flow=flow, n=100, patients=100, unknown_patients=90, counts={}, rejected=None)
    table = flow_table([("run", evaluation)])
    assert table.columns[2:] == ("Number of images", "Number of patients", "Images of unknown patients")
    assert {row[1]: row[2:] for row in table.rows if row[3] is not None} == {
        "labeled images of images": (106, 11, 94),
        "not evaluated: train": (4, "unknown", 4),
        "not evaluated: validation": (2, 1, None),
        "evaluated": (100, 10, 90),
    }


@pytest.mark.parametrize(
    ("copies", "contradictory", "text"),
    [
        (0, 0, ""),
        (1, 0, " Of the evaluated images, 1 is byte-identical to an earlier one."),
        (
            2,
            1,
            " Of the evaluated images, 2 are byte-identical to an earlier one, and 1 has another label elsewhere in the data.",
        ),
        (0, 3, " Of the evaluated images, 3 have another label elsewhere in the data."),
    ],
)
def test_checklists_state_byte_identical_images_in_a_sentence(copies: int, contradictory: int, text: str) -> None:
    flow = ImageFlow("images", 0, 0, ImageCount(9, 9), {}, ImageCount(9, 9), copies, contradictory)
    fact = SHARED_FACTS["flow"](None, [SimpleNamespace(name="run", evaluation=SimpleNamespace(flow=flow))])
    assert fact.text.endswith(f"not evaluated: none.{text}")


@pytest.mark.slow
def test_csv_tables_have_every_number_in_full_precision(report: ReportFiles, three: Any) -> None:
    comparison = three[0]
    (auroc,) = (row for row in rows(report, "metrics") if row["Metric"] == "AUROC")
    for run in comparison.runs:
        interval = run.test["auroc"]
        assert float(auroc[run.name]) == interval.value
        assert float(auroc[f"{run.name}, low"]) == interval.low
        assert auroc[f"{run.name}, method"] == interval.method
    pairs = rows(report, "pairs")
    assert [float(row["Difference"]) for row in pairs if row["Difference"]] == [
        pair.difference.value for pair in comparison.pairs if pair.difference.value is not None
    ]
    points = rows(report, "operating_points")
    assert {row["Operating point"] for row in points} == {"half", "balanced", "rule_out"}
    assert len(rows(report, "net_benefit")) == 19 * 3


@pytest.mark.slow
def test_markdown_has_one_line_for_each_row_and_the_methods(report: ReportFiles) -> None:
    (file,) = (file for file in report.tables if file.name == "metrics.md")
    text = file.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(rows(report, "metrics"))
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert "percentile bootstrap by patient, seed 0" in text


TABLE = Table(
    "odd",
    "50% of A & B.",
    ("Run_1", "Value"),
    (
        ("a|b $x$ {y} \\ ~ ^ # \N{MINUS SIGN}", Interval(0.5, 0.25, 0.75, "wilson", 8)),
        ("c", Interval(None, None, None, "wilson", 0, reason="none")),
    ),
)


def test_latex_escapes_every_special_character() -> None:
    text = to_latex(TABLE)
    row = r"a$|$b \$x\$ \{y\} \textbackslash{} \textasciitilde{} \textasciicircum{} \# $-$ & 0.500 (0.250 to 0.750) \\"
    assert row in text
    assert r"\caption{50\% of A \& B.}" in text
    assert r"Run\_1 & Value \\" in text
    assert r"c & undefined: none \\" in text
    assert text.count(r"\begin{") == text.count(r"\end{") == 2


LONG = (
    "To state robustness, run: `pneumoscope robustness runs/quick_1 --data DATA`; the interval is <0.5, and the item stays open"
    " until then."
)


def test_code_in_latex_is_typewriter_text_and_in_markdown_in_backticks() -> None:
    table = Table("a", "A.", ("Topic", "Ask"), (("b", "`sample-size` & `evaluate --by A_B` plan it; a ` alone"),))
    text = to_latex(table)
    assert r"\texttt{sample-size} \& \texttt{evaluate -{}-by A\_B} plan it; a \textasciigrave{} alone" in text
    assert "`sample-size` & `evaluate --by A_B` plan it" in to_markdown(table)


def long_table(*rows: tuple[str, ...]) -> Table:
    return Table("checklist-claim", "CLAIM.", ("Item", "Topic", "From the record"), rows, "Source & year.")


def test_latex_of_sentences_has_columns_with_widths_that_fill_the_page_and_may_break() -> None:
    text = to_latex(long_table(("30", "Robustness", LONG), ("31", "Explainability of the model", "[a] open")))
    (align,) = re.findall(r"\\begin\{longtable\}\{(.*)\}$", text, re.MULTILINE)
    widths = [float(width) for width in re.findall(r"p\{\\dimexpr ([0-9.]+)\\linewidth-2\\tabcolsep\\relax\}", align)]
    assert align.startswith("lp{")
    assert len(widths) == 2
    assert 0.85 < sum(widths) < 0.96  # the rest is for "Item"
    assert widths[1] > 1.5 * widths[0]
    assert r"-{}-data DATA}; the interval is $<$0.5" in text
    assert "abcdef01\\allowbreak{}23456789" in to_latex(long_table(("1", "Hash", f"{LONG} abcdef0123456789")))
    assert r"runs/\allowbreak{}quick\_\allowbreak{}1" in text
    lines = text.splitlines()
    body = lines[lines.index(r"\endfoot") + 1 : lines.index(r"\end{longtable}")]
    assert [line.count(" & ") for line in body] == [2, 2]
    assert all(line.endswith(r" \tabularnewline") and line.count(r"\raggedright ") == 2 for line in body)
    assert body[1].endswith(r"\raggedright {}[a] open \tabularnewline")
    assert lines.count(r"Item & \raggedright Topic & \raggedright From the record \tabularnewline") == 2
    assert r"\noindent Source \& year.\par" in lines


@pytest.mark.parametrize(("dashes", "escaped"), [("--", "-{}-"), ("---", "-{}-{}-"), ("----", "-{}-{}-{}-")])
def test_latex_of_several_hyphens_is_not_a_dash(dashes: str, escaped: str) -> None:
    assert f"a{escaped}b" in to_latex(Table("t", "T.", ("A",), ((f"a{dashes}b",),)))


@pytest.mark.parametrize("text", ["* total", "[a] open"])
def test_latex_protects_first_cells_from_being_options_of_the_row_before(text: str) -> None:
    short = to_latex(Table("t", "T.", (text, "B"), (("a", "b"), (text, "c"))))
    assert f"\n{{}}{text} & c" in short
    assert f"\\toprule\n{{}}{text} & B" in short
    assert f"\n{{}}{text} & B & \\raggedright" in to_latex(long_table(("1", "A", LONG), (text, "B", LONG)))


def test_latex_gives_each_column_room_for_its_longest_word() -> None:
    text = to_latex(long_table(("30", "Heterogeneity-free", LONG * 20), ("30", "prefilled, to be completed", LONG)))
    narrow, wide = (float(width) for width in re.findall(r"dimexpr ([0-9.]+)", text))
    assert narrow > 0.15
    assert narrow + wide < 0.96


def test_latex_of_very_many_columns_is_divided_into_parts_with_the_same_leading_columns() -> None:
    columns = ("Run", "Rule", *(f"Metric {number}" for number in range(8)))
    text = to_latex(Table("points", "Points.", columns, (("a", LONG, *(0.5,) * 8),), "A note."))
    first, second, end = text.split(r"\end{longtable}")
    assert re.search(r"begin\{longtable\}\{lp\{\\dimexpr 0\.2\d\d\\linewidth-2\\tabcolsep\\relax\}rrrrr\}", first)
    assert r"\caption{Points (part 1 of 2).}\label{tab:points}" in first
    assert r"\caption{Points (part 2 of 2).}\label{tab:points-2}" in second
    assert "\nRun & Metric 5 & Metric 6 & Metric 7 \\tabularnewline\n" in second
    assert "A note." not in first + second
    assert "A note." in end


def test_latex_of_long_headings_breaks_them_and_not_the_numbers() -> None:
    columns = ("Run", *(f"Number of images of unknown patients {number}" for number in range(4)))
    text = to_latex(Table("t", "T.", columns, (("a", 1, 2, 3, 4),)))
    assert text.count(r"\begin{longtable}{l") == 1
    assert text.count(r"\raggedright Number of images of unknown patients 0") == 2


@pytest.mark.parametrize(("runs", "aligned"), [("ab", ["lrr"]), ("abc", ["lrr", "lr"])])
def test_latex_of_intervals_fits_a_page(runs: str, aligned: list[str]) -> None:
    interval = Interval(0.5, 0.4, 0.6, "delong", 9)
    text = to_latex(Table("t", "T.", ("Metric", *runs), (("AUROC", *(interval for _ in runs)),)))
    assert re.findall(r"begin\{(?:tabular|longtable)\}\{(\w+)\}", text) == aligned


def _renamed(table: Table, old: str, new: str) -> Table:
    def rename(cells: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(cell.replace(old, new) if isinstance(cell, str) else cell for cell in cells)

    return dataclasses.replace(table, columns=rename(table.columns), rows=tuple(map(rename, table.rows)))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not installed")
def test_latex_of_a_report_compiles_and_stays_on_the_page(three: Any, tmp_path: Path) -> None:
    comparison, folders, _ = three
    data = load_run_data(comparison, folders)
    checklist = fill_checklist("claim", comparison, [data[0], data[2]], BINARY_FACTS)  # without the name with markup
    name = comparison.runs[1].name  # it is longer than a column
    tables = [
        checklist_table(checklist),
        *(_renamed(table, name, "alexnet-adam") for table in comparison_tables(comparison, data)),
    ]
    (tmp_path / "table.tex").write_text(
        "\\documentclass[a4paper]{article}\n\\usepackage{booktabs,longtable}\n\\begin{document}\n"
        + "\n".join(map(to_latex, tables))
        + "\\end{document}\n"
    )
    command = ["pdflatex", "-halt-on-error", "-output-format=dvi", "-interaction=nonstopmode", "table.tex"]
    for _ in range(3):  # longtable measures its columns in one run and uses them in the next
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]
    log = (tmp_path / "table.log").read_text(errors="replace")
    # In points; a character has about 4, and a cell of these data has markup.
    assert [width for width in re.findall(r"Overfull \\hbox \(([0-9.]+)pt", log) if float(width) > 4] == []


def test_every_latex_table_of_a_report_with_sentences_has_widths(report: ReportFiles) -> None:
    files = {file.stem: file.read_text(encoding="utf-8") for file in report.tables if file.suffix == ".tex"}
    assert files["checklist-claim"].count("\\dimexpr") == 5
    assert files["checklist-claim"].count("tabularnewline") == 44 + 3
    for text in files.values():
        assert text.count(r"\begin{") == text.count(r"\end{")
        unescaped = re.sub(r"\\.", "", text)
        assert unescaped.count("{") == unescaped.count("}")


def test_bins_of_nearly_equal_probabilities_have_different_ranges() -> None:
    bins = reliability_bins([0.1, 0.99912, 0.99948], [False, True, True], bins=3)
    run: Any = SimpleNamespace(summary=SimpleNamespace(name="a"), evaluation=SimpleNamespace(reliability=bins))
    table = reliability_table([run])
    for text in (to_markdown(table), to_latex(table)):
        assert [f"0.{digits}" in text for digits in ("1000", "9991", "9995")] == [True] * 3
    assert "0.99912" in to_csv(table)


def test_decimals_of_bins_are_chosen_for_each_run_and_bounded() -> None:
    def table(*bins: Any) -> Table:
        runs: Any = [
            SimpleNamespace(summary=SimpleNamespace(name=name), evaluation=SimpleNamespace(reliability=each))
            for name, each in zip("ab", bins, strict=False)
        ]
        return reliability_table(runs)

    first = reliability_bins([0.1, 0.5, 0.9], [False, True, True], bins=3)
    second = reliability_bins([0.1 + 1e-9, 0.5, 0.9], [False, True, True], bins=3)
    assert table(first, second).decimals == 3
    small = table(reliability_bins([1e-9, 3e-9, 0.579], [False, True, True], bins=3))
    assert small.decimals == 6
    assert "| < 0.000001 | < 0.000001 |" in to_markdown(small)
    assert "| 0.579000 |" in to_markdown(small)
    assert "$<$ 0.000001 &" in to_latex(small)
    assert "1e-09" in to_csv(small)


def test_markdown_and_csv_keep_a_name_with_a_bar_in_one_cell() -> None:
    (line,) = (line for line in to_markdown(TABLE).splitlines() if "0.500" in line)
    assert line.count("|") == 3
    first = next(csv.DictReader(io.StringIO(to_csv(TABLE))))
    assert first["Run_1"].startswith("a|b $x$")
    assert (first["Value"], first["Value, low"], first["Value, n"]) == ("0.5", "0.25", "8")


@pytest.mark.slow
def test_same_input_gives_the_same_bytes(report: ReportFiles, three: Any, tmp_path: Path) -> None:
    again = make_report(three[0], three[1], ["claim"]).write(tmp_path)
    for one, other in zip(
        (report.page, *report.figures, *report.tables), (again.page, *again.figures, *again.tables), strict=True
    ):
        assert one.read_bytes() == other.read_bytes(), one.name


def test_unknown_checklist_is_an_error(three: Any) -> None:
    with pytest.raises(UnknownNameError, match="no checklist 'consort'"):
        make_report(three[0], three[1], ["consort"])


@pytest.mark.slow
def test_report_has_data_frames_and_figures_for_a_notebook(three: Any) -> None:
    pytest.importorskip("pandas")
    comparison, folders, _ = three
    made = make_report(comparison, folders, ["claim"])
    table = made.tables["metrics"].to_dataframe().set_index("Metric")
    for run in comparison.runs:
        assert table.loc["AUROC", run.name] == run.test["auroc"].value
    assert made.tables["checklist-claim"].to_dataframe()["Item"].tolist()[-1] == "44"
    root = ElementTree.fromstring(made.figures["roc"]._repr_svg_())
    assert root.attrib["aria-label"].startswith("ROC curves")
    assert made.figures["roc"].figure.axes[0].get_title(loc="left") == "ROC"
    assert "| AUROC |" in made.tables["metrics"]._repr_markdown_()
    # Figures with legends do not change those of the page.
    assert made.page() == make_report(comparison, folders, ["claim"]).page()


def test_checklists_state_the_flow_of_each_fold() -> None:
    flows = [
        ImageFlow("images", 0, 0, ImageCount(9, 9), {"train": ImageCount(left, left)}, ImageCount(9 - left, 9 - left))
        for left in (6, 7)
    ]
    fact = SHARED_FACTS["flow"](
        None, [SimpleNamespace(name=f"fold-{i}", evaluation=SimpleNamespace(flow=flow)) for i, flow in enumerate(flows)]
    )
    evaluated = "{0} images of {0} patients were evaluated; not evaluated: split train: {1} images, {1} patients."
    assert fact.text == " ".join(
        f"fold-{i}: Of 9 labeled images of 9 patients, {evaluated.format(9 - left, left)}"
        for i, left in ((0, 6), (1, 7))
    )
