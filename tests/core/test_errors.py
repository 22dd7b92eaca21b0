"""Errors: one documented tree with stable codes, messages with hints, and pickling between processes."""

import copy
import inspect
import multiprocessing
import pickle
import re

import pytest

from pneumoscope.core import errors
from pneumoscope.core.errors import (
    MissingExtraError,
    PneumoscopeError,
    TooManyRequestsError,
    UnknownNameError,
    UnreadableImageError,
)

EXAMPLES = {
    UnknownNameError: lambda: UnknownNameError("recipe", "alexnet-adm", ["vgg19-adam", "alexnet-adam"]),
    TooManyRequestsError: lambda: TooManyRequestsError("too many failed attempts", retry_seconds=4),
    errors.InvalidIdentityError: lambda: errors.InvalidIdentityError(
        "study_date is not a date", fields={"study_date": "not_a_date"}, hint="Correct it"
    ),
    errors.MulticlassBundleError: lambda: errors.MulticlassBundleError("etiology", ("bacteria", "normal", "virus")),
    MissingExtraError: lambda: MissingExtraError("train", "training", "torch"),
    errors.MulticlassBundleError: lambda: errors.MulticlassBundleError("etiology", ("bacteria", "normal", "virus")),
}


def classes():
    return [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, PneumoscopeError)]


def example(cls):
    if issubclass(cls, UnreadableImageError):
        return cls("a/image.png", "truncated", hint="Copy it again")
    return EXAMPLES[cls]() if cls in EXAMPLES else cls("image 'a' is gray", hint="Color it")


def documented_tree():
    """Return {class name: (parent name, exit status)} from the docstring; children inherit the exit status."""
    tree, branch = {}, []
    for line in errors.__doc__.splitlines():
        match = re.fullmatch(r"    ([│├└─ ]*)([A-Z]\w+Error)(?: +(\d)?.*)?", line)
        if not match:
            continue
        depth = len(match[1]) // 4
        branch[depth:] = [match[2]]
        parent = branch[depth - 1] if depth else None
        tree[match[2]] = (parent, int(match[3]) if match[3] else tree[parent][1])
    return tree


def test_docstring_tree_matches_the_classes():
    assert documented_tree() == {
        cls.__name__: (None if cls is PneumoscopeError else cls.__base__.__name__, cls.exit_status) for cls in classes()
    }
    assert len(documented_tree()) == 38


def test_every_error_is_public_and_has_one_parent():
    assert sorted(errors.__all__) == sorted(cls.__name__ for cls in classes())
    assert errors.__all__ == sorted(errors.__all__)
    assert all(len(cls.__bases__) == 1 for cls in classes())


def test_codes_are_unique_and_derived_from_class_names():
    codes = {cls: cls.code for cls in classes()}

    assert len(set(codes.values())) == len(codes)
    assert codes[PneumoscopeError] == "internal_error"
    assert codes[UnknownNameError] == UnknownNameError("recipe", "a", []).code == "unknown_name"
    assert codes[UnreadableImageError] == "unreadable_image"
    assert codes[errors.AuditLogError] == "audit_log"


@pytest.mark.parametrize("cls", classes(), ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("carry", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy])
def test_pickling_and_copying_keep_all_attributes(cls, carry):
    error = example(cls)
    error.image = "a.png"
    error.add_note("while training")

    carried = carry(error)

    assert type(carried) is cls
    assert carried.__dict__ == error.__dict__
    assert carried.__dict__.keys() >= {"message", "hint", "image", "__notes__"}
    assert (str(carried), carried.args, carried.exit_status) == (str(error), error.args, error.exit_status)


def fail():
    raise UnknownNameError("recipe", "quik", ["quick"])


def test_error_crosses_process_boundary():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        result = pool.apply_async(fail)
        with pytest.raises(UnknownNameError, match=r"^there is no recipe 'quik'\. Did you mean 'quick'\?$") as caught:
            result.get(timeout=60)
    assert (caught.value.kind, caught.value.name, caught.value.known) == ("recipe", "quik", ["quick"])


def test_text_is_message_and_hint():
    assert str(PneumoscopeError("the image is gray")) == "the image is gray"
    assert str(PneumoscopeError("the image is gray", hint="Color it")) == "the image is gray. Color it"
    assert PneumoscopeError("the image is gray", hint="Color it").args == ("the image is gray",)


def test_unknown_name_suggests_the_closest_name():
    assert UnknownNameError("class", "BACTERI", ["virus", "bacteria"]).hint == "Did you mean 'bacteria'?"
    error = UnknownNameError("network", "resnet81", iter(["vgg19", "resnet18"]), hint="List them")

    assert str(error) == "there is no network 'resnet81'. Did you mean 'resnet18'?"
    assert error.known == ["resnet18", "vgg19"]


def test_unknown_name_without_a_close_name_gives_the_hint_or_all_names():
    arguments = ("network", "zzz", ["vgg19", "alexnet"])

    assert str(UnknownNameError(*arguments)) == "there is no network 'zzz'. Known: alexnet, vgg19"
    assert str(UnknownNameError(*arguments, hint="List them")) == "there is no network 'zzz'. List them"


def test_missing_extra_states_how_to_install_it():
    error = MissingExtraError("train", "training")

    assert str(error) == "training needs the extra [train]. Install it: pip install 'pneumoscope[train]'"
    assert str(example(MissingExtraError)).startswith("training needs the extra [train] (no module 'torch').")
    assert error.extra == "train"


def test_unreadable_image_states_path_and_reason():
    error = example(UnreadableImageError)

    assert str(error) == "cannot read 'a/image.png': truncated. Copy it again"
    assert (error.path, error.detail) == ("a/image.png", "truncated")


def test_unreadable_image_error_without_a_path_does_not_mention_one() -> None:
    error = UnreadableImageError("", "truncated", hint="Copy it again")
    assert str(error) == "the file cannot be read: truncated. Copy it again"
