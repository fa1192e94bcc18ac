"""An experiment: a plan, its participants, and who drives it at the moment."""

from __future__ import annotations

import secrets
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Count, F, OuterRef, Q, Subquery
from django.db.models.functions import Coalesce
from django.utils import timezone

from fedportal.experiments.models.scores import best_of
from fedportal.experiments.states import ACTIVE, ExperimentState
from fedportal.sites.models import Dataset, Site
from trainer.contract import TrainingPlan, plan_from_json

if TYPE_CHECKING:
    from fedportal.accounts.models import User
    from fedportal.experiments.models.model import GlobalModel
    from fedportal.experiments.models.round import Round

CONTROLLERS_ONLY = "You may look at this experiment, but only its owner or an operator may change it."

_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"


def new_key() -> str:
    """Return a fresh experiment key: 8 letters and digits that nobody confuses when reading aloud."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(8))


class Straggler(models.TextChoices):
    WAIT = "wait", "Wait for every site until the deadline"
    DROP = "drop", "Go on without it once enough sites have answered"
    FAIL = "fail", "Stop the experiment"


class Weighting(models.TextChoices):
    CASES = "cases", "By training cases"
    UNIFORM = "uniform", "Every site the same"


class Kind(models.TextChoices):
    """What an experiment is: the federated one itself, or something beside it that goes through the same engine."""

    FEDERATED = "federated", "Federated"
    POOLED = "pooled", "Pooled"
    LOCAL_ONLY = "local_only", "Local only"
    CYCLIC = "cyclic", "Cyclic"
    CROSS_SITE = "cross_site", "Cross-site evaluation"


class Baseline(models.TextChoices):
    """What a researcher can have beside an experiment. The ensemble trains nothing: it averages the local-only models."""

    POOLED = "pooled", "Pooled"
    LOCAL_ONLY = "local_only", "Local only"
    ENSEMBLE = "ensemble", "Ensemble of the local-only models"
    CYCLIC = "cyclic", "Cyclic weight transfer"


class ExperimentQuerySet(models.QuerySet["Experiment"]):
    def visible_to(self, user: User) -> ExperimentQuerySet:
        """Own and shared experiments; a steward's also those that use the steward's sites; all for operators, auditors.

        Who sees the first of a family sees all of it.
        """
        if user.sees_everything:
            return self
        mine = Q(owner=user) | Q(viewers=user) | Q(participations__site__stewards=user)
        seen = Experiment.objects.filter(mine).values("pk")
        return self.filter(Q(pk__in=seen) | Q(head__in=seen))

    def heads(self) -> ExperimentQuerySet:
        """The first of each family: no baselines, no repeats."""
        return self.filter(head=None)

    def listed_for(self, user: User) -> ExperimentQuerySet:
        """What stands in a person's lists: of each family the first, or what of it is visible where that is not."""
        if user.sees_everything:
            return self.heads()
        seen = Experiment.objects.visible_to(user).values("pk")
        return self.filter(Q(head=None) | ~Q(head__in=seen), pk__in=seen)

    def with_progress(self) -> ExperimentQuerySet:
        """Add ``round_now``, ``site_count``, ``last_dice`` (of the newest measured global model) and ``runs_left`` (how
        many of its repeats and baselines are not over) for lists."""
        rounds = self.model.rounds.rel.related_model.objects.filter(experiment=OuterRef("pk"))
        measured = self.model.models.rel.related_model.objects.filter(experiment=OuterRef("pk")).exclude(dice=None)
        parts = Participation.objects.filter(experiment=OuterRef("pk")).order_by()
        left = Experiment.objects.filter(head=OuterRef("pk"), state__in=ACTIVE).order_by()
        return self.annotate(
            runs_left=Coalesce(Subquery(left.values("head").annotate(count=Count("pk")).values("count")), 0),
            round_now=Subquery(rounds.order_by("-number").values("number")[:1]),
            site_count=Coalesce(Subquery(parts.values("experiment").annotate(count=Count("pk")).values("count")), 0),
            last_dice=Subquery(measured.order_by("-round_number").values("dice")[:1]),
        )

    def matching(self, *, state: str = "", owner: User | None = None, search: str = "") -> ExperimentQuerySet:
        """Those in a state, of an owner, with all the words in title, question or key; an empty filter passes all."""
        rows = self.filter(state=state) if state else self
        rows = rows.filter(owner=owner) if owner else rows
        for word in search.split():
            rows = rows.filter(Q(title__icontains=word) | Q(question__icontains=word) | Q(key__iexact=word))
        return rows

    def of_family(self, head: str, *, kind: str = "") -> ExperimentQuerySet:
        """Those of the family of a head (its key) and of a kind; an empty filter passes all."""
        rows = self.filter(Q(key=head) | Q(head__key=head)) if head else self
        return rows.filter(kind=kind) if kind else rows

    def due(self, now: datetime) -> ExperimentQuerySet:
        """What the orchestrator should look at: running or cancelling, its time come or woken, not claimed."""
        return self.filter(
            Q(state__in=[ExperimentState.RUNNING, ExperimentState.CANCELLING]),
            Q(due_at__lte=now) | Q(wakes__gt=F("wakes_seen")),
            Q(lease_until=None) | Q(lease_until__lt=now),
        )


class Experiment(models.Model):
    """A plan, its participants, its rounds.

    ``version`` fences every write of a state (compare-and-set). ``claimed_by``, ``lease_until``, ``due_at``,
    ``wakes`` and ``stumbles`` belong to the engine: who drives it, until when, when to look again.
    """

    key = models.CharField(max_length=10, unique=True, default=new_key, editable=False)
    title = models.CharField(max_length=120, help_text="A name that you will recognise in a list.")
    question = models.TextField(blank=True, help_text="What you want to find out, in a sentence or two.")
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="experiments")
    viewers = models.ManyToManyField(settings.AUTH_USER_MODEL, blank=True, related_name="shared_experiments")
    cloned_from = models.ForeignKey("self", null=True, blank=True, on_delete=models.SET_NULL, related_name="clones")

    kind = models.CharField(max_length=12, choices=Kind, default=Kind.FEDERATED, editable=False)
    head = models.ForeignKey(
        "self",
        null=True,
        blank=True,
        editable=False,
        on_delete=models.CASCADE,
        related_name="members",
        help_text="First experiment of its family (repeats and baselines); empty: it is the first.",
    )
    beside = models.ForeignKey(
        "self",
        null=True,
        blank=True,
        editable=False,
        on_delete=models.CASCADE,
        related_name="companions",
        help_text="The federated run that this baseline or cross-site evaluation belongs to.",
    )
    turn = models.PositiveIntegerField(
        default=0, editable=False, help_text="It begins when the members of its family with a smaller turn have ended."
    )
    baselines = models.JSONField(default=list, blank=True, help_text="What is trained beside it, for comparison.")
    repeats = models.PositiveIntegerField(
        default=1,
        validators=[MinValueValidator(1), MaxValueValidator(20)],
        help_text="How many times it is run, each time with another seed.",
    )
    compare_every = models.PositiveIntegerField(
        default=0,
        validators=[MaxValueValidator(10_000)],
        help_text="Rounds between models that the cross-site evaluation measures; 0: the last and the best only.",
    )

    plan = models.JSONField(default=dict, help_text="The training recipe (trainer.contract.TrainingPlan as JSON).")
    rounds_planned = models.PositiveIntegerField(
        default=12, validators=[MinValueValidator(1), MaxValueValidator(10_000)]
    )
    strategy = models.CharField(max_length=40, default="fedavg")
    strategy_options = models.JSONField(default=dict, blank=True)
    weighting = models.CharField(max_length=16, choices=Weighting, default=Weighting.CASES)
    min_sites = models.PositiveIntegerField(
        default=2, help_text="Quorum: a round counts when at least so many sites answered."
    )
    deadline_minutes = models.FloatField(
        default=360, validators=[MinValueValidator(0.05)], help_text="How long a round waits for its sites."
    )
    stragglers = models.CharField(max_length=8, choices=Straggler, default=Straggler.WAIT)
    grace_minutes = models.FloatField(
        default=5, help_text="With “go on without it”: how long the others still wait once the quorum is there."
    )
    max_attempts = models.PositiveIntegerField(
        default=3, validators=[MinValueValidator(1), MaxValueValidator(99)], help_text="Attempts per site and round."
    )
    max_relative_norm = models.FloatField(
        null=True,
        blank=True,
        help_text="Refuse an update whose change is larger than this multiple of the model's norm.",
    )

    best_by = models.CharField(
        max_length=40, default="mean", help_text="Region whose Dice chooses the best model; “mean”: over all regions."
    )
    patience = models.PositiveIntegerField(
        default=0,
        validators=[MaxValueValidator(10_000)],
        help_text="Stop after so many rounds without a better model; 0: never.",
    )
    initial_model = models.ForeignKey(
        "experiments.GlobalModel",
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="heirs",
        help_text="Global model that round 1 starts from; empty: fresh weights.",
    )

    state = models.CharField(max_length=16, choices=ExperimentState.choices(), default=ExperimentState.DRAFT)
    reason = models.TextField(blank=True, help_text="Why it is in its state, in a sentence for people.")
    version = models.PositiveIntegerField(default=0, editable=False)
    claimed_by = models.CharField(max_length=80, blank=True, editable=False)
    lease_until = models.DateTimeField(null=True, blank=True, editable=False)
    due_at = models.DateTimeField(default=timezone.now, editable=False)
    wakes = models.PositiveIntegerField(default=0, editable=False)
    wakes_seen = models.PositiveIntegerField(default=0, editable=False)
    stumbles = models.PositiveIntegerField(default=0, editable=False)

    created_at = models.DateTimeField(default=timezone.now, editable=False)
    started_at = models.DateTimeField(null=True, blank=True, editable=False)
    ended_at = models.DateTimeField(null=True, blank=True, editable=False)

    objects = ExperimentQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]
        indexes = [models.Index(fields=["state", "due_at"])]
        constraints = [
            models.CheckConstraint(
                name="experiment_state_is_known", condition=Q(state__in=[s.value for s in ExperimentState])
            )
        ]

    def __str__(self) -> str:
        return self.title

    @property
    def status(self) -> ExperimentState:
        return ExperimentState(self.state)

    @property
    def is_head(self) -> bool:
        return self.head_id is None

    @property
    def family(self) -> ExperimentQuerySet:
        """The first experiment with its repeats and all their baselines, in the order in which they run."""
        head = self.head_id or self.pk
        return Experiment.objects.filter(Q(pk=head) | Q(head=head)).order_by("turn", "pk")

    @property
    def waits_for(self) -> Experiment | None:
        """The member of its family that has to end first; ``None``: nothing is in its way.

        A failed run can be taken up again, so what stands beside it goes on waiting, and nobody waits for that.
        """
        if self.is_head:
            return None
        over = [ExperimentState.COMPLETED, ExperimentState.CANCELLED, ExperimentState.FAILED]
        earlier = self.family.filter(turn__lt=self.turn).exclude(beside__state=ExperimentState.FAILED)
        return earlier.exclude(Q(state__in=over), ~Q(pk=self.beside_id) | Q(state=ExperimentState.COMPLETED)).first()

    @property
    def training_plan(self) -> TrainingPlan:
        """The plan as the contract's dataclass. Raises ``ContractError`` when the draft is incomplete."""
        return plan_from_json(self.plan)

    @property
    def is_draft(self) -> bool:
        return self.status is ExperimentState.DRAFT

    @property
    def is_active(self) -> bool:
        return self.status in ACTIVE

    @property
    def current_round(self) -> Round | None:
        return self.rounds.order_by("number").last()

    @property
    def newest_model(self) -> GlobalModel | None:
        return self.models.order_by("round_number").last()

    @property
    def best_model(self) -> GlobalModel | None:
        """The measured global model with the highest Dice of the chosen region; the earliest of equals."""
        return best_of(self.models.all(), self.best_by)

    @property
    def duration(self) -> timedelta | None:
        return None if self.started_at is None else (self.ended_at or timezone.now()) - self.started_at

    def can_be_controlled_by(self, user: User) -> bool:
        return user.is_operator or (user.may_compose and self.owner_id == user.pk)

    def wake(self) -> None:
        """Ask the orchestrator to look now. Never touches ``version``: a wake-up must not make a step stale."""
        Experiment.objects.filter(pk=self.pk).update(wakes=F("wakes") + 1)


class Participation(models.Model):
    """A site's part in an experiment: with which dataset it takes part."""

    experiment = models.ForeignKey(Experiment, on_delete=models.CASCADE, related_name="participations")
    site = models.ForeignKey(Site, on_delete=models.PROTECT, related_name="participations")
    dataset = models.ForeignKey(Dataset, on_delete=models.PROTECT, related_name="participations")

    class Meta:
        ordering = ["site__slug"]
        constraints = [models.UniqueConstraint(fields=["experiment", "site"], name="a_site_takes_part_once")]

    def __str__(self) -> str:
        return f"{self.site} in {self.experiment}"
