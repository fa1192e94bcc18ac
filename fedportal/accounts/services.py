"""What people do with their account: API tokens."""

from __future__ import annotations

from datetime import timedelta

from knox.models import AuthToken

from fedportal.accounts.models import User
from fedportal.ui.errors import DomainError

MAX_TOKENS = 10


class TooManyTokens(DomainError):
    """You have ten API tokens already. Delete one that you no longer need."""


def create_token(user: User, *, days: int) -> tuple[AuthToken, str]:
    """Create an API token and return it with its secret text, which nobody can read again.

    ``days`` is its lifetime, 0 = until deleted. Raises :class:`TooManyTokens`.
    """
    if user.auth_token_set.count() >= MAX_TOKENS:
        raise TooManyTokens
    return AuthToken.objects.create(user, expiry=timedelta(days=days) if days else None)


def delete_token(user: User, *, token_key: str) -> bool:
    """Delete the person's token that begins with ``token_key``; say whether there was one."""
    deleted, _ = user.auth_token_set.filter(token_key=token_key).delete()
    return bool(deleted)
