"""The tree of errors is what its docstring draws, and an error keeps what it says on the way between processes."""

import copy
import inspect
import multiprocessing
import pickle
import re

import pytest

from pneumoscope.core import errors
from pneumoscope.core.errors import MissingExtraError, PneumoscopeError, UnknownNameError, UnreadableImageError

SPECIAL = {
    UnknownNameError: lambda: UnknownNameError("recipe", "alexnet-adm", ["vgg19-adam", "alexnet-adam"]),
    MissingExtraError: lambda: MissingExtraError("train", "training", "torch"),
    UnreadableImageError: lambda: UnreadableImageError("a/image.png", "cut short", hint="Copy it again"),
}


def classes():
    return [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, PneumoscopeError)]


def drawn():
    """{class name: (parent name, exit status)} as the docstring draws them; a status is inherited where none stands."""
    found, branch = {}, []
    for line in errors.__doc__.splitlines():
        match = re.fullmatch(r"    ([│├└─ ]*)([A-Z]\w+Error)(?: +(\d)?.*)?", line)
        if not match:
            continue
        depth = len(match[1]) // 4
        branch[depth:] = [match[2]]
        parent = branch[depth - 1] if depth else None
        found[match[2]] = (parent, int(match[3]) if match[3] else found[parent][1])
    return found


def test_the_tree_in_the_docstring_is_the_real_one():
    assert drawn() == {
        kind.__name__: (None if kind is PneumoscopeError else kind.__base__.__name__, kind.exit_status)
        for kind in classes()
    }
    assert len(drawn()) == 26


def test_every_error_is_public_and_has_one_parent():
    assert sorted(errors.__all__) == sorted(kind.__name__ for kind in classes())
    assert errors.__all__ == sorted(errors.__all__)
    assert all(len(kind.__bases__) == 1 for kind in classes())


def made(kind):
    return SPECIAL[kind]() if kind in SPECIAL else kind("image 'a' is grey", hint="Colour it")


@pytest.mark.parametrize("kind", classes(), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("carry", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy])
def test_an_error_survives_with_all_it_carries(kind, carry):
    error = made(kind)
    error.image = "a.png"
    error.add_note("while training")

    there = carry(error)

    assert type(there) is kind
    assert there.__dict__ == error.__dict__
    assert there.__dict__.keys() >= {"message", "hint", "image", "__notes__"}
    assert (str(there), there.args, there.exit_status) == (str(error), error.args, error.exit_status)


def fail():
    raise UnknownNameError("recipe", "quik", ["quick"])


def test_an_error_comes_out_of_another_process_as_it_was():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply_async(fail)
        with pytest.raises(UnknownNameError, match=r"^there is no recipe 'quik'\. Did you mean 'quick'\?$") as caught:
            found.get(timeout=60)
    assert (caught.value.kind, caught.value.name, caught.value.known) == ("recipe", "quik", ["quick"])


def test_the_text_is_the_message_and_the_advice_where_there_is_one():
    assert str(PneumoscopeError("the image is grey")) == "the image is grey"
    assert str(PneumoscopeError("the image is grey", hint="Colour it")) == "the image is grey. Colour it"
    assert PneumoscopeError("the image is grey", hint="Colour it").args == ("the image is grey",)


def test_an_unknown_name_suggests_the_nearest():
    error = UnknownNameError("network", "resnet81", iter(["vgg19", "resnet18"]), hint="List them")

    assert str(error) == "there is no network 'resnet81'. Did you mean 'resnet18'?"
    assert error.known == ["resnet18", "vgg19"]


def test_an_unknown_name_with_nothing_near_gives_the_advice_or_lists_all():
    far = ("network", "zzz", ["vgg19", "alexnet"])

    assert str(UnknownNameError(*far)) == "there is no network 'zzz'. Known: alexnet, vgg19"
    assert str(UnknownNameError(*far, hint="List them")) == "there is no network 'zzz'. List them"


def test_a_missing_extra_names_it_and_how_to_install_it():
    error = MissingExtraError("train", "training")

    assert str(error) == "training needs the extra [train]. Install it: pip install 'pneumoscope[train]'"
    assert str(made(MissingExtraError)).startswith("training needs the extra [train] (no module 'torch').")
    assert error.extra == "train"


def test_an_unreadable_image_names_the_file_and_the_reason():
    error = made(UnreadableImageError)

    assert str(error) == "cannot read 'a/image.png': cut short. Copy it again"
    assert (error.path, error.why) == ("a/image.png", "cut short")
