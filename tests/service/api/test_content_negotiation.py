"""The media type of a response is chosen as RFC 9110 describes, for every interface of the service."""

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request

from pneumoscope.service.api.content_negotiation import accepted_ranges, choose

PNG, JPEG = "image/png", "image/jpeg"


def chosen(*accept):
    headers = [(b"accept", each.encode()) for each in accept]
    return choose(accepted_ranges(Request({"type": "http", "headers": headers})), [PNG, JPEG])


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ([], PNG),
        ([""], PNG),
        (["*/*"], PNG),
        (["image/*"], PNG),
        (["IMAGE/JPEG"], JPEG),
        (["image/jpeg, image/png"], JPEG),  # equally good: in the client's order
        (["image/jpeg;q=0.5, image/png"], PNG),
        (["image/png;q=0.2, */*;q=0.1, image/jpeg;q=0.3"], JPEG),
        (["image/png;q=0, */*"], JPEG),  # the most specific range decides
        (["*/*;q=0, image/jpeg;q=0.1"], JPEG),
        (["text/html", "image/jpeg"], JPEG),  # two headers
        (['text/html;title="a, image/png", image/jpeg'], JPEG),  # a comma in quotes
        (["image/jpeg;q=unclear"], JPEG),
    ],
)
def test_preferred_type_is_chosen(accept, expected):
    assert chosen(*accept) == expected


@pytest.mark.parametrize(
    "accept", ["text/html", "image/png;q=0, image/jpeg;q=0.0", "image/*;q=0, text/html", "image/gif, ;;"]
)
def test_unacceptable_types_are_answered_with_406_and_the_available_types(accept):
    with pytest.raises(HTTPException, match="image/png or image/jpeg") as caught:
        chosen(accept)
    assert caught.value.status_code == 406


def test_parameters_are_read_without_quotes_and_quality():
    request = Request({"type": "http", "headers": [(b"accept", b'multipart/related; Type="a/b"; q=0.5;x=1')]})
    (found,) = accepted_ranges(request)
    assert (found.name, found.parameters, found.quality) == ("multipart/related", {"type": "a/b", "x": "1"}, 0.5)
