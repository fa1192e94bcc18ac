"""Sign the portal in at sites by a code that a person confirms there (OAuth 2.0 device authorization, RFC 8628)."""

from __future__ import annotations

import logging
import threading
import time
from datetime import timedelta

from django.db import close_old_connections, connection
from django.utils import timezone

from fedportal.connectors.errors import SiteError, SiteMisbehaved, SiteRefused, SiteUnreachable
from fedportal.connectors.http import why_refused
from fedportal.connectors.oidc import DeviceLogin, Token
from fedportal.orchestrator.sitework import Tools
from fedportal.orchestrator.snapshot import site_view
from fedportal.sites import services
from fedportal.sites.models import SignIn, SignInState

logger = logging.getLogger(__name__)

LONGEST = 1800.0
"""Seconds that a person has at most, whatever the site says."""
LEAST_PAUSE = 1.0


def sign_in_due(tools: Tools) -> list[threading.Thread]:
    """Begin the sign-ins that were asked for, each in a thread of its own; return the threads."""
    threads = []
    for row in SignIn.objects.filter(state=SignInState.ASKED).select_related("site"):
        taken = SignIn.objects.filter(pk=row.pk, asked_at=row.asked_at, state=SignInState.ASKED)
        if taken.update(state=SignInState.WAITING):  # of several orchestrators one makes it
            thread = threading.Thread(
                target=_in_thread, args=(row, tools), name=f"sign-in {row.site.slug}", daemon=True
            )
            thread.start()
            threads.append(thread)
    return threads


def _in_thread(row: SignIn, tools: Tools) -> None:
    close_old_connections()
    try:
        sign_in(row, tools)
    except Exception:  # one site's sign-in must not end the others'
        logger.exception("the sign-in at %s broke off", row.site.slug)
    finally:
        connection.close()


def sign_in(row: SignIn, tools: Tools) -> None:
    """Show the site's code and wait for the person; the connector keeps the token (``SiteContext.keep``)."""
    mine = SignIn.objects.filter(pk=row.pk, asked_at=row.asked_at)  # a later one takes the row over
    try:
        connector = tools.connector(site_view(row.site))
        login: DeviceLogin = connector.start_device_login()  # type: ignore[attr-defined]
        if reason := why_refused(login.address):
            raise SiteMisbehaved(f"The site sends people to an odd place: {reason}", remedy="Compare the versions.")
        patience = min(login.expires_in, LONGEST)
        end = time.monotonic() + patience
        until = timezone.now() + timedelta(seconds=patience)
        mine.update(address=login.address[:500], user_code=login.user_code[:40], expires_at=until)
        pause = login.interval
        while True:
            time.sleep(max(pause, LEAST_PAUSE))
            if not mine.exists():
                return
            try:
                answer = connector.poll_device_login(login)  # type: ignore[attr-defined]
            except SiteUnreachable:
                answer = pause  # a person may just be typing the code in
            if isinstance(answer, Token):
                break
            if time.monotonic() > end:
                raise SiteRefused("The code has run out before it was confirmed.", remedy="Start the sign-in again.")
            pause = max(pause, float(answer))  # once asked to slow down, it stays slow
    except (SiteError, ValueError, AttributeError) as error:
        remedy = getattr(error, "remedy", "")
        mine.update(state=SignInState.FAILED, message=str(error), remedy=remedy, address="", user_code="")
        return
    mine.update(state=SignInState.DONE, address="", user_code="")
    row.site.refresh_from_db()
    if not row.site.is_retired:
        services.request_check(row.site)
