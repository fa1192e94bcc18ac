from django.apps import AppConfig


class SitesConfig(AppConfig):
    name = "fedportal.sites"
    label = "sites"
