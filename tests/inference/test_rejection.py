"""Beyond each limit there is a reason in words; at the limit there is none."""

import pytest
from msgspec import structs
from pneumoscope.inference.rejection import refusal, refusal_of_age, sort_of_refusal
from tests.conftest import LIMITS

from pneumoscope.bundle.card import INPUT_CLASSES, read_bundle


@pytest.fixture(scope="module")
def card(shared_maker):
    return read_bundle(shared_maker.bundle(shared_maker.root / "refuse", rejection_limits=LIMITS))[0]


def input_classes(image, **others):
    row = (
        dict.fromkeys(INPUT_CLASSES, 0.0)
        | {"image": image}
        | {name.replace("_", " "): share for name, share in others.items()}
    )
    return list(row.values())


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (input_classes(0.2, inverted=0.5, cropped=0.3), "black and white seem to be exchanged"),
        (input_classes(0.2, upside_down=0.8), "it seems to be upside down"),
        (input_classes(0.2, on_its_side=0.8), "it seems to lie on its side"),
        (input_classes(0.2, flip_averaging=0.8), "left and right seem to be exchanged"),
        (input_classes(0.29, cropped=0.25, other=0.24), "too little of the chest is on it"),
        (input_classes(0, other=1), "it does not look like a radiograph of a chest"),
    ],
)
def test_the_likeliest_other_kind_is_the_reason(card, row, words):
    assert refusal(card, row, 1.0) == words


def test_at_the_limits_nothing_is_refused(card):
    assert refusal(card, input_classes(0.3, flip_averaging=0.7), 1.9) == ""
    assert refusal(card, input_classes(0.3, flip_averaging=0.7), 1.9001).startswith("unlike the images")
    assert refusal(card, input_classes(0.2999, flip_averaging=0.7), 1.9) != ""


def test_a_image_too_far_away_is_told_how_far(card):
    assert "(distance 3.25, at most 1.90 is known)" in refusal(card, input_classes(1), 3.25)


def test_what_a_bundle_does_not_give_refuses_nothing(card):
    assert refusal(card, None, None) == ""
    assert refusal(structs.replace(card, rejection_limits=None), input_classes(0), 99.0) == ""


def test_refusals_of_one_sort_are_counted_together(card):
    near, far = (refusal(card, input_classes(1), distance) for distance in (2.0, 3.25))
    assert near != far
    assert sort_of_refusal(near) == sort_of_refusal(far) == "unlike the images that the model was trained on"
    assert sort_of_refusal("the file is empty (0 bytes)") == "the file is empty"
    assert sort_of_refusal("it seems to be upside down") == "it seems to be upside down"


@pytest.mark.parametrize(
    ("age", "rejected"), [(None, False), (0.9, True), (1, False), (5.99, False), (6, True), (67, True)]
)
def test_a_image_of_another_age_is_refused_where_the_ages_are_known(card, age, refused):
    known = structs.replace(card, age_range=(1, 5))
    reason = refusal_of_age(known, age)
    assert bool(reason) == refused
    assert refusal_of_age(card, age) == ""
    if refused:
        assert sort_of_refusal(reason) == "of another age than the patients that the model learned from"
        assert f"{age:.1f} years" in reason


def test_what_is_no_number_is_refused(card):
    assert refusal(card, input_classes(float("nan")), 1.0)
    assert refusal(card, input_classes(0.9), float("nan"))
