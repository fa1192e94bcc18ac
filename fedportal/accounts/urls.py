"""Addresses for signing in and for one's own account, under ``/accounts/``."""

from django.urls import path

from fedportal.accounts import views

app_name = "accounts"
urlpatterns = [
    path("login/", views.SignIn.as_view(), name="login"),
    path("logout/", views.SignOut.as_view(), name="logout"),
    path("profile/", views.profile, name="profile"),
    path("password/", views.ChangePassword.as_view(), name="password"),
    path("tokens/create/", views.create_token, name="token_create"),
    path("tokens/<str:token_key>/delete/", views.delete_token, name="token_delete"),
]
