"""What people do with their account: API tokens. And what operators do with people."""

from __future__ import annotations

from datetime import timedelta
from http import HTTPStatus
from typing import Any

from knox.models import AuthToken

from fedportal.accounts.models import Role, User
from fedportal.ui.errors import DomainError

MAX_TOKENS = 10


class TooManyTokens(DomainError):
    """You have ten API tokens already. Delete one that you no longer need."""


class OwnAccount(DomainError):
    """You cannot close your own account or stop being an operator yourself. Ask another operator."""


class AboveYou(DomainError):
    """Only a superuser may change the account of a superuser."""

    status = HTTPStatus.FORBIDDEN


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


def create_user(*, password: str | None = None, **fields: Any) -> User:
    """Create a person. Without ``password`` nobody can sign in with the account until one is set."""
    person = User(**fields)
    person.set_password(password)
    person.save()
    return person


def change_user(person: User, *, by: User, password: str | None = None, **fields: Any) -> None:
    """Change fields and password of a person. Raises :class:`AboveYou` or :class:`OwnAccount`."""
    if person.is_superuser and not by.is_superuser:
        raise AboveYou
    stops = fields.get("role", person.role) != Role.OPERATOR and person.role == Role.OPERATOR
    if person == by and (stops or not fields.get("is_active", True)):
        raise OwnAccount
    for name, value in fields.items():
        setattr(person, name, value)
    if password is not None:
        person.set_password(password)
    person.save(update_fields=[*fields, *(["password"] if password is not None else [])])
