"""The forms for signing in and for one's own account."""

from __future__ import annotations

from django import forms
from django.contrib.auth.forms import AuthenticationForm, UsernameField

from fedportal.accounts.authentication import PAUSE, is_paused
from fedportal.accounts.models import User


class SignInForm(AuthenticationForm):
    username = UsernameField(label="User name", widget=forms.TextInput(attrs={"autofocus": True}))
    error_messages = {
        "invalid_login": "User name and password do not match. Both are case-sensitive.",
        "inactive": "This account is closed. Ask an operator of the portal.",
        "paused": f"Too many wrong passwords. Try again in {PAUSE // 60} minutes, or ask an operator of the portal.",
    }

    @property
    def is_paused(self) -> bool:
        return self.has_error("__all__", "paused")

    def get_invalid_login_error(self) -> forms.ValidationError:
        if is_paused(self.request, self.cleaned_data.get("username")):
            return forms.ValidationError(self.error_messages["paused"], code="paused")
        return super().get_invalid_login_error()


class ProfileForm(forms.ModelForm):
    class Meta:
        model = User
        fields = ["first_name", "last_name", "email"]
        help_texts = {"email": "Where the portal's operators can reach you."}


class TokenForm(forms.Form):
    days = forms.TypedChoiceField(
        label="Valid for",
        choices=[("30", "30 days"), ("90", "90 days"), ("365", "One year"), ("0", "Until I delete it")],
        coerce=int,
        initial="90",
        help_text="A token can do everything you can do. Choose the shortest time that is enough.",
    )
