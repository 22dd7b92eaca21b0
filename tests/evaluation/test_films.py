import pytest

from pneumoscope.bundle.card import read_bundle, short_hash
from pneumoscope.dataset.layouts import load_manifest
from pneumoscope.errors import DatasetError, ThresholdError, UsageError
from pneumoscope.evaluation.films import (
    choose_films,
    refuse_chosen_thresholds,
    refuse_seen,
    unreadable_error,
)


def test_the_official_test_split_is_taken_as_it_is(maker):
    films = maker.films()
    maker.films(split="train", seed=1)
    root, chosen = choose_films(films, "test", None)
    assert root == films
    assert {film.split for film in chosen} == {"test"}
    assert len(chosen) == 32


def test_a_manifest_says_what_is_validation(maker):
    films = maker.films(split="train")
    manifest = films / "split.csv"
    manifest.write_text(maker.manifest(films, "validation"))
    _, chosen = choose_films(manifest, "validation", None)
    assert len(chosen) == 16
    assert len(choose_films(manifest, "train", None)[1]) == 16


def test_a_run_says_what_is_validation(maker):
    films = maker.films(split="train")
    (films / "run-manifest.csv").write_text(maker.manifest(films, "validation"))
    _, chosen = choose_films(films, "validation", films / "run-manifest.csv")
    assert [film.path for film in chosen] == [film.path for film in load_manifest(films).films[::2]]


def test_a_run_says_what_is_test_where_the_data_does_not(maker):
    films = maker.films(split="train")
    run_manifest = maker.root / "manifest.csv"
    run_manifest.write_text(maker.manifest(films, "test"))
    _, chosen = choose_films(films, "test", run_manifest)
    assert [film.path for film in chosen] == [film.path for film in load_manifest(films).films[::2]]


def test_films_of_a_run_must_be_there_with_the_same_content(maker):
    films = maker.films(split="train")
    manifest = maker.root / "manifest.csv"
    manifest.write_text(maker.manifest(films, "validation"))
    changed = films / load_manifest(films).films[2].path
    changed.write_bytes((films / load_manifest(films).films[1].path).read_bytes())
    with pytest.raises(
        DatasetError, match=rf"^1 of the 16 validation films of .* the first: train/NORMAL/{changed.name}"
    ):
        choose_films(films, "validation", manifest)


def test_films_of_a_run_are_found_wherever_its_manifest_lay(maker):
    """A manifest beside the folder says films/train/...; the folder itself says train/...."""
    films, run = maker.films(split="train"), maker.run()
    text = maker.manifest(films, "validation")
    header, columns, *rows = text.splitlines()
    (run / "manifest.csv").write_text("\n".join([header, columns, *(f"films/{row}" for row in rows)]))
    root, found = choose_films(films, "validation", run / "manifest.csv")
    assert len(found) == 16
    assert all((root / film.path).is_file() for film in found)


def test_of_two_copies_of_a_film_the_one_of_its_name_is_taken(maker):
    films, run = maker.films(split="train"), maker.run()
    (run / "manifest.csv").write_text(maker.manifest(films, "validation"))
    _, before = choose_films(films, "validation", run / "manifest.csv")
    copy = films / "train" / before[0].label / "0-copy.png"
    copy.write_bytes((films / before[0].path).read_bytes())
    assert choose_films(films, "validation", run / "manifest.csv")[1] == before


@pytest.mark.parametrize("with_run", [True, False])
def test_validation_of_a_folder_needs_a_manifest(maker, with_run):
    films = maker.films()
    with pytest.raises(UsageError, match=r"which films of .* are validation is not known"):
        choose_films(films, "validation", films / "manifest.csv" if with_run else None)


def test_an_unknown_split_is_named(maker):
    with pytest.raises(UsageError, match="there is no split 'unused' to judge"):
        choose_films(maker.films(), "unused", None)


def test_an_empty_split_shows_what_there_is(maker):
    with pytest.raises(DatasetError, match=r"no film in the split 'test' \(films: train 32\)"):
        choose_films(maker.films(split="train"), "test", None)


@pytest.mark.parametrize(("normal", "pneumonia", "missing"), [(0, 6, "NORMAL"), (6, 0, "PNEUMONIA")])
def test_one_label_is_no_evaluation(maker, normal, pneumonia, missing):
    with pytest.raises(
        DatasetError, match=f"the 6 films of the split 'test' have one label only: there is no {missing}"
    ):
        choose_films(maker.films(normal=normal, pneumonia=pneumonia), "test", None)


def test_a_film_that_cannot_be_opened_is_refused_in_its_split_only(maker):
    films = maker.films()
    maker.films(split="train", seed=1)
    train = next((films / "train" / "NORMAL").iterdir())
    train.write_bytes(b"")
    (films / "test" / "NORMAL" / "notes.txt").write_text("litter is no film")
    assert len(choose_films(films, "test", None)[1]) == 32
    test = next((films / "test" / "NORMAL").iterdir())
    test = films / "test" / "NORMAL" / "IM-0001-0002.png"
    test.write_bytes(b"")
    with pytest.raises(DatasetError, match=r"^1 test films cannot be read \(test/NORMAL/IM-0001-0002.png: empty"):
        choose_films(films, "test", None)


def test_a_manifest_whose_film_is_gone_is_refused_in_its_split_only(maker):
    films = maker.films(split="train")
    manifest = films / "split.csv"
    manifest.write_text(maker.manifest(films, "test"))
    gone = films / load_manifest(films).films[2].path
    gone.unlink()
    assert len(choose_films(manifest, "train", None)[1]) == 16
    with pytest.raises(DatasetError, match=rf"^1 test films cannot be read \(train/NORMAL/{gone.name}"):
        choose_films(manifest, "test", None)


def test_long_lists_are_cut():
    error = unreadable_error([(f"{i}.png", "empty") for i in range(8)], "test")
    assert error.message.startswith("8 test films cannot be read (0.png: empty; 1.png")
    assert error.message.endswith("4.png: empty; and 3 more)")


def card_that_saw(maker, split, films):
    return read_bundle(maker.bundle(maker.root / "b", seen={split: [short_hash(film.sha256) for film in films]}))[0]


def test_seen_films_are_refused(maker):
    films = load_manifest(maker.films()).films
    refuse_seen(films[:4], card_that_saw(maker, "train", films[4:]))
    with pytest.raises(DatasetError, match=r"^28 of 32 test films were train films of 'grey'"):
        refuse_seen(films, read_bundle(maker.root / "b")[0])


def test_a_threshold_is_not_judged_by_the_films_that_chose_it(maker):
    films = load_manifest(maker.films()).films
    card = card_that_saw(maker, "validation", films[:3])
    with pytest.raises(
        ThresholdError, match=r"^the operating point 'balanced' was chosen on 3 of these 32 films.*--points half"
    ):
        refuse_chosen_thresholds(films, card, ["half", "balanced", "rule-out"])
    refuse_chosen_thresholds(films, card, ["half"])
    refuse_chosen_thresholds(films[3:], card, ["half", "balanced", "rule-out"])
