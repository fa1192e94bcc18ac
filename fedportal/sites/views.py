"""The sites' pages. None of them contacts a hospital: they show what the orchestrator found."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from django.apps import apps
from django.contrib import messages
from django.db.models import Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_variables
from django.views.decorators.http import require_POST
from django.views.generic import CreateView, DetailView, ListView, TemplateView, UpdateView

from fedportal.accounts.models import User
from fedportal.sites import services
from fedportal.sites.connection import cards, connector_of, connectors, described, issued, needs_key, needs_sign_in
from fedportal.sites.forms import CopiesForm, SiteForm, site_form
from fedportal.sites.models import CHECKERS_ONLY, Dataset, SignIn, Site
from fedportal.ui.permissions import OperatorRequiredMixin, operator_required, require

CHECKS_SHOWN = 30
EXPERIMENTS_SHOWN = 20
UNTAKEN = timedelta(seconds=20)
"""After this time without an orchestrator starting a requested check, the page asks whether one is running."""


def experiments_at(site: Site, user: User) -> QuerySet:
    """The experiments that this person may see and the site takes part in, itself or in a baseline; newest first.

    The room of experiments lies above this one, so its model is looked up by name and not imported.
    """
    experiments = apps.get_model("experiments", "Experiment").objects
    of_them, of_theirs = Q(participations__site=site), Q(members__participations__site=site)
    return experiments.listed_for(user).filter(of_them | of_theirs).select_related("owner").distinct()


class SiteList(ListView):
    def get_queryset(self) -> QuerySet[Site]:
        return Site.objects.hospitals().with_last_check().with_counts()

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        retired = (
            Site.objects.exclude(retired_at=None).filter(is_pool=False) if self.request.user.sees_everything else None
        )
        return super().get_context_data(retired=retired, **kwargs)


class SiteDetail(DetailView):
    model = Site

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        site, user = self.object, self.request.user
        checks = list(site.checks.all()[:CHECKS_SHOWN])
        return super().get_context_data(
            check=checks[0] if checks else None,
            checks=checks,
            is_untaken=site.check_is_pending and timezone.now() - site.check_due_at > UNTAKEN,
            datasets=site.datasets.order_by("-is_available", "name").prefetch_related("copy_of__site"),
            experiments=experiments_at(site, user)[:EXPERIMENTS_SHOWN],
            may_check=not site.is_retired and site.can_be_checked_by(user),
            stewards=site.stewards.all(),
            **(self._for_operators(site) if user.is_operator else {}),
            **kwargs,
        )

    def _for_operators(self, site: Site) -> dict[str, Any]:
        connector = connector_of(site)
        return {
            "connection": described(site),
            "needs_key": needs_key(site),
            "handout": connector.HANDOUT if connector else "",
            "is_issued": bool(issued(site.connector)),
            "needs_sign_in": needs_sign_in(site),
            "is_signed_in": "refresh_token" in site.secrets,
            "sign_in": SignIn.objects.filter(site=site).first(),
            "last_act": services.acts(site).first(),
        }


class SiteChoose(OperatorRequiredMixin, TemplateView):
    """The first step of a registration: how the portal will reach the site."""

    template_name = "sites/site_choose.html"

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        slug = self.kwargs.get("slug")
        site = get_object_or_404(Site, slug=slug) if slug else None
        return super().get_context_data(site=site, cards=cards(), **kwargs)


class _SiteFormView(OperatorRequiredMixin):
    model = Site
    template_name = "sites/site_form.html"
    done = ""

    def kind(self) -> str:
        raise NotImplementedError

    def get_form_class(self) -> type[SiteForm]:
        kind = self.kind()
        if kind not in connectors():
            raise Http404(f"This portal has no connector {kind!r}.")
        return site_form(kind)

    def form_valid(self, form: SiteForm) -> HttpResponse:
        site = form.store(by=self.request.user)
        messages.success(self.request, self.done.format(site))
        return redirect("sites:detail", slug=site.slug)


class SiteCreate(_SiteFormView, CreateView):
    done = "{} is registered. Its first check starts in a moment."

    def kind(self) -> str:
        return self.kwargs["kind"]


class SiteUpdate(_SiteFormView, UpdateView):
    """Change a site; ``?connector=`` switches it to another connector."""

    done = "{} is saved."

    def kind(self) -> str:
        return self.request.GET.get("connector", self.object.connector)


class DatasetCopies(OperatorRequiredMixin, UpdateView):
    """Say which datasets of other sites one holds every case of."""

    form_class = CopiesForm
    template_name = "sites/dataset_form.html"

    def get_object(self, queryset: Any = None) -> Dataset:
        found = Dataset.objects.select_related("site")
        return get_object_or_404(found, site__slug=self.kwargs["slug"], name=self.kwargs["name"])

    def form_valid(self, form: CopiesForm) -> HttpResponse:
        dataset = form.store(by=self.request.user)
        messages.success(self.request, f"{dataset.name} is saved.")
        return redirect("sites:detail", slug=dataset.site.slug)


@require_POST
def request_check(request: HttpRequest, slug: str) -> HttpResponse:
    site = get_object_or_404(Site, slug=slug)
    require(site.can_be_checked_by(request.user), CHECKERS_ONLY)
    services.request_check(site)
    return redirect("sites:detail", slug=slug)


@never_cache
@sensitive_variables("key")
@operator_required
def show_key(request: HttpRequest, slug: str) -> HttpResponse:
    """Show the site's key in this response only; who viewed it is recorded."""
    site = get_object_or_404(Site, slug=slug)
    if request.method != "POST":  # somebody returns to this response
        return redirect("sites:detail", slug=slug)
    key = services.show_key(site, by=request.user)
    return render(request, "sites/site_key.html", {"site": site, "key": key})


@never_cache
@sensitive_variables("definition")
@operator_required
def show_handout(request: HttpRequest, slug: str) -> HttpResponse:
    """Show what people paste at the site in this response only; who viewed it is recorded."""
    site = get_object_or_404(Site, slug=slug)
    if request.method != "POST":  # somebody returns to this response
        return redirect("sites:detail", slug=slug)
    definition = json.dumps(services.hand_out(site, by=request.user), indent=2)
    words = connectors()[site.connector].HANDOUT
    return render(request, "sites/site_handout.html", {"site": site, "definition": definition, "words": words})


@require_POST
@operator_required
def sign_in(request: HttpRequest, slug: str) -> HttpResponse:
    services.request_sign_in(get_object_or_404(Site, slug=slug), by=request.user)
    return redirect("sites:detail", slug=slug)


@require_POST
@operator_required
def reissue(request: HttpRequest, slug: str) -> HttpResponse:
    site = get_object_or_404(Site, slug=slug)
    services.reissue(site, by=request.user)
    messages.success(
        request, f"{site} has new credentials. Send the new definition to the hospital: the old one no longer works."
    )
    return redirect("sites:detail", slug=slug)


@require_POST
@operator_required
def retire(request: HttpRequest, slug: str) -> HttpResponse:
    site = get_object_or_404(Site, slug=slug)
    services.retire(site, by=request.user)
    messages.success(request, f"{site} is retired. Its history is kept.")
    return redirect("sites:detail", slug=slug)


@require_POST
@operator_required
def reinstate(request: HttpRequest, slug: str) -> HttpResponse:
    site = get_object_or_404(Site, slug=slug)
    services.reinstate(site, by=request.user)
    messages.success(request, f"{site} is back in use. A check starts in a moment.")
    return redirect("sites:detail", slug=slug)
