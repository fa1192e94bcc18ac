"""Registered hospitals: how the portal reaches them, how healthy they are, what data they offer."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from django.conf import settings
from django.core.validators import RegexValidator
from django.db import models
from django.db.models.functions import Coalesce
from django.utils import timezone

from fedportal.sites.fields import EncryptedJSONField

if TYPE_CHECKING:
    from fedportal.accounts.models import User

CHECKERS_ONLY = "Only operators and the site's stewards may request a check."

CHECK_WITHIN = timedelta(minutes=10)
"""A check without a result after this time, because its orchestrator died, is repeated."""


class ConnectorKind(models.TextChoices):
    LOCAL = "local", "On this machine"
    AIRFLOW = "airflow", "Airflow"
    KAAPANA = "kaapana", "Kaapana"
    KAAPANA_PULL = "kaapana-pull", "Kaapana that polls the portal"


class Health(models.TextChoices):
    UNKNOWN = "unknown", "Not checked yet"
    HEALTHY = "healthy", "Ready"
    FAILING = "failing", "Has a problem"
    STALE = "stale", "No recent check"

    @property
    def colour(self) -> str:
        """One of ``quiet, good, warn, bad``, like the states of an experiment."""
        return {"unknown": "quiet", "healthy": "good", "failing": "bad", "stale": "warn"}[self.value]


class SiteQuerySet(models.QuerySet["Site"]):
    def active(self) -> SiteQuerySet:
        return self.filter(retired_at=None)

    def hospitals(self) -> SiteQuerySet:
        """The active sites that people see and choose; not the pools that the portal makes for itself."""
        return self.active().filter(is_pool=False)

    def stewarded_by(self, user: User) -> SiteQuerySet:
        return self.filter(stewards=user)

    def with_last_check(self) -> SiteQuerySet:
        """Fetch each site's newest check (``last_check``, ``health``) in one query instead of one query per site."""
        return self.prefetch_related(
            models.Prefetch("checks", queryset=SiteCheck.objects.all()[:1], to_attr="newest_checks")
        )

    def with_counts(self) -> SiteQuerySet:
        """Add ``dataset_count`` (available ones) and ``running_count`` (active experiments, each with its baselines)."""
        under_way = models.Q(participations__experiment__started_at__isnull=False)
        under_way &= models.Q(participations__experiment__ended_at=None)
        return self.annotate(
            dataset_count=models.Count("datasets", filter=models.Q(datasets__is_available=True), distinct=True),
            running_count=models.Count(
                Coalesce("participations__experiment__head", "participations__experiment"),
                filter=under_way,
                distinct=True,
            ),
        )


class Site(models.Model):
    """A registered instance: one hospital."""

    slug = models.CharField(
        "short name",
        max_length=15,
        unique=True,
        validators=[
            RegexValidator(
                r"^[a-z](?:[a-z0-9-]{0,13}[a-z0-9])?\Z",
                "Use at most 15 lower-case letters, digits and hyphens. Start with a letter, and do not end with a hyphen.",
            )
        ],
        help_text="Used in addresses, file names and logs. It cannot be changed later.",
    )
    name = models.CharField(max_length=120, unique=True, help_text="The hospital's name, as people know it.")
    city = models.CharField(max_length=120, blank=True)
    connector = models.CharField(
        max_length=16, choices=ConnectorKind, default=ConnectorKind.LOCAL, help_text="How the portal reaches the site."
    )
    config = models.JSONField(default=dict, blank=True, help_text="Settings of the connector. Do not put secrets here.")
    secrets = EncryptedJSONField(default=dict, blank=True, editable=False, help_text="Credentials, encrypted at rest.")
    stewards = models.ManyToManyField(
        settings.AUTH_USER_MODEL,
        blank=True,
        related_name="sites",
        help_text="The people responsible for the site's data.",
    )
    contact = models.EmailField(blank=True, help_text="Whom to email when the site has a problem.")
    registered_at = models.DateTimeField(default=timezone.now, editable=False)
    retired_at = models.DateTimeField(null=True, blank=True, editable=False)
    is_pool = models.BooleanField(
        "pool",
        default=False,
        editable=False,
        help_text="Made by the portal to train on the data of several sites on this machine. It is not a hospital.",
    )
    last_contact_at = models.DateTimeField(null=True, blank=True, editable=False)
    unreached_since = models.DateTimeField(
        null=True, blank=True, editable=False, help_text="Since when the site has not answered the orchestrator."
    )
    unreached_because = models.CharField(max_length=300, blank=True, editable=False)
    next_try_at = models.DateTimeField(
        null=True, blank=True, editable=False, help_text="When the orchestrator tries again."
    )
    check_due_at = models.DateTimeField(
        null=True,
        blank=True,
        default=timezone.now,
        editable=False,
        help_text="When the orchestrator checks the site next.",
    )
    checking_since = models.DateTimeField(
        null=True, blank=True, editable=False, help_text="When the check in progress began."
    )
    check_progress = models.JSONField(
        default=list,
        blank=True,
        editable=False,
        help_text="The steps of the check in progress.",
    )

    objects = SiteQuerySet.as_manager()

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"<Site {self.slug}>"

    @property
    def is_retired(self) -> bool:
        return self.retired_at is not None

    @property
    def last_check(self) -> SiteCheck | None:
        if hasattr(self, "newest_checks"):  # fetched by with_last_check
            return next(iter(self.newest_checks), None)
        return self.checks.first()

    @property
    def check_is_pending(self) -> bool:
        """Whether a check is due that the orchestrator has not finished yet."""
        return self.check_due_at is not None and self.check_due_at <= timezone.now()

    @property
    def is_being_checked(self) -> bool:
        return self.checking_since is not None and timezone.now() - self.checking_since < CHECK_WITHIN

    @property
    def steps_under_way(self) -> list[dict]:
        """The steps of the check in progress: those done, then one with ``is_next``, then those to come."""
        steps = self.check_progress if self.is_being_checked else []
        taken = sum(step["ok"] is not None for step in steps)
        return [{**step, "is_next": number == taken} for number, step in enumerate(steps)]

    @property
    def next_try_in(self) -> float:
        """Seconds until the orchestrator next calls a site that does not answer; 0 means now."""
        return max(0.0, (self.next_try_at - timezone.now()).total_seconds()) if self.next_try_at else 0.0

    @property
    def is_busy(self) -> bool:
        """Whether the site takes part in an experiment that has started and not ended."""
        return self.participations.filter(experiment__started_at__isnull=False, experiment__ended_at=None).exists()

    def can_be_checked_by(self, user: User) -> bool:
        """Operators and the site's own stewards may request a check."""
        return user.is_operator or self.stewards.filter(pk=user.pk).exists()

    @property
    def health(self) -> Health:
        """What the newest check says, unless it is more than a day old."""
        check = self.last_check
        if check is None:
            return Health.UNKNOWN
        if not check.ok:
            return Health.FAILING
        return Health.STALE if timezone.now() - check.at > timedelta(days=1) else Health.HEALTHY


class SiteCheck(models.Model):
    """One look at a site, step by step. ``steps`` are CheckStep dictionaries: name, ok, message, remedy, seconds."""

    site = models.ForeignKey(Site, on_delete=models.CASCADE, related_name="checks")
    at = models.DateTimeField(default=timezone.now)
    ok = models.BooleanField()
    steps = models.JSONField(default=list)
    version = models.CharField(max_length=80, blank=True)
    facts = models.JSONField(default=dict, blank=True)
    seconds = models.FloatField(default=0.0)

    class Meta:
        ordering = ["-at", "-pk"]
        indexes = [models.Index(fields=["site", "-at"])]

    def __str__(self) -> str:
        return f"{self.site.slug}: {'ready' if self.ok else 'problem'} at {self.at:%Y-%m-%d %H:%M}"

    @property
    def first_problem(self) -> dict | None:
        return next((step for step in self.steps if not step["ok"]), None)


class SignInState(models.TextChoices):
    ASKED = "asked", "Asking the site for a code"
    WAITING = "waiting", "Waiting for confirmation"
    DONE = "done", "Signed in"
    FAILED = "failed", "Failed"


class SignIn(models.Model):
    """The portal's latest sign-in at a site, by a code that a person confirms there. The token itself is kept elsewhere."""

    site = models.OneToOneField(Site, on_delete=models.CASCADE, related_name="sign_in")
    state = models.CharField(max_length=8, choices=SignInState, default=SignInState.ASKED)
    asked_at = models.DateTimeField(default=timezone.now)
    asked_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    address = models.CharField(max_length=500, blank=True, help_text="Where to confirm the code.")
    user_code = models.CharField(max_length=40, blank=True)
    expires_at = models.DateTimeField(null=True, blank=True, help_text="When the code expires.")
    message = models.TextField(blank=True)
    remedy = models.TextField(blank=True)

    def __str__(self) -> str:
        return f"{self.site.slug}: {self.get_state_display()}"

    @property
    def is_open(self) -> bool:
        """Whether it can still succeed: its code has not expired, and its orchestrator has not died."""
        until = self.expires_at or self.asked_at + CHECK_WITHIN
        return self.state in (SignInState.ASKED, SignInState.WAITING) and timezone.now() < until


class Dataset(models.Model):
    """What a site offers, as the last check found it. Counts are cases; spacing (mm) and shape (voxels) are medians."""

    site = models.ForeignKey(Site, on_delete=models.CASCADE, related_name="datasets")
    name = models.CharField(max_length=120, help_text="Folder name at the site.")
    title = models.CharField(max_length=200, blank=True)
    train_cases = models.PositiveIntegerField(default=0)
    validation_cases = models.PositiveIntegerField(default=0)
    channels = models.JSONField(default=list)
    labels = models.JSONField(default=dict, help_text="Label number (as text) → name.")
    spacing = models.JSONField(default=list)
    shape = models.JSONField(default=list)
    problems = models.JSONField(default=list)
    seen_at = models.DateTimeField(default=timezone.now)
    is_available = models.BooleanField(default=True, help_text="Whether the last check still found it.")
    copy_of = models.ManyToManyField(
        "self",
        symmetrical=False,
        blank=True,
        related_name="copied_in",
        help_text="Datasets of other sites whose every case this one also holds, for training on pooled data.",
    )

    class Meta:
        ordering = ["site", "name"]
        constraints = [models.UniqueConstraint(fields=["site", "name"], name="one_dataset_of_a_name_per_site")]

    def __str__(self) -> str:
        return f"{self.name} at {self.site}"

    @property
    def cases(self) -> int:
        return self.train_cases + self.validation_cases

    @property
    def task_signature(self) -> tuple:
        """Channels and labels: datasets with the same signature can train one model together."""
        return tuple(self.channels), tuple(sorted((int(n), name) for n, name in self.labels.items()))
