"""The one place where errors become words: a message on a page, a problem document (RFC 9457) in the API.

There are three families. *Domain* errors subclass :class:`DomainError`; their docstring is the default message. *Store*
errors come from the object store. *Everything else* is a bug: logged with its traceback, under a reference that the
person sees.
"""

from __future__ import annotations

import logging
import secrets
from http import HTTPStatus
from typing import Any

from django.contrib import messages
from django.core.exceptions import PermissionDenied, RequestDataTooBig
from django.db import DataError
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from rest_framework import exceptions
from rest_framework.response import Response
from rest_framework.views import exception_handler

from fedportal.connectors.errors import StoreError, StoreUnreachable
from fedportal.ui.navigation import way_back

logger = logging.getLogger(__name__)

TOO_LARGE = "This is more than the portal accepts at once. Send less."
NOT_STORABLE = (
    "This contains a character that cannot be stored, or a number that is too large. Remove it and try again."
)


class DomainError(Exception):
    """This is not possible at the moment."""

    status = HTTPStatus.CONFLICT

    def __init__(self, message: str = "") -> None:
        super().__init__(message or (type(self).__doc__ or "").strip().splitlines()[0])

    @property
    def message(self) -> str:
        return str(self)


def new_reference() -> str:
    """Return six letters and digits that connect what a person saw with the line in the log."""
    return secrets.token_hex(3)


def _known(error: Exception) -> tuple[HTTPStatus, str] | None:
    """Return the status and text for an expected error; ``None`` for a bug."""
    if isinstance(error, DomainError):
        return error.status, error.message
    if isinstance(error, RequestDataTooBig):
        return HTTPStatus.REQUEST_ENTITY_TOO_LARGE, TOO_LARGE
    if isinstance(error, DataError):  # PostgreSQL refuses a NUL even in a search; SQLite just finds nothing
        logger.warning("The database does not take a value: %s", error)
        return HTTPStatus.BAD_REQUEST, NOT_STORABLE
    if isinstance(error, StoreUnreachable):
        return HTTPStatus.SERVICE_UNAVAILABLE, "The object store is not answering. Try again in a minute."
    if isinstance(error, StoreError):
        return HTTPStatus.NOT_FOUND, f"The object store cannot provide this: {error}"
    return None


def page_response(request: HttpRequest, error: Exception) -> HttpResponse | None:
    """Answer an expected error on a page, or return ``None``.

    After a POST the person returns to the page with the button and sees the message there; a GET gets an error page.
    """
    known = _known(error)
    if known is None:
        return None
    status, text = known
    if request.method in ("GET", "HEAD"):
        context = {"title": status.phrase, "text": text}
        return render(request, "errors/refused.html", context, status=status)
    messages.error(request, text)
    return redirect(way_back(request))


def problem(status: HTTPStatus, detail: str, **more: Any) -> Response:
    """Return a problem document; ``more`` are extension members such as ``errors`` or ``reference``."""
    body = {"type": "about:blank", "title": status.phrase, "status": status.value, "detail": detail, **more}
    return Response(body, status=status, content_type="application/problem+json")


def api_exception_handler(error: Exception, context: dict[str, Any]) -> Response:
    """DRF's exception handler: every API error is sent as ``application/problem+json``.

    Invalid input has ``errors``: field name → list of sentences.
    """
    known = _known(error)
    if known is not None:
        return problem(*known)
    if isinstance(error, Http404):
        error = exceptions.NotFound()
    elif isinstance(error, PermissionDenied):
        error = exceptions.PermissionDenied(str(error) or None)
    plain = exception_handler(error, context)
    if plain is None:
        reference = new_reference()
        request = context["request"]
        logger.exception("reference %s: %s %s failed", reference, request.method, request.path, exc_info=error)
        return problem(
            HTTPStatus.INTERNAL_SERVER_ERROR,
            f"Something went wrong in the portal. Give an operator this reference: {reference}.",
            reference=reference,
        )
    if isinstance(error, exceptions.ValidationError):
        response = problem(HTTPStatus.BAD_REQUEST, "Some of the input is invalid.", errors=plain.data)
    else:
        response = problem(HTTPStatus(plain.status_code), str(error.detail))
    for name in ("WWW-Authenticate", "Retry-After"):
        if name in plain.headers:
            response.headers[name] = plain.headers[name]
    return response
