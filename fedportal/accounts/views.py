"""The pages for signing in and for one's own account."""

from __future__ import annotations

from http import HTTPStatus

from django.contrib import messages
from django.contrib.auth import views as auth_views
from django.contrib.messages.views import SuccessMessageMixin
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse_lazy
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_variables
from django.views.decorators.http import require_http_methods, require_POST

from fedportal.accounts import services
from fedportal.accounts.authentication import PAUSE
from fedportal.accounts.forms import ProfileForm, SignInForm, TokenForm


class SignIn(auth_views.LoginView):
    template_name = "accounts/login.html"
    authentication_form = SignInForm
    redirect_authenticated_user = True

    def form_invalid(self, form: SignInForm) -> HttpResponse:
        answer = super().form_invalid(form)
        if form.is_paused:
            answer.status_code = HTTPStatus.TOO_MANY_REQUESTS
            answer.headers["Retry-After"] = str(PAUSE)
        return answer


class SignOut(auth_views.LogoutView):
    """POST only."""


class ChangePassword(SuccessMessageMixin, auth_views.PasswordChangeView):
    template_name = "accounts/password.html"
    success_url = reverse_lazy("accounts:profile")
    success_message = "Your password is changed."


def _profile_page(request: HttpRequest, **more: object) -> HttpResponse:
    context = {
        "form": ProfileForm(instance=request.user),
        "token_form": TokenForm(),
        "tokens": request.user.auth_token_set.order_by("-created"),
        **more,
    }
    return render(request, "accounts/profile.html", context)


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def profile(request: HttpRequest) -> HttpResponse:
    """Show and change one's own name and email address; list the API tokens. Only operators change roles."""
    if request.method != "POST":
        return _profile_page(request)
    form = ProfileForm(request.POST, instance=request.user)
    if not form.is_valid():
        request.user.refresh_from_db()
        return _profile_page(request, form=form)
    form.save()
    messages.success(request, "Your profile is saved.")
    return redirect("accounts:profile")


@never_cache
@sensitive_variables("secret")
def create_token(request: HttpRequest) -> HttpResponse:
    """Create a token and show its secret in this response only: it is stored nowhere, not even in a message."""
    if request.method != "POST":  # somebody returns to this response
        return redirect("accounts:profile")
    form = TokenForm(request.POST)
    if not form.is_valid():
        return _profile_page(request, token_form=form)
    token, secret = services.create_token(request.user, days=form.cleaned_data["days"])
    return _profile_page(request, new_token=token, new_secret=secret)


@require_POST
def delete_token(request: HttpRequest, token_key: str) -> HttpResponse:
    if not services.delete_token(request.user, token_key=token_key):
        raise Http404
    messages.success(request, "The token is deleted. Programs that use it no longer have access.")
    return redirect("accounts:profile")
