"""Pages of the sites. None of them talks to a hospital: they show what the orchestrator found."""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.contrib import messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.views.decorators.http import require_POST
from django.views.generic import CreateView, DetailView, ListView, UpdateView

from fedportal.accounts.models import User
from fedportal.sites import services
from fedportal.sites.forms import SiteForm
from fedportal.sites.models import CHECKERS_ONLY, Site
from fedportal.ui.permissions import OperatorRequiredMixin, operator_required, require

CHECKS_SHOWN = 20
EXPERIMENTS_SHOWN = 20
SETTING_NAMES = {"data_root": "Data folder", "work_dir": "Work folder", "threads": "Threads"}


def experiments_at(site: Site, user: User) -> QuerySet:
    """The experiments that this person may see and that the site takes part in, newest first.

    The room of experiments lies above this one, so its model is asked for by name and not imported.
    """
    experiments = apps.get_model("experiments", "Experiment").objects
    return experiments.visible_to(user).filter(participations__site=site).select_related("owner")


class SiteList(ListView):
    def get_queryset(self) -> QuerySet[Site]:
        return Site.objects.active().with_last_check().with_counts()

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        retired = Site.objects.exclude(retired_at=None) if self.request.user.sees_everything else None
        return super().get_context_data(retired=retired, **kwargs)


class SiteDetail(DetailView):
    model = Site

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        site, user = self.object, self.request.user
        return super().get_context_data(
            check=site.last_check,
            checks=site.checks.all()[:CHECKS_SHOWN],
            datasets=site.datasets.order_by("-is_available", "name"),
            experiments=experiments_at(site, user)[:EXPERIMENTS_SHOWN],
            may_check=not site.is_retired and site.can_be_checked_by(user),
            stewards=site.stewards.all(),
            connection=[(SETTING_NAMES.get(name, name), value) for name, value in site.config.items()],
            **kwargs,
        )


class _SiteFormView(OperatorRequiredMixin):
    model = Site
    form_class = SiteForm
    template_name = "sites/site_form.html"
    done = ""

    def form_valid(self, form: SiteForm) -> HttpResponse:
        site = form.store()
        messages.success(self.request, self.done.format(site))
        return redirect("sites:detail", slug=site.slug)


class SiteCreate(_SiteFormView, CreateView):
    done = "{} is registered. The first check is requested."


class SiteUpdate(_SiteFormView, UpdateView):
    done = "{} is saved. A check of the new settings is requested."


@require_POST
def request_check(request: HttpRequest, slug: str) -> HttpResponse:
    site = get_object_or_404(Site, slug=slug)
    require(site.can_be_checked_by(request.user), CHECKERS_ONLY)
    services.request_check(site)
    messages.success(request, f"A check of {site} is requested. It takes a few seconds; reload the page to see it.")
    return redirect("sites:detail", slug=slug)


@require_POST
@operator_required
def retire(request: HttpRequest, slug: str) -> HttpResponse:
    site = get_object_or_404(Site, slug=slug)
    services.retire(site)
    messages.success(request, f"{site} is retired. Its history stays.")
    return redirect("sites:detail", slug=slug)


@require_POST
@operator_required
def reinstate(request: HttpRequest, slug: str) -> HttpResponse:
    site = get_object_or_404(Site, slug=slug)
    services.reinstate(site)
    messages.success(request, f"{site} is back in use. A check is requested.")
    return redirect("sites:detail", slug=slug)
