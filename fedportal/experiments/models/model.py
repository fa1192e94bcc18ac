"""What an experiment publishes: global models and the files made from them; what is measured of them, case by case."""

from __future__ import annotations

from django.db import models
from django.utils import timezone

from fedportal.experiments.models.experiment import Experiment
from fedportal.experiments.models.scores import MEAN, dice_of


class GlobalModel(models.Model):
    """The aggregate that a round published (round 0: the initial model), as safetensors in the object store."""

    experiment = models.ForeignKey(Experiment, on_delete=models.CASCADE, related_name="models")
    round_number = models.PositiveIntegerField()
    key = models.CharField(max_length=200)
    sha256 = models.CharField(max_length=64)
    size = models.BigIntegerField()
    created_at = models.DateTimeField(default=timezone.now)
    dice = models.FloatField(
        null=True, blank=True, help_text="Mean Dice over regions and sites' held-out cases, measured in the next round."
    )
    scores = models.JSONField(default=dict, blank=True, help_text="Dice (and HD95) per region and per site.")
    server_state_key = models.CharField(max_length=200, blank=True)
    server_state_sha256 = models.CharField(max_length=64, blank=True)
    server_state_size = models.BigIntegerField(default=0)

    class Meta:
        ordering = ["experiment", "round_number"]
        constraints = [
            models.UniqueConstraint(fields=["experiment", "round_number"], name="one_global_model_per_round")
        ]

    def __str__(self) -> str:
        return f"Model of round {self.round_number} of {self.experiment}"

    def dice_of(self, region: str) -> float | None:
        # the mean has a column of its own: a list of models need not fetch all their scores for it
        return dice_of(region, self.dice, {} if region == MEAN else self.scores)


class Artefact(models.Model):
    """A file made from a global model, ready to download: the recipe (JSON) or a MONAI bundle (zip)."""

    class Kind(models.TextChoices):
        RECIPE = "recipe", "Recipe (JSON)"
        BUNDLE = "bundle", "MONAI bundle"

    model = models.ForeignKey(GlobalModel, on_delete=models.CASCADE, related_name="artefacts")
    kind = models.CharField(max_length=12, choices=Kind)
    key = models.CharField(max_length=200)
    sha256 = models.CharField(max_length=64)
    size = models.BigIntegerField()

    class Meta:
        ordering = ["model", "kind"]
        constraints = [models.UniqueConstraint(fields=["model", "kind"], name="one_artefact_per_kind")]

    def __str__(self) -> str:
        return f"{self.get_kind_display()} of {self.model}"


class Subject(models.Model):
    """A model that a cross-site evaluation measures: one global model, or several whose probabilities are averaged."""

    class Role(models.TextChoices):
        GLOBAL = "global", "Federated"
        BEST = "best", "Federated, best round"
        POOLED = "pooled", "Pooled"
        LOCAL = "local", "Local only"
        ENSEMBLE = "ensemble", "Ensemble"
        CYCLIC = "cyclic", "Cyclic"

    experiment = models.ForeignKey(Experiment, on_delete=models.CASCADE, related_name="subjects")
    name = models.CharField(
        max_length=40, help_text="What its scores are filed under: global, local-mainz, pooled-r4 …"
    )
    role = models.CharField(max_length=12, choices=Role)
    site = models.CharField(max_length=15, blank=True, help_text="Slug of the site that trained it, if one did alone.")
    round_number = models.PositiveIntegerField(
        null=True, blank=True, help_text="Round of the federated run that it goes with; empty: the end."
    )
    global_models = models.ManyToManyField(GlobalModel, related_name="subjects")

    class Meta:
        ordering = ["experiment", "pk"]
        constraints = [models.UniqueConstraint(fields=["experiment", "name"], name="one_subject_of_a_name")]

    def __str__(self) -> str:
        return f"{self.name} of {self.experiment}"


class CaseScore(models.Model):
    """A number of one held-out case, as an evaluation at its site measured it. ``case`` is a pseudonym of the family.

    ``subject``: ``global`` for the model that the evaluation was of, else the name of a :class:`Subject`.
    ``value`` is empty where undefined.
    """

    experiment = models.ForeignKey(Experiment, on_delete=models.CASCADE, related_name="case_scores")
    site = models.CharField(max_length=15)
    subject = models.CharField(max_length=40)
    case = models.CharField(max_length=16)
    name = models.CharField(max_length=8, help_text="dice, or hd95 in mm.")
    region = models.CharField(max_length=40)
    value = models.FloatField(null=True, blank=True)

    class Meta:
        ordering = ["pk"]
        constraints = [
            models.UniqueConstraint(
                fields=["experiment", "site", "subject", "case", "name", "region"], name="a_case_is_measured_once"
            )
        ]

    def __str__(self) -> str:
        return f"{self.subject} at {self.site}: {self.name} {self.region} of {self.case} = {self.value}"
