from django.apps import AppConfig


class MonitoringConfig(AppConfig):
    name = "fedportal.monitoring"
