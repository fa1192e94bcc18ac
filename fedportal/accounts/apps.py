from django.apps import AppConfig, apps


class AccountsConfig(AppConfig):
    name = "fedportal.accounts"

    def ready(self) -> None:
        apps.get_app_config("knox").verbose_name = "API"  # the heading in the admin
