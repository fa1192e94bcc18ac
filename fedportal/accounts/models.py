"""People and what they may do."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import AbstractUser, UserManager
from django.db import models
from django.utils import timezone


class Role(models.TextChoices):
    RESEARCHER = "researcher", "Researcher"
    STEWARD = "steward", "Site steward"
    OPERATOR = "operator", "Operator"
    AUDITOR = "auditor", "Auditor"


class People(UserManager):
    use_in_migrations = False

    def create_superuser(
        self, username: str, email: str | None = None, password: str | None = None, **fields: Any
    ) -> User:
        """Create a superuser, who is an operator. ``manage.py createsuperuser`` creates the first one."""
        return super().create_superuser(username, email, password, **{"role": Role.OPERATOR, **fields})


class User(AbstractUser):
    """A person. The role decides what the pages offer and who may use the admin; ``is_staff`` and permissions are not used."""

    role = models.CharField(
        max_length=16,
        choices=Role,
        default=Role.RESEARCHER,
        help_text="Researchers compose experiments, stewards are responsible for a site's data, operators manage the "
        "portal, auditors read everything and change nothing.",
    )

    objects = People()

    @property
    def is_operator(self) -> bool:
        return self.is_superuser or self.role == Role.OPERATOR

    @property
    def may_compose(self) -> bool:
        """Whether this person may create and control experiments of their own."""
        return self.is_operator or self.role == Role.RESEARCHER

    @property
    def sees_everything(self) -> bool:
        return self.is_operator or self.role == Role.AUDITOR

    def has_perm(self, perm: str, obj: Any = None) -> bool:
        """Operators may do everything in the admin, others nothing."""
        return self.is_active and self.is_operator

    def has_module_perms(self, app_label: str) -> bool:
        return self.is_active and self.is_operator

    def __str__(self) -> str:
        return self.get_full_name() or self.username


class WrongPasswords(models.Model):
    """How many passwords were wrong since the first of them: for an account, from an address, or both.

    ``name`` is a digest of which. Rows are deleted after a while (``accounts/authentication.py``).
    """

    name = models.CharField(max_length=64, primary_key=True)
    count = models.PositiveIntegerField(default=0)
    since = models.DateTimeField(default=timezone.now, db_index=True)

    class Meta:
        verbose_name_plural = "wrong passwords"

    def __str__(self) -> str:
        return f"{self.count} since {self.since:%H:%M}"
