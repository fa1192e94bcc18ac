"""Experiment → round → site run → attempt; what was published; the journal. The rows are the only truth."""

from fedportal.experiments.models.bundle import BundleRequest
from fedportal.experiments.models.experiment import (
    CONTROLLERS_ONLY,
    Baseline,
    Experiment,
    Kind,
    Participation,
    Straggler,
    Weighting,
)
from fedportal.experiments.models.journal import Event, LogPiece, Metric
from fedportal.experiments.models.model import Artefact, CaseScore, GlobalModel, Subject
from fedportal.experiments.models.round import Attempt, Round, RoundKind, SiteRun
from fedportal.experiments.models.scores import MEAN, best_of, dice_of

__all__ = [
    "CONTROLLERS_ONLY",
    "MEAN",
    "Artefact",
    "Attempt",
    "Baseline",
    "BundleRequest",
    "CaseScore",
    "Event",
    "Experiment",
    "GlobalModel",
    "Kind",
    "LogPiece",
    "Metric",
    "Participation",
    "Round",
    "RoundKind",
    "SiteRun",
    "Straggler",
    "Subject",
    "Weighting",
    "best_of",
    "dice_of",
]
