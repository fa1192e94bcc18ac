"""Error pages, the theme switch, the health probe and the gallery of components."""

from __future__ import annotations

import logging

from django.conf import settings
from django.contrib.auth.decorators import login_not_required
from django.core.exceptions import RequestDataTooBig
from django.db import DatabaseError, connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST, require_safe

from fedportal.ui.errors import TOO_LARGE, new_reference
from fedportal.ui.gallery import GalleryForm, gallery_context
from fedportal.ui.navigation import way_back
from fedportal.ui.permissions import operator_required
from fedportal.ui.theme import COOKIE, THEMES

logger = logging.getLogger(__name__)


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Say that too much was sent. Anything else gets a stand-alone page: the host name itself may be the problem."""
    if not isinstance(exception, RequestDataTooBig):
        return render(None, "errors/400.html", status=400)
    context = {"title": "Too large", "text": TOO_LARGE}
    return render(request, "errors/refused.html", context, status=413)


def forbidden(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    return render(request, "errors/403.html", {"text": str(exception or "")}, status=403)


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:  # noqa: ARG001  Django logs the reason
    """Answer a form without a valid CSRF token."""
    text = "The form has expired, or your browser blocks cookies. Go back, reload the page and try again."
    return render(request, "errors/403.html", {"title": "The form was not sent", "text": text}, status=403)


def not_found(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:  # noqa: ARG001
    return render(request, "errors/404.html", status=404)


@login_not_required
def server_error(request: HttpRequest) -> HttpResponse:
    """Show a reference, on a stand-alone page: what broke may be something that the other pages need."""
    reference = new_reference()
    logger.error("reference %s: %s %s failed", reference, request.method, request.path)
    return render(None, "errors/500.html", {"reference": reference}, status=500)


@login_not_required
@never_cache
@require_safe
def healthz(request: HttpRequest) -> JsonResponse:  # noqa: ARG001
    """Say whether this web process can reach the database; 503 if it cannot."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except DatabaseError:
        logger.exception("The database does not answer the health probe")
        return JsonResponse({"status": "unavailable", "database": False, "version": settings.VERSION}, status=503)
    return JsonResponse({"status": "ok", "database": True, "version": settings.VERSION})


@login_not_required
@require_POST
def set_theme(request: HttpRequest) -> HttpResponse:
    """Remember the theme of this browser in a cookie, so that the first paint is right even without scripts."""
    theme = request.POST.get("theme", "")
    response = redirect(way_back(request))
    if theme in THEMES:
        year = 365 * 24 * 3600
        response.set_cookie(COOKIE, theme, max_age=year, samesite="Lax", secure=request.is_secure())
    return response


@operator_required
@require_safe
def gallery(request: HttpRequest) -> HttpResponse:
    """Show every component once, for people who build pages and for the screenshot tests."""
    form = GalleryForm(request.GET if request.GET else None)
    return render(request, "ui/gallery.html", {"form": form, **gallery_context()})
