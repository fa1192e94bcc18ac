"""``manage.py rotate_keys``: re-encrypt all stored site credentials with the first key of FEDPORTAL_KEYS."""

from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction

from fedportal.sites.models import Site


class Command(BaseCommand):
    help = (
        "Re-encrypt all stored site credentials with the first key of FEDPORTAL_KEYS. To change the key: put the new one "
        "before the old one, restart, run this command, remove the old one, restart."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        rotated = 0
        with transaction.atomic():
            for slug in Site.objects.order_by("slug").values_list("slug", flat=True):
                try:
                    site = Site.objects.select_for_update().get(slug=slug)
                except ImproperlyConfigured as error:
                    raise CommandError(f"{slug}: {error} Nothing was changed.") from error
                if site.secrets:
                    site.save(update_fields=["secrets"])
                    rotated += 1
        self.stdout.write(f"Re-encrypted the credentials of {rotated} site(s) with the first key.")
