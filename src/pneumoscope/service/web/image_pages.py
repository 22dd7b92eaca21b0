"""Pages for one image: the viewer, the forms for age and identity, and the report."""

from __future__ import annotations

import datetime
import functools
import math

from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse

from pneumoscope.core.errors import ConflictError, InvalidIdentityError, StorageError, UsageError
from pneumoscope.core.identity import IDENTITY_FIELDS, Identity, age_at_study
from pneumoscope.core.identity_check import check_entered
from pneumoscope.core.prediction import MAX_AGE
from pneumoscope.service.api.dependencies import AppAccessLog, AppService, AppSettings, User
from pneumoscope.service.api.exception_handlers import record_error
from pneumoscope.service.api.uploads import read_identity, wait_for_disconnect
from pneumoscope.service.predictions import depends_on_entered_age
from pneumoscope.service.time_zone import today
from pneumoscope.service.web.changes import AppChanges
from pneumoscope.service.web.page_route import html_router, read_form
from pneumoscope.service.web.templating import render, request_language, url_with_query
from pneumoscope.service.web.viewer import IdentityForm, identity_tag, image_context, shown_state, viewer_page

__all__ = ["image_page_router"]

image_page_router = html_router("reader")


@image_page_router.get("/images/{id}")
def viewer(
    request: Request, service: AppService, settings: AppSettings, access_log: AppAccessLog, changes: AppChanges, user: User,
    id: str,
) -> Response:  # fmt: skip
    """Return the viewer of an image."""
    revision = changes.revision  # before reading the image, so that no change is missed
    page = viewer_page(request, service, settings, user, id, revision)
    access_log.viewed(user, [id])
    return page


@image_page_router.get("/images/{id}/state")
def image_state(service: AppService, settings: AppSettings, user: User, id: str) -> dict[str, str]:
    """Return a hash with which an open viewer detects changes by others. This is not logged as a view."""
    return {"state": shown_state(image_context(service, settings, user, id))}


@image_page_router.post("/images/{id}")
async def enter_age(request: Request, service: AppService, user: User, id: str) -> Response:
    """Predict the image again with the age in the form, and redirect to the new prediction."""
    age = _parse_age((await read_form(request)).get("age", ""))
    prediction = await service.predict_again(id, user, functools.partial(wait_for_disconnect, request), age=age)
    return RedirectResponse(f"/images/{prediction.id}", 303)


@image_page_router.post("/images/{id}/identity")
async def set_identity(
    request: Request, service: AppService, settings: AppSettings, changes: AppChanges, user: User, id: str
) -> Response:
    """Replace the patient and study of an image by those in the form, and redirect to its prediction.

    If the dates in the form determine the patient's age and the prediction has none, the image is predicted again. If
    the form cannot be saved, the viewer shows the error and the form as filled in.
    """
    fields = await read_form(request, max_fields=len(IDENTITY_FIELDS) + 1)
    tag = fields.pop("tag", "")
    revision = changes.revision
    stored = await run_in_threadpool(service.repository.get, id)
    try:
        entered = read_identity(fields.items()) or Identity()
        check_entered(entered, stored.identity_before(entered), today=today(settings.time_zone))
        if tag and tag != identity_tag(stored):
            raise ConflictError("patient or study were changed in the meantime", hint="Compare both, and save again")
        stored = await run_in_threadpool(service.set_identity, id, entered, user=user, etags=[stored.etag])
    except (InvalidIdentityError, UsageError, ConflictError, StorageError) as error:
        record_error(request, error.code, error.message)
        form = IdentityForm(fields, error)
        return await run_in_threadpool(viewer_page, request, service, settings, user, id, revision, form)
    disconnected = functools.partial(wait_for_disconnect, request)
    if again := await service.predict_without_entered_age(id, user, disconnected):
        return RedirectResponse(f"/images/{again.id}#main", 303)
    age = age_at_study(entered)
    may_change = stored.age is None and stored.image_removed is None and depends_on_entered_age(stored)
    if may_change and age is not None and 0 <= age <= MAX_AGE:
        stored = await service.predict_again(id, user, disconnected, age=age)
    # The top of the page shows the new patient; without a fragment, browsers would keep that of the form.
    return RedirectResponse(f"/images/{stored.id}#main", 303)


@image_page_router.get("/images/{id}/identity")
def identity_form(request: Request, id: str) -> Response:
    """Redirect to the viewer. After an unsaved form, this URL is in the language link and in the redirect after signing in."""
    return RedirectResponse(url_with_query(f"/images/{id}", **request.query_params), 303)


@image_page_router.get("/images/{id}/report")
def report(
    request: Request, service: AppService, settings: AppSettings, access_log: AppAccessLog, user: User, id: str
) -> Response:
    """Return the printable report of an image; redirect to the viewer if its prediction is still hidden."""
    context = image_context(service, settings, user, id)
    if context["blinded"]:
        return RedirectResponse(f"/images/{id}", 303)
    access_log.viewed(user, [id])
    now = datetime.datetime.now(datetime.UTC).isoformat()
    notice = service.notice(request_language(request), context["prediction"])
    return render(request, "report.html", printed=now, notice=notice, **context)


def _parse_age(text: str) -> float:
    """Return an age in years.

    Raises:
        UsageError: The text is not a number of years from 0 to 130.
    """
    try:
        age = float(text)
    except ValueError:
        age = math.nan
    if not 0 <= age <= MAX_AGE:
        raise UsageError(f"the age is not a number of years from 0 to {MAX_AGE}", hint="Go back, and enter it again")
    return age
