"""Who may do what, on pages and in the API. 404 for an object that one may not see, 403 for a forbidden action."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from rest_framework import permissions

OPERATORS_ONLY = "Only operators of the portal may do this."
COMPOSERS_ONLY = "Only researchers and operators may compose experiments."


def require(allowed: object, message: str = "You may not do this.") -> None:
    """Raise 403 with a sentence unless ``allowed``."""
    if not allowed:
        raise PermissionDenied(message)


def _guard(question: str, message: str) -> Callable:
    def decorate(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
        @wraps(view)
        def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
            require(getattr(request.user, question, False), message)
            return view(request, *args, **kwargs)

        return guarded

    return decorate


operator_required = _guard("is_operator", OPERATORS_ONLY)
composer_required = _guard("may_compose", COMPOSERS_ONLY)


class _Guarded:
    question = ""
    message = ""

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        require(getattr(request.user, self.question, False), self.message)
        return super().dispatch(request, *args, **kwargs)


class OperatorRequiredMixin(_Guarded):
    """The view is for operators; others get 403."""

    question, message = "is_operator", OPERATORS_ONLY


class ComposerRequiredMixin(_Guarded):
    """The view is for those who may compose experiments (researchers, operators); others get 403."""

    question, message = "may_compose", COMPOSERS_ONLY


class IsOperator(permissions.BasePermission):
    message = OPERATORS_ONLY

    def has_permission(self, request: Any, view: Any) -> bool:
        return bool(getattr(request.user, "is_operator", False))


class ReadOnlyUnlessOperator(permissions.BasePermission):
    """Everybody who is signed in may read; operators may write."""

    message = OPERATORS_ONLY

    def has_permission(self, request: Any, view: Any) -> bool:
        if not request.user.is_authenticated:
            return False
        return request.method in permissions.SAFE_METHODS or request.user.is_operator
