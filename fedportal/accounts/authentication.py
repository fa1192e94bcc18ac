"""Who is asking: a person with a password, with a limit on wrong ones, or a program with a token."""

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
"""Seconds, counted from the first wrong password, for which the limits below hold."""
MOST_HERE, MOST_OF_ACCOUNT, MOST_OF_ADDRESS = 10, 50, 100
"""Most wrong passwords for an account from one address, for an account, from one address (a whole hospital may share one)."""


class PatientBackend(ModelBackend):
    """Django's passwords, until too many were wrong. Then even the right one is refused, unchecked.

    Counts are kept in the database, for all processes of the portal together (docs/decisions/0106).
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
            own = list(_limits(request, username))[:-1]  # not what this address tried on other accounts
            WrongPasswords.objects.filter(name__in=own).delete()
        return person


def is_paused(request: HttpRequest | None, username: str | None) -> bool:
    """Say whether signing in to this account from this address is paused."""
    limits = _limits(request, username)
    recent = WrongPasswords.objects.filter(name__in=limits, since__gt=_forgotten())
    return any(count >= limits[name] for name, count in recent.values_list("name", "count"))


def _count(request: HttpRequest | None, username: str | None) -> None:
    limits = _limits(request, username)
    WrongPasswords.objects.filter(since__lte=_forgotten()).delete()
    WrongPasswords.objects.bulk_create([WrongPasswords(name=name) for name in limits], ignore_conflicts=True)
    for name in limits:  # one by one: two guesses at once would deadlock
        WrongPasswords.objects.filter(name=name).update(count=F("count") + 1)
    counts = dict(WrongPasswords.objects.filter(name__in=limits).values_list("name", "count"))
    for name, most in limits.items():
        if counts.get(name) == most:
            logger.warning("%d wrong passwords, the last from %s: sign-in is paused", most, _address(request))


def _forgotten() -> datetime:
    """Return the time before which counts are forgotten."""
    return timezone.now() - timedelta(seconds=PAUSE)


def _limits(request: HttpRequest | None, username: str | None) -> dict[str, int]:
    """Return each counter's name and limit; the address's own counter comes last."""
    account, address = username or "", _address(request)
    return {
        _name(account, address): MOST_HERE,
        _name(account): MOST_OF_ACCOUNT,
        _name("", address): MOST_OF_ADDRESS,
    }


def _name(*parts: str) -> str:
    """Return the name of a counter: a digest, so that it has a fixed length and does not reveal the account."""
    return hashlib.sha256("\0".join(parts).encode(errors="replace")).hexdigest()


def _address(request: HttpRequest | None) -> str:
    """Return the address a request comes from; for IPv6 its network, since one person has many addresses there."""
    text = request.META.get("REMOTE_ADDR", "") if request is not None else ""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return text
    if address.version == 4:
        return text
    return str(address.ipv4_mapped or ipaddress.ip_network((int(address) >> 64 << 64, 64)))


class PortalTokenAuthentication(TokenAuthentication):
    """API tokens. One that is not ASCII is refused like any other wrong one."""

    def authenticate_credentials(self, token: bytes) -> tuple[User, Any]:
        if not token.isascii():
            raise AuthenticationFailed("Invalid token.")
        return super().authenticate_credentials(token)


class PortalTokenScheme(KnoxTokenScheme):
    """How the OpenAPI page describes them."""

    target_class = PortalTokenAuthentication
