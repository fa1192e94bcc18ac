"""Sites in the admin: register and change them, check them, see what the last checks found."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.utils import unquote
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import path
from django.utils.html import escape, format_html, format_html_join
from django.utils.safestring import SafeString

from fedportal.sites import services
from fedportal.sites.connection import cards, connectors
from fedportal.sites.forms import CopiesForm, SiteForm, site_form
from fedportal.sites.models import Dataset, Site, SiteCheck
from fedportal.ui.errors import DomainError
from fedportal.ui.permissions import require
from fedportal.ui.templatetags.ui import ago, badge, state_badge

CHECKS_SHOWN = 5


class _ReadOnlyInline(admin.TabularInline):
    extra = 0
    can_delete = False
    show_change_link = False

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class SiteCheckInline(_ReadOnlyInline):
    model = SiteCheck
    verbose_name_plural = "Latest checks"
    fields = ["result", "at", "what_was_found"]
    readonly_fields = fields

    def get_queryset(self, request: HttpRequest) -> QuerySet[SiteCheck]:
        site = request.resolver_match.kwargs.get("object_id")
        newest = SiteCheck.objects.filter(site=site).values("pk")[:CHECKS_SHOWN]
        return super().get_queryset(request).filter(pk__in=list(newest.values_list("pk", flat=True)))

    @admin.display
    def result(self, check: SiteCheck) -> SafeString:
        return badge("good", "Passed") if check.ok else badge("bad", "Failed")

    @admin.display
    def what_was_found(self, check: SiteCheck) -> SafeString:
        """What each step found at the site, with a remedy if it failed."""
        rows = ((step["name"], step["message"], step["remedy"]) for step in check.steps)
        return format_html_join("", "<div><strong>{}</strong> {} <em>{}</em></div>", rows)


class DatasetInline(_ReadOnlyInline):
    model = Dataset
    fields = ["name", "title", "train_cases", "validation_cases", "is_available", "seen_at"]
    readonly_fields = fields
    show_change_link = True


@admin.register(Dataset)
class DatasetAdmin(admin.ModelAdmin):
    """What a check found, read-only; operators can only say which other datasets one is a copy of."""

    form = CopiesForm
    list_display = ["name", "site", "title", "train_cases", "validation_cases", "is_available", "seen_at"]
    list_filter = ["is_available"]
    list_select_related = ["site"]
    search_fields = ["name", "title", "site__name", "site__slug"]
    fields = [
        "site", "name", "title", "train_cases", "validation_cases", "channels", "labels", "spacing", "shape", "problems",
        "seen_at", "is_available", "copy_of",
    ]  # fmt: skip
    readonly_fields = [name for name in fields if name != "copy_of"]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False  # checks find datasets

    def has_delete_permission(self, request: HttpRequest, obj: Dataset | None = None) -> bool:
        return False

    def save_related(self, request: HttpRequest, form: CopiesForm, formsets: Any, change: bool) -> None:
        form.store(by=request.user)


@admin.register(Site)
class SiteAdmin(admin.ModelAdmin):
    list_display = ["name", "slug", "city", "connector", "health_badge", "last_contact", "is_in_use"]
    list_filter = ["connector", "is_pool"]
    search_fields = ["name", "slug", "city"]
    actions = ["check_now"]
    inlines = [SiteCheckInline, DatasetInline]
    readonly_fields = ["health_badge", "last_contact_at", "check_due_at", "registered_at"]

    def kind_of(self, request: HttpRequest, site: Site | None) -> str:
        """The connector whose fields the form shows; for a new site, the one just chosen."""
        return site.connector if site else request.GET.get("connector", "")

    def get_form(self, request: HttpRequest, obj: Site | None = None, change: bool = False, **kwargs: Any) -> Any:
        return super().get_form(request, obj, change, **{**kwargs, "form": site_form(self.kind_of(request, obj))})

    def get_fieldsets(self, request: HttpRequest, obj: Site | None = None) -> Any:
        connector = connectors()[self.kind_of(request, obj)]
        typed = [field for field in connector.FIELDS if not field.issued]
        usual, advanced = ([field.name for field in typed if field.advanced is folded] for folded in (False, True))
        words = f"{connector.SUMMARY} Secrets are stored encrypted and never shown again."
        return [
            ("The hospital", {"fields": ["name", "slug", "city"]}),
            (connector.TITLE, {"fields": usual, "description": escape(words)}),
            *([("More settings", {"fields": advanced, "classes": ["collapse"]})] if advanced else []),
            ("People", {"fields": ["stewards", "contact"]}),
            *([("Status", {"fields": self.readonly_fields})] if obj else []),
        ]

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        """Ask for the connector first: the form's fields depend on it."""
        if request.GET.get("connector") not in connectors():
            require(self.has_add_permission(request))
            context = {
                **self.admin_site.each_context(request),
                "title": "How does the portal reach the site?",
                "opts": self.opts,
            }
            return render(request, "admin/sites/site/choose.html", {**context, "cards": cards()})
        return super().add_view(request, form_url, extra_context)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        site = self.get_object(request, unquote(object_id))
        if site is not None and site.connector not in connectors():
            self.message_user(
                request,
                f"This portal no longer has the connector “{site.connector}”. Choose another one.",
                messages.ERROR,
            )
            return redirect("sites:connector", site.slug)
        return super().change_view(request, object_id, form_url, extra_context)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Site]:
        return super().get_queryset(request).with_last_check()

    def has_delete_permission(self, request: HttpRequest, obj: Site | None = None) -> bool:
        return False  # sites are retired, not deleted: their history is kept

    def get_inlines(self, request: HttpRequest, obj: Site | None) -> list:
        return self.inlines if obj else []

    def save_model(self, request: HttpRequest, obj: Site, form: SiteForm, change: bool) -> None:
        obj.pk = form.store(by=request.user).pk

    def log_addition(self, *args: Any) -> None:
        """The form has already written the history, as it does for the pages and the API."""

    log_change = log_addition

    @admin.display(description="health")
    def health_badge(self, site: Site) -> SafeString:
        return state_badge(site.health)

    @admin.display(description="last contact", ordering="last_contact_at")
    def last_contact(self, site: Site) -> str:
        return ago(site.last_contact_at)

    @admin.display(description="in use", boolean=True)
    def is_in_use(self, site: Site) -> bool:
        return not site.is_retired

    @admin.action(description="Test connection", permissions=["change"])
    def check_now(self, request: HttpRequest, queryset: QuerySet[Site]) -> None:
        asked = queryset.active()
        for site in asked:
            services.request_check(site)
        self.message_user(request, f"Checks requested: {len(asked)}.", messages.SUCCESS)

    def get_urls(self) -> list:
        own = path("<path:object_id>/check/", self.admin_site.admin_view(self.check_view), name="sites_site_check")
        return [own, *super().get_urls()]

    def check_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Answer the button “Test connection” of one site."""
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        site = get_object_or_404(Site, pk=object_id)
        require(self.has_change_permission(request, site))
        try:
            services.request_check(site)
        except DomainError as refusal:
            self.message_user(request, refusal.message, messages.ERROR)
        else:
            self.message_user(request, format_html("A check of {} is requested.", site), messages.SUCCESS)
        return redirect("admin:sites_site_change", object_id)
