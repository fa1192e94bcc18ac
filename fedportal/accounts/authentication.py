"""Who is asking: a person with a password, of which nobody gets to try very many, or a program with a token."""

from __future__ import annotations

import hashlib
import ipaddress
import logging
from datetime import datetime, timedelta
from typing import Any

from django.contrib.auth.backends import ModelBackend
from django.db.models import F
from django.http import HttpRequest
from django.utils import timezone
from drf_spectacular.contrib.knox_auth_token import KnoxTokenScheme
from knox.auth import TokenAuthentication
from rest_framework.exceptions import AuthenticationFailed

from fedportal.accounts.models import User, WrongPasswords

logger = logging.getLogger(__name__)

PAUSE = 15 * 60
"""Seconds after the first wrong password in which so many more are looked at and no others."""
MOST_HERE, MOST_OF_ACCOUNT, MOST_OF_ADDRESS = 10, 50, 100
"""Wrong passwords for an account from one address, for an account, from one address: a hospital has one for all."""


class PatientBackend(ModelBackend):
    """Django's passwords, until too many were wrong. Then even the right one is refused, without a look at it.

    It counts in the database, for all processes of the portal together (docs/decisions/0106).
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
            own = list(_limits(request, username))[:-1]  # not what the address did to other accounts
            WrongPasswords.objects.filter(name__in=own).delete()
        return person


def is_paused(request: HttpRequest | None, username: str | None) -> bool:
    """Say whether nobody signs in to this account from there at the moment."""
    limits = _limits(request, username)
    recent = WrongPasswords.objects.filter(name__in=limits, since__gt=_forgotten())
    return any(count >= limits[name] for name, count in recent.values_list("name", "count"))


def _count(request: HttpRequest | None, username: str | None) -> None:
    limits = _limits(request, username)
    WrongPasswords.objects.filter(since__lte=_forgotten()).delete()
    WrongPasswords.objects.bulk_create([WrongPasswords(name=name) for name in limits], ignore_conflicts=True)
    for name in limits:  # one by one: two guesses at once would lock each other's rows
        WrongPasswords.objects.filter(name=name).update(count=F("count") + 1)
    counts = dict(WrongPasswords.objects.filter(name__in=limits).values_list("name", "count"))
    for name, most in limits.items():
        if counts.get(name) == most:
            logger.warning("%d wrong passwords, the last from %s: sign-in is paused", most, _address(request))


def _forgotten() -> datetime:
    """Return the time before which whatever began is over."""
    return timezone.now() - timedelta(seconds=PAUSE)


def _limits(request: HttpRequest | None, username: str | None) -> dict[str, int]:
    """Return counter → how far it may go; the address's own one comes last."""
    account, address = username or "", _address(request)
    return {
        _name(account, address): MOST_HERE,
        _name(account): MOST_OF_ACCOUNT,
        _name("", address): MOST_OF_ADDRESS,
    }


def _name(*parts: str) -> str:
    """Return the name of a counter: of one length, and nobody reads from it who was guessed at."""
    return hashlib.sha256("\0".join(parts).encode(errors="replace")).hexdigest()


def _address(request: HttpRequest | None) -> str:
    """Return where a request comes from; of IPv6 the network, since everybody there has addresses without end."""
    text = request.META.get("REMOTE_ADDR", "") if request is not None else ""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return text
    if address.version == 4:
        return text
    return str(address.ipv4_mapped or ipaddress.ip_network((int(address) >> 64 << 64, 64)))


class PortalTokenAuthentication(TokenAuthentication):
    """Tokens of the API. What cannot be one, as its letters show, is refused like any other wrong one."""

    def authenticate_credentials(self, token: bytes) -> tuple[User, Any]:
        if not token.isascii():
            raise AuthenticationFailed("Invalid token.")
        return super().authenticate_credentials(token)


class PortalTokenScheme(KnoxTokenScheme):
    """How the API's page tells of them."""

    target_class = PortalTokenAuthentication
