"""Users in the admin: stock forms, with the role."""

from django.contrib import admin
from django.contrib.auth.admin import UserAdmin as StockUserAdmin
from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.models import Group
from django.http import HttpRequest, HttpResponse
from knox.models import AuthToken

from fedportal.accounts.models import User
from fedportal.ui.permissions import OPERATORS_ONLY, require

admin.site.unregister(Group)  # roles say what people may do; a second way would only confuse
admin.site.unregister(AuthToken)  # knox's admin creates tokens for others and shows the digests
admin.site.site_header = "fedportal"
admin.site.site_title = "fedportal"
admin.site.index_title = "Administration"
_stock_sign_in = admin.site.login


@login_not_required
def sign_in(request: HttpRequest, extra_context: dict | None = None) -> HttpResponse:
    """The stock page, but not for those who are signed in and no operator: they are told that, as on every page."""
    require(request.user.is_anonymous or admin.site.has_permission(request), OPERATORS_ONLY)
    return _stock_sign_in(request, extra_context)


admin.site.login = sign_in


@admin.register(User)
class UserAdmin(StockUserAdmin):
    list_display = ["username", "get_full_name", "role", "is_active", "last_login"]
    list_filter = ["role", "is_active"]
    fieldsets = [
        (None, {"fields": ["username", "password"]}),
        ("Person", {"fields": ["first_name", "last_name", "email"]}),
        (
            "What this person may do",
            {
                "fields": ["role", "is_active", "is_staff", "is_superuser"],
                "description": "The role decides on the pages; staff status opens this admin and belongs to operators.",
            },
        ),
        ("Dates", {"fields": ["last_login", "date_joined"]}),
    ]
    readonly_fields = ["last_login", "date_joined"]
    filter_horizontal = []
    add_fieldsets = [
        (None, {"classes": ["wide"], "fields": ["username", "usable_password", "password1", "password2"]}),
        ("What this person may do", {"fields": ["role", "is_staff"]}),
    ]

    def has_delete_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        return False  # accounts are closed, not deleted: the journal names people by their user name


@admin.register(AuthToken)
class TokenAdmin(admin.ModelAdmin):
    """Operators see whose tokens exist and revoke them; only their owners create them (profile page)."""

    list_display = ["begins_with", "user", "created", "expiry"]
    list_filter = ["user"]
    fields = readonly_fields = ["begins_with", "user", "created", "expiry"]

    @admin.display(description="begins with")
    def begins_with(self, token: AuthToken) -> str:
        return f"{token.token_key[:8]}…"

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: AuthToken | None = None) -> bool:
        return False
