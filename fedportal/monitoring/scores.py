"""How good each global model was: Dice per region, from the portal's own means over sites."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from django.db.models import prefetch_related_objects

from fedportal.experiments.bundles import Bundle, bundle_of
from fedportal.experiments.models import Artefact, Experiment, GlobalModel, Metric
from fedportal.monitoring.figures import regions_of
from trainer.contract import Phase


@dataclass(frozen=True)
class Scored:
    """A global model with its Dice per region (``None``: not measured) and the files made from it."""

    model: GlobalModel
    regions: tuple[tuple[str, float | None], ...]
    artefacts: tuple[Artefact, ...]

    @property
    def bundle(self) -> Bundle:
        """How far its MONAI bundle is; the initial model gets none."""
        return bundle_of(self.model)

    @property
    def title(self) -> str:
        return f"Round {self.model.round_number}" if self.model.round_number else "Initial model"


def with_scores(experiment: Experiment, models: Sequence[GlobalModel]) -> list[Scored]:
    """Read the scores of some models; two queries. The model of round *n* was measured in round *n* + 1."""
    found = Metric.objects.filter(
        experiment=experiment,
        site_run=None,
        round_number__in=[model.round_number + 1 for model in models],
        phase=Phase.GLOBAL,
        name="dice",
    ).values_list("round_number", "region", "value")
    values = {(number - 1, region): value for number, region, value in found}
    prefetch_related_objects(models, "artefacts")
    regions = regions_of(experiment.plan)[1:]
    return [
        Scored(
            model,
            tuple((region, values.get((model.round_number, region))) for region in regions),
            tuple(model.artefacts.all()),
        )
        for model in models
    ]
