"""Who may see small numbers of cases, and what everybody else sees.

A few cases can be enough to recognise a person. Counts below ``settings.FEDPORTAL_SMALL_COUNT`` are therefore shown only
to operators and to the site's own stewards; everybody else sees “fewer than 5”, on pages and in the API alike. A sum is
shown only if all its parts are, so that no part can be worked out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from django.conf import settings

from fedportal.accounts.models import User
from fedportal.sites.models import Dataset


@dataclass(frozen=True)
class Count:
    """A number of cases as one person sees it: ``value``, or that it is smaller than ``fewer_than``."""

    value: int | None
    fewer_than: int | None = None

    def __str__(self) -> str:
        return f"fewer than {self.fewer_than}" if self.value is None else str(self.value)


@dataclass(frozen=True)
class CaseCounts:
    train: Count
    validation: Count
    total: Count


def sees_small_counts(user: Any, site_id: int) -> bool:
    """Say whether a person sees every count of a site. Queries the database once per person, not once per site."""
    if not isinstance(user, User):
        return False
    if user.is_operator:
        return True
    return site_id in _stewarded(user)


def sees_small_counts_at(user: Any, slug: str) -> bool:
    """Say the same for a site given by its short name, as in metrics."""
    return isinstance(user, User) and (user.is_operator or slug in _stewarded(user).values())


def _stewarded(user: User) -> dict[int, str]:
    if not hasattr(user, "_stewarded"):
        user._stewarded = dict(user.sites.values_list("pk", "slug"))
    return user._stewarded


def count_for(user: Any, site_id: int, number: int) -> Count:
    least = settings.FEDPORTAL_SMALL_COUNT
    return Count(number) if number >= least or sees_small_counts(user, site_id) else Count(None, least)


def told_cases(user: Any, slug: str, number: int | None) -> int | None:
    """Return how many cases were used at a site; ``None`` if that is withheld. 0 means that none were counted yet.

    Without a slug the number is a sum over sites: only operators see it, since some part may be small.
    """
    is_large = bool(slug) and number is not None and number >= settings.FEDPORTAL_SMALL_COUNT
    is_told = not number or is_large or sees_small_counts_at(user, slug)
    return number if is_told else None


def total_of(counts: Iterable[Count]) -> Count:
    """Add up counts. With a withheld one, the sum is “fewer than” its largest possible value plus one."""
    parts = list(counts)
    most = sum((count.fewer_than or 1) - 1 if count.value is None else count.value for count in parts)
    return Count(most) if all(count.value is not None for count in parts) else Count(None, most + 1)


def case_counts(dataset: Dataset, user: Any) -> CaseCounts:
    """Return how many cases a dataset has, as far as this person may know."""
    train = count_for(user, dataset.site_id, dataset.train_cases)
    validation = count_for(user, dataset.site_id, dataset.validation_cases)
    return CaseCounts(train, validation, total_of((train, validation)))
