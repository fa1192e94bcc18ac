"""Everything that the compare page shows, for the page, the API and the exports alike: what was asked for, answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property

from fedportal.accounts.models import User
from fedportal.experiments.models import MEAN, Experiment, Kind
from fedportal.experiments.plan import differences
from fedportal.experiments.recipe import ALL_SETTINGS
from fedportal.monitoring.comparison import MEASURES, Comparison, Scores, rounds_measured
from fedportal.monitoring.families import Family, family_of
from fedportal.monitoring.figures import Chart, regions_of
from fedportal.monitoring.overlay import Curve, beginnings, budgets, curves
from fedportal.monitoring.statistics import Estimate

MOST_OTHERS = 6
AROUND = {setting.label for setting in ALL_SETTINGS if setting.group in ("baselines", "repeats")}
"""Settings of what stands around a run, not of how it is trained."""


@dataclass(frozen=True)
class Choice:
    """What somebody wants to see. ``round``: of which round the models are; ``None``: the end. ``others``: keys."""

    measure: Chart = MEASURES[0]
    region: str = MEAN
    round: int | None = None
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Column:
    """An experiment in the table of settings, with the gradient steps and the time from its first dispatch to its end."""

    label: str
    experiment: Experiment
    steps: int
    time: timedelta | None


@dataclass(frozen=True)
class Other:
    """Another experiment: its federated model on its own sites' cases. ``mean`` is over its sites."""

    family: Family
    mean: Estimate


@dataclass
class Board:
    family: Family
    choice: Choice
    rounds: list[int]
    user: User
    others: list[Family] = field(default_factory=list)

    @property
    def regions(self) -> list[str]:
        return regions_of(self.family.head.plan)

    @cached_property
    def comparison(self) -> Comparison:
        return _comparison(self.family, self.choice)

    @cached_property
    def other_results(self) -> list[Other]:
        """The other experiments at their end; empty where the region is not one of theirs."""
        found = []
        for other in self.others:
            mean = Estimate()
            if self.choice.region in regions_of(other.head.plan):
                lines = _comparison(other, Choice(self.choice.measure, self.choice.region)).lines
                mean = next((line.mean for line in lines if line.contender.key == "global"), mean)
            found.append(Other(other, mean))
        return found

    @cached_property
    def curves(self) -> list[Curve]:
        return curves(self.family, self.others, measure=self.choice.measure.name, region=self.choice.region)

    @cached_property
    def columns(self) -> list[Column]:
        """The first run with what stands beside it, then the other experiments. Repeats differ in the seed alone."""
        run = self.family.runs[0]
        chosen = [("Federated", run.federated)]
        chosen += [("Pooled", member) for member in run.of(Kind.POOLED)]
        chosen += [("Cyclic", member) for member in run.of(Kind.CYCLIC)]
        for member in run.of(Kind.LOCAL_ONLY):
            site = next((part.site.name for part in member.participations.all()), "")
            chosen.append((f"Local only: {site}", member))
        chosen += [(other.head.title, other.head) for other in self.others]
        members = [member for _, member in chosen]
        steps, began = budgets(members), beginnings(members)
        return [
            Column(
                label, one, steps[one.pk], one.ended_at - began[one.pk] if one.ended_at and one.pk in began else None
            )
            for label, one in chosen
        ]

    @cached_property
    def settings(self) -> list[tuple[str, list[str]]]:
        """The settings that differ: label, value of each column."""
        (_, base), *rest = [(column.label, column.experiment) for column in self.columns]
        found = [{label: (ours, theirs) for label, ours, theirs in differences(base, other)} for _, other in rest]
        labels = list(dict.fromkeys(label for rows in found for label in rows if label not in AROUND))
        table = []
        for label in labels:
            ours = next(rows[label][0] for rows in found if label in rows)
            table.append((label, [ours, *(rows[label][1] if label in rows else ours for rows in found)]))
        return table

    @property
    def query(self) -> list[tuple[str, str]]:
        """What was chosen, as pairs of an address; what is usual is left out."""
        usual, choice = Choice(), self.choice
        chosen = [("measure", choice.measure.name)] if choice.measure != usual.measure else []
        chosen += [("region", choice.region)] if choice.region != usual.region else []
        chosen += [("round", str(choice.round))] if choice.round is not None else []
        return chosen + [("with", key) for key in choice.others]

    @property
    def seeds(self) -> list[int]:
        return [run.federated.plan.get("seed", 0) for run in self.family.runs]


def _comparison(family: Family, choice: Choice) -> Comparison:
    scores = Scores(family, choice.measure, at=choice.round)
    return Comparison(family, scores, measure=choice.measure, region=choice.region)


def board_of(user: User, head: Experiment, query: Mapping[str, Sequence[str]]) -> tuple[Board, dict[str, str]]:
    """Answer a query (``measure, region, round, with``); also return what of it cannot be: name → sentence.

    What cannot be is left out, so that an old address still shows something.
    """
    family, problems = family_of(head), {}
    rounds, regions = rounds_measured(family), regions_of(head.plan)
    measures = {one.name: one for one in MEASURES}

    def one_of(name: str, known: Sequence[str], default: str) -> str:
        found = [value for value in query.get(name, ()) if value]
        if found and found[-1] not in known:
            problems[name] = f"One of {', '.join(known)}." if known else "Nothing can be chosen here."
        return found[-1] if found and found[-1] in known else default

    measure = measures[one_of("measure", list(measures), MEASURES[0].name)]
    region = one_of("region", regions, MEAN)
    at = one_of("round", [str(number) for number in rounds], "")
    keys = [key for key in dict.fromkeys(query.get("with", ())) if key != head.key]
    visible = Experiment.objects.visible_to(user).heads().filter(key__in=keys[:MOST_OTHERS], kind=Kind.FEDERATED)
    others = {one.key: family_of(one) for one in visible if not one.is_draft}
    if missing := [key for key in keys if key not in others]:
        problems["with"] = f"Not an experiment that you can see, or more than {MOST_OTHERS}: {', '.join(missing)}."
    shown = [others[key] for key in keys if key in others]
    choice = Choice(measure, region, int(at) if at else None, tuple(other.head.key for other in shown))
    return Board(family, choice, rounds, user, shown), problems
