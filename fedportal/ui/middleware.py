"""What happens around every page: the content security policy, signing in, and messages for domain errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from django.conf import settings
from django.contrib.auth.middleware import LoginRequiredMiddleware
from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponse

from fedportal.ui.errors import page_response
from fedportal.ui.navigation import way_back

CSP_HEADER = "Content-Security-Policy"


def build_policy(directives: Mapping[str, Sequence[str]]) -> str:
    """Return the header's value: ``default-src 'self'; script-src 'self' …``."""
    return "; ".join(f"{name} {' '.join(sources)}" if sources else name for name, sources in directives.items())


class ContentSecurityPolicyMiddleware:
    """Send ``settings.SECURE_CSP`` with every response. Django 6 has this built in, under the same names."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        if settings.SECURE_CSP:
            response.headers.setdefault(CSP_HEADER, build_policy(settings.SECURE_CSP))
        return response


class SignInMiddleware(LoginRequiredMiddleware):
    """Ask strangers to sign in first. After a form they return to its page: few forms' addresses answer a GET."""

    def handle_no_permission(self, request: HttpRequest, view_func: Callable) -> HttpResponse:
        if request.method == "POST":
            return redirect_to_login(way_back(request))
        return super().handle_no_permission(request, view_func)


class DomainErrorMiddleware:
    """Turn a domain error that a view raises into a message for the person (see ``ui/errors.py``)."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        return page_response(request, exception)
