"""The operators' view of experiments: to look, and to hand one over. States move by the pages and the API alone."""

from __future__ import annotations

import json
from typing import Any

from django import forms
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString

from fedportal.accounts.models import User
from fedportal.experiments import services
from fedportal.experiments.models import Experiment, Participation, Round, SiteRun
from fedportal.ui.forms import RowsField
from fedportal.ui.templatetags.ui import state_badge


class ReadOnlyInline(admin.TabularInline):
    extra = 0
    can_delete = False
    show_change_link = True

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return self.fields

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class ParticipationInline(ReadOnlyInline):
    model = Participation
    fields = ["site", "dataset"]
    show_change_link = False

    def get_queryset(self, request: HttpRequest) -> QuerySet[Participation]:
        return super().get_queryset(request).select_related("site", "dataset__site", "experiment")


class RoundInline(ReadOnlyInline):
    model = Round
    fields = ["number", "kind", "state", "started_at", "ended_at", "reason"]


class SiteRunInline(ReadOnlyInline):
    model = SiteRun
    fields = ["site", "state", "attempt", "train_cases", "weight", "reason"]
    show_change_link = False

    def get_queryset(self, request: HttpRequest) -> QuerySet[SiteRun]:
        return super().get_queryset(request).select_related("participation__site", "round__experiment")

    @admin.display
    def site(self, run: SiteRun) -> str:
        return str(run.participation.site)


class ReadOnlyAdmin(admin.ModelAdmin):
    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class PeopleForm(forms.ModelForm):
    """Who an experiment belongs to and with whom it is shared. (The admin's fields with a search break on nonsense.)"""

    class Meta:
        field_classes = {"viewers": RowsField}

    def clean_owner(self) -> User:
        owner = self.cleaned_data["owner"]
        if owner != self.instance.owner and not owner.may_compose:
            raise ValidationError("Only researchers and operators can own an experiment. Choose one of them.")
        return owner


@admin.register(Experiment)
class ExperimentAdmin(admin.ModelAdmin):
    list_display = ["title", "key", "kind", "owner", "status", "site_count", "created_at"]
    list_filter = ["kind", "state"]
    list_select_related = ["owner"]
    search_fields = [
        "title", "key", "question", "owner__username", "participations__site__slug", "participations__site__name",
    ]  # fmt: skip
    search_help_text = "Title, key, question, owner, or a site that takes part."
    date_hierarchy = "created_at"
    fieldsets = [
        (None, {"fields": ["title", "question", "owner", "viewers"]}),
        ("State", {"fields": ["key", "state", "reason", "created_at", "started_at", "ended_at", "cloned_from"]}),
        ("Family", {"fields": ["kind", "head", "beside", "turn", "baselines", "repeats", "compare_every"]}),
        ("Engine", {"fields": ["version", "claimed_by", "lease_until", "due_at", "stumbles"], "classes": ["collapse"]}),
        (
            "Plan",
            {
                "fields": [
                    "rounds_planned", "strategy", "strategy_options", "weighting", "min_sites", "deadline_minutes",
                    "stragglers", "grace_minutes", "max_attempts", "max_relative_norm", "recipe",
                ]
            },
        ),
    ]  # fmt: skip
    inlines = [ParticipationInline, RoundInline]
    form = PeopleForm

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        # a family has the people of its first experiment
        of_people = ("owner", "viewers") if obj is None or obj.is_head else ()
        return [name for _, options in self.fieldsets for name in options["fields"] if name not in of_people]

    def save_model(self, request: HttpRequest, obj: Experiment, form: forms.ModelForm, change: bool) -> None:
        """Hand over by the service, which tells the journal and the rest of the family."""
        if "owner" in form.changed_data:
            services.hand_over(experiment=Experiment.objects.get(pk=obj.pk), to=obj.owner, by=request.user)

    def save_related(self, request: HttpRequest, form: forms.ModelForm, formsets: Any, change: bool) -> None:
        for formset in formsets:
            self.save_formset(request, form, formset, change)  # nothing: read-only, but the admin's log asks for it
        before, after = (set(values.get("viewers", ())) for values in (form.initial, form.cleaned_data))
        experiment = Experiment.objects.get(pk=form.instance.pk)
        for user in after - before:
            services.share(experiment=experiment, user=user, by=request.user)
        for user in before - after:
            services.unshare(experiment=experiment, user=user, by=request.user)

    def delete_model(self, request: HttpRequest, obj: Experiment) -> None:
        services.delete_draft(experiment=obj)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Experiment]:
        return super().get_queryset(request).with_progress()

    @admin.display(description="State", ordering="state")
    def status(self, experiment: Experiment) -> SafeString:
        return state_badge(experiment.status)

    @admin.display(description="Sites")
    def site_count(self, experiment: Experiment) -> int:
        return experiment.site_count

    @admin.display(description="Recipe")
    def recipe(self, experiment: Experiment) -> SafeString:
        return format_html("<pre>{}</pre>", json.dumps(experiment.plan, indent=2, ensure_ascii=False))

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False  # an experiment begins as a draft of the composer

    def has_delete_permission(self, request: HttpRequest, obj: Experiment | None = None) -> bool:
        return super().has_delete_permission(request, obj) and obj is not None and obj.is_draft


@admin.register(Round)
class RoundAdmin(ReadOnlyAdmin):
    list_display = ["experiment", "number", "kind", "state", "started_at", "ended_at"]
    list_filter = ["state", "kind"]
    list_select_related = ["experiment"]
    search_fields = ["experiment__title", "experiment__key"]
    inlines = [SiteRunInline]
