"""The site checks that are due, made beside the rounds so that neither delays the other."""

from __future__ import annotations

import logging
import threading
import time

from django.db import close_old_connections, connection
from django.utils import timezone

from fedportal.connectors.base import CheckReport, CheckStep
from fedportal.connectors.checking import watcher
from fedportal.connectors.errors import SiteError
from fedportal.experiments.models import Experiment
from fedportal.experiments.states import ExperimentState, RoundState
from fedportal.orchestrator.reading import site_view
from fedportal.orchestrator.sitework import Tools
from fedportal.sites import services
from fedportal.sites.models import CHECK_WITHIN, Site, SiteCheck

logger = logging.getLogger(__name__)

AT_ONCE = 4


def check_due(tools: Tools) -> list[threading.Thread]:
    """Start the checks that are due, a few at a time, each in a thread of its own; return the threads."""
    threads = []
    room = AT_ONCE - sum(thread.name.startswith("check ") for thread in threading.enumerate())
    due = Site.objects.active().filter(check_due_at__lte=timezone.now()).order_by("check_due_at")
    for site in due[: max(0, room)]:
        if _claim(site):
            thread = threading.Thread(
                target=_check_in_thread, args=(site, tools), name=f"check {site.slug}", daemon=True
            )
            thread.start()
            threads.append(thread)
    return threads


def _claim(site: Site) -> bool:
    """Take a check by compare-and-set: of several orchestrators one makes it."""
    now = timezone.now()
    later = now + CHECK_WITHIN
    unclaimed = Site.objects.filter(pk=site.pk, check_due_at=site.check_due_at)
    taken = unclaimed.update(check_due_at=later, checking_since=now)
    site.check_due_at = later
    return bool(taken)


def _check_in_thread(site: Site, tools: Tools) -> None:
    close_old_connections()
    try:
        check(site, tools)
    except Exception:  # one site's check must not end the others'
        logger.exception("the check of %s broke off", site.slug)
    finally:
        connection.close()


def check(site: Site, tools: Tools) -> SiteCheck:
    """Check a site now and store what was found; wake the experiments that wait for it when it is well."""
    begun = time.monotonic()
    watched = watcher.set(lambda steps: services.tell_progress(site, steps))
    try:
        report = tools.connector(site_view(site)).check()
    except (SiteError, ValueError) as error:
        # A connector puts failures into its report; what it cannot even begin with is a step of its own.
        step = CheckStep("connection", False, str(error), getattr(error, "remedy", ""), time.monotonic() - begun)
        report = CheckReport(steps=(step,))
    finally:
        watcher.reset(watched)
    booked = services.record_check(site, report)
    if booked.ok:
        waiting = Experiment.objects.filter(
            state=ExperimentState.RUNNING, participations__site=site, rounds__state=RoundState.PENDING
        )
        for experiment in waiting.distinct():
            experiment.wake()
    return booked
