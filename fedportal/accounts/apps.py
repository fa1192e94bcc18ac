from django.apps import AppConfig


class AccountsConfig(AppConfig):
    name = "fedportal.accounts"
