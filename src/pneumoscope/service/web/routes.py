"""The addresses that a person opens: worklist, viewer, report, overview, card, and signing in."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Coroutine
from typing import Any, get_args
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse
from fastapi.routing import APIRoute

from pneumoscope.bundle.card import Card
from pneumoscope.core.errors import AuthenticationError, PneumoscopeError, UsageError
from pneumoscope.core.prediction import Decision
from pneumoscope.inference.decision import threshold_probability
from pneumoscope.service.api.dependencies import Identify
from pneumoscope.service.api.problems import of_error, refused
from pneumoscope.service.auth.sessions import COOKIE, SECONDS
from pneumoscope.service.auth.tokens import LOCAL, Authenticator
from pneumoscope.service.predictions import PredictionService
from pneumoscope.service.storage.records import Filter, Order
from pneumoscope.service.web.dashboard import DECISIONS, overview
from pneumoscope.service.web.export import worklist_csv
from pneumoscope.service.web.templating import html

__all__ = ["views"]

_ROWS = 50  # images of a worklist's page
_LATEST = 10_000  # images that the overview sums up
_DATE = re.compile(r"\d{4}-\d\d-\d\d")


class _Page(APIRoute):
    """Answers errors as a page: whoever is not signed in is asked to, everybody else is told what is wrong."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See `APIRoute`."""
        handle = super().get_route_handler()

        async def told(request: Request) -> Response:
            try:
                return await handle(request)
            except AuthenticationError:
                back = request.url.path + (f"?{request.url.query}" if request.url.query else "")
                return RedirectResponse(f"/sign-in?{urlencode({'next': back})}", 303)
            except PneumoscopeError as error:
                refused(request, type(error).__name__, error.message)
                found = of_error(error)
                return html(request, "error.html", found.status_code, problem=json.loads(bytes(found.body)))

        return told


def views(service: PredictionService, most_bytes: int, identify: Identify) -> APIRouter:
    """The pages.

    Args:
        service: what they show.
        most_bytes: of an image that can be sent.
        identify: see `asking.authentication`.
    """
    router = APIRouter(route_class=_Page, include_in_schema=False)
    records, signed_in = service.records, [Depends(identify)]

    @router.get("/", dependencies=signed_in)
    def worklist(request: Request) -> Response:
        wanted, order, chosen = _asked(request)
        page = records.find(wanted, order=order, limit=_ROWS, after=request.query_params.get("after", ""))
        return html(
            request, "worklist.html", page=page, chosen=chosen, order=order, orders=_ORDERS, decisions=DECISIONS,
            most_bytes=most_bytes, model=service.model,
        )  # fmt: skip

    @router.get("/worklist.csv", dependencies=signed_in)
    def export(request: Request) -> Response:
        wanted, order, _ = _asked(request)
        lines = worklist_csv(records, wanted, order)
        name = f"pneumoscope-{datetime.datetime.now(datetime.UTC):%Y-%m-%d}.csv"
        return StreamingResponse(
            lines, media_type="text/csv", headers={"Content-Disposition": f'attachment; filename="{name}"'}
        )

    @router.get("/images/{id}", dependencies=signed_in)
    def viewer(request: Request, id: str) -> Response:
        return html(request, "viewer.html", **_image(service, id))

    @router.get("/images/{id}/report", dependencies=signed_in)
    def report(request: Request, id: str) -> Response:
        now = datetime.datetime.now(datetime.UTC).isoformat()
        return html(request, "report.html", printed=now, **_image(service, id))

    @router.get("/overview", dependencies=signed_in)
    def summary(request: Request) -> Response:
        model = service.model
        judged = records.latest(model.facts.sha256, model.operating_point_name, _LATEST)
        return html(
            request, "overview.html", found=overview(judged, model.card), model=model, most=_LATEST, decisions=DECISIONS
        )

    @router.get("/model", dependencies=signed_in)
    def model(request: Request) -> Response:
        card = service.model.card
        return html(
            request,
            "model.html",
            card=card,
            operating_point_name=service.model.operating_point_name,
            thresholds=_thresholds(card),
        )

    @router.get("/sign-in")
    def sign_in(request: Request) -> Response:
        return html(request, "sign-in.html", next=_local(request.query_params.get("next", "")), wrong=False)

    @router.post("/sign-in")
    async def signing_in(request: Request) -> Response:
        access: Authenticator = request.app.state.access
        back = _local(request.query_params.get("next", ""))  # in the address, where the language's links keep it
        try:
            async with request.form(max_files=0, max_fields=4) as form:
                token = str(form.get("token", ""))
        except UnicodeError as error:  # it names an encoding that is none
            raise UsageError("the form cannot be understood", hint="Send it from the page") from error
        try:
            who = access.who(token)
        except AuthenticationError:
            refused(request, "AuthenticationError")
            return html(request, "sign-in.html", 401, next=back, wrong=True)
        answer = RedirectResponse(back, 303)
        # Strict: no link on another site comes with it. A proxy that speaks HTTPS says so, and then it travels so alone.
        answer.set_cookie(
            COOKIE, access.sessions.begin(who), max_age=SECONDS, secure=request.url.scheme == "https", httponly=True,
            samesite="strict",
        )  # fmt: skip
        return answer

    @router.post("/sign-out")
    def sign_out(request: Request) -> Response:
        access: Authenticator = request.app.state.access
        access.sessions.end(request.cookies.get(COOKIE, ""))
        answer = RedirectResponse("/sign-in", 303)
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return answer

    return router


# As the page names them.
_ORDERS: dict[Order, str] = {
    "attention": "What needs eyes first",
    "newest": "Newest first",
    "oldest": "Oldest first",
    "highest": "Highest probability first",
    "lowest": "Lowest probability first",
}


def _asked(request: Request) -> tuple[Filter, Order, dict[str, str]]:
    """Which records a person asked for, in which order, and in which words.

    Raises:
        UsageError: a value is none that can be asked for.
    """
    given = {name: request.query_params.get(name, "") for name in ("decision", "reviewed", "since", "until", "order")}
    order = given["order"] or "attention"
    if given["decision"] not in ("", *get_args(Decision)):
        raise UsageError(f"there is no decision {given['decision'][:40]!r}", hint=f"One of {', '.join(DECISIONS)}")
    if given["reviewed"] not in ("", "yes", "no"):
        raise UsageError("reviewed is yes or no", hint="Choose it in the form")
    if order not in _ORDERS:
        raise UsageError(f"there is no order {order[:40]!r}", hint=f"One of {', '.join(_ORDERS)}")
    for name in ("since", "until"):
        if given[name] and not _DATE.fullmatch(given[name]):
            raise UsageError(f"{name} is no date", hint="Write it as 2026-01-31")
    wanted = Filter(
        decision=given["decision"] or None,  # type: ignore[arg-type]  # compared above
        reviewed={"yes": True, "no": False}.get(given["reviewed"]),
        since=given["since"] or None,
        until=given["until"] or None,
    )
    return wanted, order, given


def _image(service: PredictionService, key: str) -> dict[str, Any]:
    """What the pages of one image show.

    Raises:
        UnknownNameError: there is no such record.
    """
    record = service.records.get(key)
    same = record.prediction.model.sha256 == service.model.facts.sha256
    shown = record.image_removed is None
    return {
        "record": record,
        "reader": record.review.who if record.review and record.review.who != LOCAL else "",
        "image": record.prediction,
        "shown": shown,
        "explained": same and shown and record.prediction.decision != "rejected",
        "same_model": same,
    }


def _thresholds(card: Card) -> dict[str, float]:
    return {name: threshold_probability(card, point) for name, point in card.operating_points.items()}


def _local(address: str) -> str:
    """An address of this service alone: nobody is sent elsewhere after signing in."""
    return address if re.fullmatch(r"/(?![/\\])[\x21-\x5b\x5d-\x7e]*", address) else "/"
