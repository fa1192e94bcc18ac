"""People and what they may do."""

from django.contrib.auth.models import AbstractUser
from django.db import models
from django.utils import timezone


class Role(models.TextChoices):
    RESEARCHER = "researcher", "Researcher"
    STEWARD = "steward", "Site steward"
    OPERATOR = "operator", "Operator"
    AUDITOR = "auditor", "Auditor"


class User(AbstractUser):
    """A person. The role says what the pages offer; ``is_staff`` opens the admin (operators)."""

    role = models.CharField(
        max_length=16,
        choices=Role,
        default=Role.RESEARCHER,
        help_text="Researchers compose experiments, stewards answer for a site's data, operators manage the portal, "
        "auditors read everything and change nothing.",
    )

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

    def __str__(self) -> str:
        return self.get_full_name() or self.username


class WrongPasswords(models.Model):
    """How many passwords were wrong since the first of them: of an account, from an address, or both.

    ``name`` is a digest of which. Rows are forgotten after a while (``accounts/authentication.py``).
    """

    name = models.CharField(max_length=64, primary_key=True)
    count = models.PositiveIntegerField(default=0)
    since = models.DateTimeField(default=timezone.now, db_index=True)

    class Meta:
        verbose_name_plural = "wrong passwords"

    def __str__(self) -> str:
        return f"{self.count} since {self.since:%H:%M}"
