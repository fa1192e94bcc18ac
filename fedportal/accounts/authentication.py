"""Who is asking: a person with a password, of which nobody gets to try very many, or a program with a token."""

from __future__ import annotations

import hashlib
import logging
from typing import Any

from django.contrib.auth.backends import ModelBackend
from django.core.cache import cache
from django.http import HttpRequest
from drf_spectacular.contrib.knox_auth_token import KnoxTokenScheme
from knox.auth import TokenAuthentication
from rest_framework.exceptions import AuthenticationFailed

from fedportal.accounts.models import User

logger = logging.getLogger(__name__)

PAUSE = 15 * 60
"""Seconds after the first wrong password in which so many more are looked at and no others."""
MOST_HERE, MOST_OF_ACCOUNT, MOST_OF_ADDRESS = 10, 50, 100
"""Wrong passwords for an account from one address, for an account, from one address: a hospital has one for all."""


class PatientBackend(ModelBackend):
    """Django's passwords, until too many were wrong. Then even the right one is refused, without a look at it.

    It counts in the cache: in Django's default one, each process of the portal for itself.
    """

    def authenticate(
        self, request: HttpRequest | None, username: str | None = None, password: str | None = None, **credentials: Any
    ) -> User | None:
        if is_paused(request, username):
            return None
        person = super().authenticate(request, username=username, password=password, **credentials)
        if person is None:
            _count(request, username)
        else:
            cache.delete_many(list(_limits(request, username))[:-1])  # not what the address did to other accounts
        return person


def is_paused(request: HttpRequest | None, username: str | None) -> bool:
    """Say whether nobody signs in to this account from there at the moment."""
    limits = _limits(request, username)
    return any(count >= limits[name] for name, count in cache.get_many(limits).items())


def _count(request: HttpRequest | None, username: str | None) -> None:
    for name, most in _limits(request, username).items():
        cache.add(name, 0, PAUSE)
        try:
            count = cache.incr(name)
        except ValueError:  # it has just grown old
            continue
        if count == most:
            logger.warning("%d wrong passwords, the last from %s: sign-in is paused", most, _address(request))


def _limits(request: HttpRequest | None, username: str | None) -> dict[str, int]:
    """Return counter → how far it may go; the address's own one comes last."""
    account, address = username or "", _address(request)
    return {
        _name(account, address): MOST_HERE,
        _name(account): MOST_OF_ACCOUNT,
        _name("", address): MOST_OF_ADDRESS,
    }


def _name(*parts: str) -> str:
    """Return the name of a counter: caches take no name that is long or has odd letters."""
    return "sign-in:" + hashlib.sha256("\0".join(parts).encode(errors="replace")).hexdigest()


def _address(request: HttpRequest | None) -> str:
    return request.META.get("REMOTE_ADDR", "") if request is not None else ""


class PortalTokenAuthentication(TokenAuthentication):
    """Tokens of the API. What cannot be one, as its letters show, is refused like any other wrong one."""

    def authenticate_credentials(self, token: bytes) -> tuple[User, Any]:
        if not token.isascii():
            raise AuthenticationFailed("Invalid token.")
        return super().authenticate_credentials(token)


class PortalTokenScheme(KnoxTokenScheme):
    """How the API's page tells of them."""

    target_class = PortalTokenAuthentication
