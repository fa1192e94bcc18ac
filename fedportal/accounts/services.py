"""What people do with their own account (API tokens), and what operators do with accounts."""

from __future__ import annotations

from datetime import timedelta
from http import HTTPStatus
from typing import Any

from django.db import transaction
from knox.models import AuthToken

from fedportal.accounts.models import Role, User
from fedportal.ui.errors import DomainError

MAX_TOKENS = 10


class TooManyTokens(DomainError):
    """You already have ten API tokens. Delete one that you no longer need."""


class OwnAccount(DomainError):
    """You cannot close your own account or give up your own operator role. Ask another operator."""


class AboveYou(DomainError):
    """Only a superuser may change the account of a superuser."""

    status = HTTPStatus.FORBIDDEN


@transaction.atomic
def create_token(user: User, *, days: int) -> tuple[AuthToken, str]:
    """Create an API token and return it with its secret, which cannot be read again.

    ``days`` is its lifetime; 0 means until it is deleted. Raises :class:`TooManyTokens`.
    """
    User.objects.select_for_update().get(pk=user.pk)  # so that two at once are counted one after the other
    if user.auth_token_set.count() >= MAX_TOKENS:
        raise TooManyTokens
    return AuthToken.objects.create(user, expiry=timedelta(days=days) if days else None)


def delete_token(user: User, *, token_key: str) -> bool:
    """Delete the person's token that begins with ``token_key``; return whether there was one."""
    deleted, _ = user.auth_token_set.filter(token_key=token_key).delete()
    return bool(deleted)


def create_user(*, password: str | None = None, **fields: Any) -> User:
    """Create a person. Without a ``password``, nobody can sign in to the account until one is set."""
    person = User(**fields)
    person.set_password(password)
    person.save()
    return person


def change_user(person: User, *, by: User, password: str | None = None, **fields: Any) -> None:
    """Change a person's fields and password. Raises :class:`AboveYou` or :class:`OwnAccount`."""
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
