"""The declared experiments as experiments of the portal: made once, started, taken up again, watched to their end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.db.models import Sum

from fedportal.accounts.models import User
from fedportal.experiments import services
from fedportal.experiments.baselines import budget
from fedportal.experiments.models import Experiment, SiteRun
from fedportal.experiments.plan import merged
from fedportal.experiments.states import ExperimentState
from fedportal.monitoring.families import family_of
from fedportal.results.plans import Entry, Setting
from fedportal.sites.models import Dataset

OVER = (ExperimentState.COMPLETED, ExperimentState.CANCELLED, ExperimentState.FAILED)


@dataclass
class Trial:
    """An entry with the experiment that it became: the head of a family."""

    setting: Setting
    entry: Entry
    head: Experiment

    @property
    def steps_planned(self) -> int:
        """Gradient steps of the whole family."""
        planned = budget(self.head)
        return self.head.repeats * (planned.total + sum(planned.baselines[kind] for kind in self.entry.baselines))

    @property
    def steps_done(self) -> int:
        rows = SiteRun.objects.filter(round__experiment__in=self.head.family.order_by())
        return rows.aggregate(steps=Sum("steps"))["steps"] or 0

    @property
    def is_over(self) -> bool:
        """Whether nothing of the family goes on. What stands beside a failed run waits until somebody takes that up."""
        left = self.head.family.exclude(state__in=OVER)
        return not left.exclude(beside__state=ExperimentState.FAILED).exists()

    @property
    def failures(self) -> list[str]:
        """A sentence for each member that did not complete."""
        rest = self.head.family.exclude(state=ExperimentState.COMPLETED)
        return [f"“{member.title}” is “{member.status.label}”: {member.reason}" for member in rest]

    @property
    def progress(self) -> str:
        notes = family_of(self.head).notes()
        return f"{self.setting.title}, {self.entry.title}: {notes[0] if notes else 'complete.'}"

    def start(self) -> None:
        """Start the draft, or what of the family had failed."""
        self.head.refresh_from_db()
        if self.head.is_draft:
            services.start(experiment=self.head, by=self.head.owner)
            return
        for member in self.head.family.filter(state__in=[ExperimentState.FAILED, ExperimentState.PAUSED]):
            services.resume(experiment=member, by=member.owner)


def trial_of(setting: Setting, entry: Entry, *, repeats: int, owner: User, datasets: Sequence[Dataset]) -> Trial:
    """Return the entry's trial: the one of last time, if it was declared in the same way, else a new draft."""
    title = f"{setting.title}: {entry.title}"
    fields = {
        "strategy": entry.strategy,
        "strategy_options": dict(entry.options),
        "repeats": repeats,
        "baselines": sorted(entry.baselines),
        "min_sites": len(datasets),
    }
    plan = _plan(setting, entry)
    for experiment in Experiment.objects.heads().filter(title=title).exclude(state=ExperimentState.CANCELLED):
        same_plan = merged(experiment.plan, plan) == experiment.plan
        if same_plan and all(getattr(experiment, name) == value for name, value in fields.items()):
            return Trial(setting, entry, experiment)
    draft = services.create_draft(owner=owner, title=title, participants=datasets, plan=plan, fields=fields)
    draft.refresh_from_db()
    return Trial(setting, entry, draft)


def _plan(setting: Setting, entry: Entry) -> Mapping[str, Any]:
    of_entry = {
        "optimizer": {"treatment": entry.treatment},
        # the sites' own models are measured as baselines; surface distances once, at the end
        "validation": {"local": False, "hd95_every": setting.plan["rounds"]},
        "seed": 0,
    }
    return merged(setting.plan, of_entry)
