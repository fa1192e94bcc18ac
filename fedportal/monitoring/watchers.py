"""Who watches over a socket, by which sign-in, and whether that still holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from django.contrib.auth import HASH_SESSION_KEY
from django.contrib.sessions.models import Session
from django.utils import timezone
from django.utils.crypto import constant_time_compare

from fedportal.accounts.models import User
from fedportal.experiments.models import Experiment

SIGN_IN, GONE, TRY_AGAIN = 4401, 4404, 1011
"""Codes to close a socket with: signed out; no such experiment, or no longer for this person; the portal stumbled."""


@dataclass(frozen=True)
class Watcher:
    """A person, the session that the socket was opened with, and what the session knows of the password."""

    user_id: int
    session: str = ""
    mark: str = ""


def watcher_of(scope: Mapping[str, Any]) -> Watcher:
    """Return who opened a socket. Reads the session: call it in a thread."""
    session = scope.get("session")
    if session is None:
        return Watcher(scope["user"].pk)
    return Watcher(scope["user"].pk, session.session_key or "", session.get(HASH_SESSION_KEY, ""))


def refused(experiment_id: int, watchers: Iterable[Watcher]) -> dict[Watcher, int]:
    """Return who may no longer watch an experiment: watcher → code to close with."""
    watchers = set(watchers)
    people = User.objects.in_bulk({watcher.user_id for watcher in watchers})
    seeing = {pk for pk, person in people.items() if person.is_active and _sees(person, experiment_id)}
    keys = {watcher.session for watcher in watchers} - {""}
    alive = Session.objects.filter(session_key__in=keys, expire_date__gt=timezone.now()) if keys else ()
    sessions = {session.session_key for session in alive}
    codes = {}
    for watcher in watchers:
        if watcher.user_id not in seeing:
            codes[watcher] = GONE
        elif watcher.session and not (watcher.session in sessions and _holds(watcher, people[watcher.user_id])):
            codes[watcher] = SIGN_IN
    return codes


def _sees(person: User, experiment_id: int) -> bool:
    return Experiment.objects.visible_to(person).filter(pk=experiment_id).exists()


def _holds(watcher: Watcher, person: User) -> bool:
    """Whether the password is still that of the sign-in, as Django asks for every page."""
    return constant_time_compare(watcher.mark, person.get_session_auth_hash())
