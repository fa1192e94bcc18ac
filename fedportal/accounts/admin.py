"""Who may open the admin, how they sign in to it, and the accounts in it: stock forms plus the role."""

from typing import Any

from django.contrib import admin
from django.contrib.auth.admin import UserAdmin as StockUserAdmin
from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.forms import UserCreationForm
from django.contrib.auth.models import Group
from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from knox.models import AuthToken

from fedportal.accounts.models import User
from fedportal.ui.permissions import OPERATORS_ONLY, require

admin.site.unregister(Group)  # roles say what people may do; groups would be a second way
admin.site.unregister(AuthToken)  # knox's own admin creates tokens for others and shows digests
admin.site.site_header = "fedportal"
admin.site.site_title = "fedportal"
admin.site.index_title = "Administration"


def is_open_to(request: HttpRequest) -> bool:
    """Say whether the visitor may use the admin: operators may, by their role alone."""
    return request.user.is_active and request.user.is_operator


@login_not_required
def sign_in(request: HttpRequest) -> HttpResponse:
    """Redirect to the portal's own sign-in page. Somebody signed in who is not an operator gets 403, as everywhere."""
    require(request.user.is_anonymous or is_open_to(request), OPERATORS_ONLY)
    return redirect_to_login(request.GET.get("next", reverse("admin:index")))


admin.site.has_permission = is_open_to
admin.site.login = sign_in


@admin.register(User)
class UserAdmin(StockUserAdmin):
    """People, with the same rules as in ``services.change_user``."""

    add_form = UserCreationForm  # always with a password: there is no other way to sign in
    list_display = ["username", "name", "role", "is_active", "last_login"]
    list_filter = ["role", "is_active"]
    fieldsets = [
        (None, {"fields": ["username", "password"]}),
        ("Person", {"fields": ["first_name", "last_name", "email"]}),
        (
            "What this person may do",
            {
                "fields": ["role", "is_active", "is_superuser"],
                "description": "The role decides what this person may do. Only superusers can change a superuser's account.",
            },
        ),
        ("Dates", {"fields": ["last_login", "date_joined"]}),
    ]
    readonly_fields = ["last_login", "date_joined"]
    filter_horizontal = []
    add_fieldsets = [
        (None, {"classes": ["wide"], "fields": ["username", "password1", "password2"]}),
        ("What this person may do", {"fields": ["role"]}),
    ]

    @admin.display(description="name", ordering="first_name")
    def name(self, person: User) -> str:
        return person.get_full_name()

    def get_fieldsets(self, request: HttpRequest, obj: User | None = None) -> Any:
        fieldsets = super().get_fieldsets(request, obj)
        if obj is None or self.has_change_permission(request, obj):
            return fieldsets
        return [(None, {"fields": ["username"]}), *fieldsets[1:]]  # the password field has a button to reset it

    def get_readonly_fields(self, request: HttpRequest, obj: User | None = None) -> list[str]:
        if obj is None:
            return self.readonly_fields
        fixed = ["username", *self.readonly_fields]  # the journal names people by their user name
        if obj == request.user:
            fixed += ["role", "is_active", "is_superuser"]
        elif not request.user.is_superuser:
            fixed.append("is_superuser")
        return fixed

    def has_change_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        is_above = obj is not None and obj.is_superuser and not request.user.is_superuser
        return super().has_change_permission(request, obj) and not is_above

    def has_delete_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        return False  # accounts are closed, not deleted: the journal names people by their user name


@admin.register(AuthToken)
class TokenAdmin(admin.ModelAdmin):
    """Operators see everybody's tokens and can delete them. Only owners create them, on their profile page."""

    list_display = ["begins_with", "user", "created", "expiry"]
    list_select_related = ["user"]
    search_fields = ["user__username", "token_key"]
    fields = readonly_fields = ["begins_with", "user", "created", "expiry"]

    @admin.display(description="begins with")
    def begins_with(self, token: AuthToken) -> str:
        return f"{token.token_key[:8]}…"

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: AuthToken | None = None) -> bool:
        return False
