"""Polling sites and their jobs in the admin, read-only: what the portal has heard from a site."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.http import HttpRequest

from fedportal.relay.models import RemoteInstance, RemoteJob


class _ReadOnly(admin.ModelAdmin):
    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(RemoteInstance)
class RemoteInstanceAdmin(_ReadOnly):
    list_display = ["site", "heard_at", "dialect", "automatic_update", "automatic_workflow_execution", "clock_skew"]
    list_select_related = ["site"]
    exclude = ["token_digest", "advert_sha256", "allowed_datasets", "allowed_dags"]


@admin.register(RemoteJob)
class RemoteJobAdmin(_ReadOnly):
    list_display = ["run", "site", "dag_id", "state", "created_at", "delivered_at", "heard_at", "ended_at"]
    list_filter = ["state", "is_check"]
    list_select_related = ["site"]
    search_fields = ["run", "remote_run_id", "site__slug", "site__name"]
    exclude = ["conf"]
