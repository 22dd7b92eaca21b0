"""Files of predictions: columns and values, with errors that name the mistake."""

import hashlib

import pytest

from pneumoscope.core.errors import DatasetError, LayoutError, UnknownNameError, UsageError
from pneumoscope.data.predictions_file import (
    PredictionColumns,
    PredictionRow,
    check_sums,
    has_class_columns,
    read_class_predictions_file,
    read_predictions_file,
)

DEFAULT = PredictionColumns()


@pytest.fixture
def write(tmp_path):
    def write(text, encoding="utf-8"):
        file = tmp_path / "scores.csv"
        file.write_bytes(text.encode(encoding))
        return file

    return write


def test_probabilities_are_read_with_their_lines(write):
    file = write("path,probability\na.png,0.25\n\nb.png,1\n")
    predictions = read_predictions_file(file, DEFAULT)
    assert predictions.rows == (PredictionRow(2, "a.png", (0.25,), ""), PredictionRow(4, "b.png", (1.0,), ""))
    assert (predictions.scale, predictions.id_column) == ("probability", "")
    assert predictions.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_identifiers_and_logits_are_the_second_choice(write):
    predictions = read_predictions_file(write("id,logit\nx,-12.5\n"), DEFAULT)
    assert (predictions.scale, predictions.id_column, predictions.rows[0].value) == ("logit", "id", -12.5)


def test_columns_are_mapped_by_name(write):
    columns = PredictionColumns(path="Image Index", logit="Pneumonia", split="fold")
    predictions = read_predictions_file(write("Pneumonia,fold,Image Index\n2,val,a.png\n3,TEST,b.png\n"), columns)
    assert [(row.image, row.value, row.split) for row in predictions.rows] == [
        ("a.png", 2, "validation"),
        ("b.png", 3, "test"),
    ]
    assert predictions.scale == "logit"


def test_byte_order_mark_and_windows_line_ends_are_read(write):
    predictions = read_predictions_file(write("path,probability\r\na.png,0.5\r\n", "utf-8-sig"), DEFAULT)
    assert predictions.rows[0].image == "a.png"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "scores.csv is empty"),
        ("\n \n", "scores.csv is empty"),
        ("path,probability\n", "has a header and no rows"),
        ("path;probability\na.png;0,5\n", "is separated by semicolons, not by commas. Save it with commas"),
        ("path\tprobability\na.png\t0.5\n", "is separated by tabs"),
        ("# TorchXRayVision 1.2\npath,probability\na.png,0.5\n", r"line 1 is a comment \(1 such line\)"),
        ("path,probability\n# half\n#x\na.png,0.5\n", r"line 2 is a comment \(2 such lines\)"),
        ("path,path,probability\na,a,0.5\n", "has two columns 'path'"),
        ("path,probability\na.png,0.5,0.6\n", "line 2 has 3 values; the header has 2 columns"),
        ('path,probability\n"a.png,0.5\n', "line 2: unexpected end of data"),
        (
            "name,probability\na,0.5\n",
            r"no column 'path' or 'id' \(its columns: name, probability\). If 'name' .*--path-column 'name'",
        ),
        ("image_id,probability\na,0.5\n", "If 'image_id' is meant, give --id-column 'image_id'"),
        ("x,probability\na,0.5\n", "Name a column with --path-column or --id-column"),
        ("path,Pneumonia\na,0.5\n", "If 'Pneumonia' is meant, give --probability-column 'Pneumonia'"),
        ("path,raw_logit\na,0.5\n", "If 'raw_logit' is meant, give --logit-column 'raw_logit'"),
    ],
)
def test_other_layouts_are_errors(write, text, message):
    with pytest.raises(LayoutError, match=message):
        read_predictions_file(write(text), DEFAULT)


def test_other_encodings_and_missing_files_are_errors(write, tmp_path):
    with pytest.raises(LayoutError, match="is not UTF-8 text"):
        read_predictions_file(write("path,probability\n", "utf-16"), DEFAULT)
    with pytest.raises(LayoutError, match=r"cannot read .*none.csv': No such file"):
        read_predictions_file(tmp_path / "none.csv", DEFAULT)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["nan", "0.5"], r"line 2: 'nan' is not a finite number in the column 'probability' \(1 of 2 rows\)"),
        (["0.5", "inf"], "line 3: 'inf' is not a finite number"),
        (["", ""], r"line 2: there is no value in the column 'probability' \(2 of 2 rows\)"),
        (["0.5", "high"], "line 3: 'high' is not a finite number"),
        (["0.5", "1_0"], "line 3: '1_0' is not a finite number"),
        (['"0,5"', "1"], r"'0,5' is not a finite number.*Use a point in decimal numbers"),
        (
            ["0.5", "-3.25"],
            r"line 3: -3.25 .* is not a probability, 0 to 1 \(1 of 2 rows\).*--logit-column 'probability'",
        ),
        (
            ["NORMAL", "PNEUMONIA"],
            "the column 'probability' holds labels or other text, such as 'NORMAL', and no numbers. Name the column with",
        ),
        (["97", "3.5"], "line 2: 97 .*Divide percentages by 100"),
    ],
)
def test_values_other_than_probabilities_are_errors(write, values, message):
    with pytest.raises(DatasetError, match=message):
        read_predictions_file(
            write("path,probability\n" + "".join(f"{i},{v}\n" for i, v in enumerate(values))), DEFAULT
        )


def test_empty_names_and_unknown_splits_are_errors(write):
    with pytest.raises(DatasetError, match="line 3: there is no value in the column 'path'"):
        read_predictions_file(write("path,probability\na,0.5\n ,0.5\n"), DEFAULT)
    with pytest.raises(DatasetError, match=r"line 2: the split is 'tset'"):
        read_predictions_file(write("path,probability,s\na,0.5,tset\n"), PredictionColumns(split="s"))


def test_columns_that_exclude_each_other_or_are_missing_are_errors(write):
    file = write("path,probability,logit\na,0.5,0\n")
    with pytest.raises(UsageError, match="has both columns probability and logit"):
        read_predictions_file(file, DEFAULT)
    assert read_predictions_file(file, PredictionColumns(logit="logit")).scale == "logit"
    with pytest.raises(UsageError, match="both --probability-column and --logit-column"):
        read_predictions_file(file, PredictionColumns(probability="probability", logit="logit"))
    with pytest.raises(UnknownNameError, match=r"scores.csv has no column 'probabilty'. Did you mean 'probability'"):
        read_predictions_file(file, PredictionColumns(probability="probabilty"))


# --- several classes -------------------------------------------------------------------------------------------------


def test_columns_of_several_classes_are_read_in_the_order_of_the_classes(write):
    file = write("path,probability_virus,probability_10,probability_9\na.png,0.5,0.2,0.3\n")
    predictions = read_class_predictions_file(file, DEFAULT)
    assert predictions.classes == ("virus", "9", "10")
    assert predictions.rows == (PredictionRow(2, "a.png", (0.5, 0.3, 0.2), ""),)
    ordered = read_class_predictions_file(file, DEFAULT, ("10", "virus", "9"))
    assert (ordered.classes, ordered.rows[0].values) == (("10", "virus", "9"), (0.2, 0.5, 0.3))


def test_of_two_labels_the_column_of_pneumonia_is_suggested(write):
    with pytest.raises(LayoutError, match="give --probability-column 'probability_PNEUMONIA'"):
        read_predictions_file(write("path,probability_NORMAL,probability_PNEUMONIA\nx,0.5,0.5\n"), DEFAULT)


def test_the_column_of_a_single_class_is_reported_as_such(write):
    file = write("path,P(bac),P(vir)\na.png,0.5,0.5\n")
    with pytest.raises(UsageError, match=r"'bacteria=P\(bac\)' names the column of one class only"):
        read_predictions_file(file, PredictionColumns(probability="bacteria=P(bac)"))
    odd = read_predictions_file(write("path,p=\na.png,0.5\n"), PredictionColumns(probability="p="))
    assert odd.rows[0].values == (0.5,)


def test_columns_of_several_classes_can_be_named(write):
    file = write("image,P(bac),P(vir),probability\na.png,-3,700,5\n")
    columns = PredictionColumns(path="image", logit={"virus": "P(vir)", "bacteria": "P(bac)"})
    predictions = read_class_predictions_file(file, columns)
    assert (predictions.classes, predictions.scale) == (("bacteria", "virus"), "logit")
    assert predictions.rows[0].values == (-3, 700)
    assert has_class_columns(file, columns)


@pytest.mark.parametrize(
    ("text", "several"),
    [
        ("path,probability_a,probability_b\nx,0.5,0.5\n", True),
        ("path,logit_a,logit_b\nx,0.5,0.5\n", True),
        ("path,probability,probability_a,probability_b\nx,0.5,0.5,0.5\n", False),
        ("path,probability_a\nx,0.5\n", False),
        ("path,probability_Normal,probability_Pneumonia\nx,0.5,0.5\n", False),
        ("path,probability\nx,0.5\n", False),
        ("path;probability_a;probability_b\n", False),
    ],
)
def test_files_of_several_classes_are_recognized_by_their_columns(write, text, several):
    assert has_class_columns(write(text), DEFAULT) is several


@pytest.mark.parametrize(
    ("text", "columns", "error", "message"),
    [
        ("probability_a,probability_b\n0.5,0.4\n", {}, LayoutError, "no column 'path' or 'id'"),
        ("path,a,b\nx,0.5,0.5\n", {}, LayoutError, "no columns of several classes, named probability_CLASS or"),
        ("path,a,b\nx,0.5,1.2\n", {"probability": {"a": "a", "b": "b"}}, DatasetError, "line 2: 1.2 in the column 'b'"),
        ("path,a,b\nx,0.5,\n", {"logit": {"a": "a", "b": "b"}}, DatasetError, "there is no value in the column 'b'"),
        ("path,a,b\nx,1,1\n", {"logit": {"a": "a", "b": "a"}}, UsageError, "not those of two or more classes"),
        ("path,a,b\nx,1,1\n", {"logit": {"a": "a"}}, UsageError, "not those of two or more classes"),
        ("path,a,b\nx,1,1\n", {"logit": {"a": "a", "b": "B"}}, UnknownNameError, "no column 'B'"),
        ("path,a,b\nx,1,1\n", {"logit": "a"}, UsageError, "the column 'a' is given for several classes"),
        (
            "path,probability_a,probability_b,logit_a,logit_b\nx,0.5,0.5,0,0\n",
            {},
            UsageError,
            "both probabilities and logits",
        ),
    ],
)
def test_files_of_several_classes_that_cannot_be_used(write, text, columns, error, message):
    with pytest.raises(error, match=message):
        read_class_predictions_file(write(text), PredictionColumns(**columns))


def test_probabilities_of_several_classes_may_be_rounded(write):
    predictions = read_class_predictions_file(write("path,probability_a,probability_b\nx,0.33,0.66\n"), DEFAULT)
    assert predictions.rows[0].values == (0.33, 0.66)
    check_sums(predictions, "c")


def test_sums_of_probabilities_are_checked(write):
    predictions = read_class_predictions_file(write("path,probability_a,probability_b\nx,0.5,0.4\n"), DEFAULT)
    with pytest.raises(DatasetError, match=r"line 2: the probabilities of the classes a, b sum to 0.9, not to 1"):
        check_sums(predictions)
    with pytest.raises(
        DatasetError, match=r"no column 'probability_c' for .* 'c' \(columns of classes: probability_a, probability_b\)"
    ):
        check_sums(predictions, "c")
    check_sums(read_class_predictions_file(write("path,logit_a,logit_b\nx,0.5,0.4\n"), DEFAULT), "c")


def test_two_labels_are_in_upper_case_as_in_the_data(write):
    file = write("path,n,p\nx,0.4,0.6\n")
    columns = PredictionColumns(probability={"pneumonia": "p", "Normal": "n"})
    for order in ((), ("NORMAL", "PNEUMONIA"), ("normal", "pneumonia")):
        predictions = read_class_predictions_file(file, columns, order)
        assert (predictions.classes, predictions.rows[0].values) == (("NORMAL", "PNEUMONIA"), (0.4, 0.6))


def test_missing_column_of_a_known_class_is_named(write):
    file = write("path,p_a,p_b\nx,0.5,0.4\n")
    columns = PredictionColumns(probability={"a": "p_a", "b": "p_b"})
    with pytest.raises(
        DatasetError, match=r"'probability_c' for the class 'c' \(columns of classes: p_a, p_b\)"
    ) as error:
        read_class_predictions_file(file, columns, ("a", "b", "c"))
    assert "name the column of each class with --probability-column CLASS=COLUMN" in error.value.hint
    with pytest.raises(LayoutError, match="named probability_a or logit_a"):
        read_class_predictions_file(file, DEFAULT, ("a", "b", "c"))


@pytest.mark.parametrize("scale", ["logit", "probability"])
def test_two_columns_of_one_class_are_refused(write, scale):
    file = write(f"path,{scale}_normal,{scale}_Virus,{scale}_virus\na.png,0.5,0.1,0.4\n")
    message = rf"has 2 columns for the class 'virus': '{scale}_Virus', '{scale}_virus'"
    with pytest.raises(DatasetError, match=message):
        read_class_predictions_file(file, PredictionColumns(), ("virus", "normal"))


def test_other_classes_than_expected_are_refused(write):
    file = write("path,probability_a,probability_b\nx,0.5,0.5\n")
    with pytest.raises(DatasetError, match="predictions for the classes a, b; expected a, c"):
        read_class_predictions_file(file, DEFAULT, ("a", "c"))


def test_columns_of_several_classes_are_refused_for_two_labels(write):
    with pytest.raises(UsageError, match="columns of several classes are given"):
        read_predictions_file(write("path,a,b\nx,1,1\n"), PredictionColumns(logit={"a": "a", "b": "b"}))
