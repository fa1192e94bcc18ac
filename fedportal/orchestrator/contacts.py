"""Who was reached: what the breakers of the sites know, booked for the pages. The calls themselves touch no rows."""

from __future__ import annotations

from datetime import timedelta

from django.db import transaction
from django.utils import timezone

from fedportal.orchestrator.sitework import Tools
from fedportal.sites import services


def book_contacts(tools: Tools) -> None:
    """Store what is new about reaching the sites."""
    news = tools.contacts()
    if not news:
        return
    now = timezone.now()
    with transaction.atomic():
        for slug, contact in news.items():
            reached_at = None if contact.reached is None else now - timedelta(seconds=contact.reached)
            trouble = None
            if contact.silent is not None:
                trouble = services.Trouble(
                    since=now - timedelta(seconds=contact.silent),
                    reason=contact.reason,
                    next_try_at=now + timedelta(seconds=contact.next_try),
                )
            services.record_contact(slug, reached_at=reached_at, trouble=trouble)
