"""The composer's forms: one for each section, made from the table of settings. They hold every rule about input."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from django import forms
from django.db.models import Q, QuerySet

from fedportal.accounts.models import User
from fedportal.aggregation.strategies import STRATEGIES, Strategy
from fedportal.experiments import baselines
from fedportal.experiments.form_fields import RegionsField, field_of
from fedportal.experiments.form_sections import SectionForm, SettingsForm
from fedportal.experiments.models import MEAN, Baseline, Experiment, GlobalModel, Kind, best_of
from fedportal.experiments.plan import merged
from fedportal.experiments.readiness import (
    baseline_problems,
    dataset_problem,
    initial_model_problem,
    site_problem,
    strategy_problem,
)
from fedportal.experiments.recipe import (
    BASELINE_TEXTS,
    BY_NAME,
    STRATEGY_SETTINGS,
)
from fedportal.experiments.review import step_table
from fedportal.experiments.states import ExperimentState
from fedportal.sites.models import Dataset, Site
from fedportal.ui.forms import RowsField
from fedportal.ui.validators import visible_line


class QuestionForm(SectionForm):
    section, title = "question", "Question"

    name = forms.CharField(
        label="Name",
        max_length=120,
        validators=[visible_line],
        help_text="A name that you will recognise in a list.",
        error_messages={"required": "Give the experiment a name that you will recognise in a list."},
    )
    question = forms.CharField(
        label="Question",
        required=False,
        max_length=4000,
        widget=forms.Textarea(attrs={"rows": 4}),
        help_text="What you want to find out, in a sentence or two. It stands on the experiment's page and in the recipe of its models.",
    )

    @classmethod
    def values_of(cls, experiment: Experiment) -> dict[str, Any]:
        return {"name": experiment.title, "question": experiment.question}

    def changes(self) -> dict[str, Any]:
        renamed = {"name": "title"}
        return {"fields": {renamed.get(name, name): value for name, value in self.cleaned_data.items()}}


@dataclass(frozen=True)
class DatasetChoice:
    """A dataset that can be ticked. ``problem``: why it cannot be trained on; ``unlike``: why not with the chosen ones."""

    dataset: Dataset
    is_ticked: bool
    problem: str
    unlike: str

    @property
    def labels(self) -> list[str]:
        """Return the names of what is segmented, without the background."""
        return [name for number, name in sorted(self.dataset.labels.items()) if number != "0"]

    @property
    def task(self) -> str:
        """Return a text that is the same for datasets that can train one model."""
        return repr(self.dataset.task_signature)


@dataclass(frozen=True)
class SiteCard:
    site: Site
    problem: str
    choices: list[DatasetChoice]

    @property
    def takes_part(self) -> bool:
        return any(choice.is_ticked for choice in self.choices)


class SitesForm(SectionForm):
    section, title = "sites", "Sites and datasets"

    datasets = RowsField(
        queryset=Dataset.objects.none(),
        required=False,
        error_messages={
            "invalid_choice": "A dataset that was chosen is no longer offered. Choose again.",
            "invalid_pk_value": "“%(pk)s” is not a dataset. Choose from the list.",
        },
    )

    def __init__(self, data: Any = None, *, experiment: Experiment, **kwargs: Any) -> None:
        super().__init__(data, experiment=experiment, **kwargs)
        offered = Dataset.objects.filter(site__in=Site.objects.hospitals(), is_available=True)
        chosen = Dataset.objects.filter(participations__experiment=experiment)
        self.fields["datasets"].queryset = (offered | chosen).select_related("site").distinct()

    @classmethod
    def values_of(cls, experiment: Experiment) -> dict[str, Any]:
        return {"datasets": list(experiment.participations.values_list("dataset", flat=True))}

    def cards(self) -> list[SiteCard]:
        """Return the sites with what they offer, each unfit one with the reason; those that take part come first."""
        ticked = {str(value) for value in self["datasets"].value() or ()}
        offered: dict[int, list[DatasetChoice]] = {}
        chosen = [dataset for dataset in self.fields["datasets"].queryset if str(dataset.pk) in ticked]
        for dataset in self.fields["datasets"].queryset:
            unlike = next((other for other in chosen if other.task_signature != dataset.task_signature), None)
            why = difference("Another task: it has", dataset, "the chosen ones have", unlike) if unlike else ""
            choice = DatasetChoice(dataset, str(dataset.pk) in ticked, dataset_problem(dataset), why)
            offered.setdefault(dataset.site_id, []).append(choice)
        sites = (Site.objects.hospitals() | Site.objects.filter(pk__in=offered)).with_last_check()
        cards = [SiteCard(site, site_problem(site), offered.get(site.pk, [])) for site in sites]
        return sorted(cards, key=lambda card: (not card.takes_part, bool(card.problem), card.site.name))

    def clean_datasets(self) -> Iterable[Dataset]:
        datasets = list(self.cleaned_data["datasets"])
        at: dict[int, Dataset] = {}
        for dataset in datasets:
            if (other := at.setdefault(dataset.site_id, dataset)) != dataset:
                raise forms.ValidationError(
                    f"{dataset.site} takes part with one dataset: choose either {other.name} or {dataset.name}."
                )
        first = datasets[0] if datasets else None
        for dataset in datasets:
            if dataset.task_signature != first.task_signature:
                raise forms.ValidationError(
                    f"These cannot train one model: {difference(f'{first} has', first, f'{dataset} has', dataset)} "
                    "Choose datasets with the same channels and labels."
                )
        return datasets

    def changes(self) -> dict[str, Any]:
        return {"participants": self.cleaned_data["datasets"]} if "datasets" in self.cleaned_data else {}


def difference(one: str, dataset: Dataset, other: str, like: Dataset) -> str:
    """Say what two datasets do not have in common, calling them ``one`` and ``other``."""
    if dataset.channels != like.channels:
        return f"{one} the channels {', '.join(dataset.channels)}; {other} {', '.join(like.channels)}."
    labels = [", ".join(f"{n} {name}" for n, name in sorted(d.labels.items())) for d in (dataset, like)]
    return f"{one} the labels {labels[0]}; {other} {labels[1]}."


EXPERIMENTS_OFFERED = 100


def models_to_start_from(experiment: Experiment) -> QuerySet[GlobalModel]:
    """Return what a draft can start from: of each experiment that its owner sees and that fits, the newest and the best
    model; of the one that it is a copy of, every model; and what is chosen already. The API takes any model that fits."""
    others = Experiment.objects.visible_to(experiment.owner).exclude(models=None).exclude(kind=Kind.CROSS_SITE)
    origin = Q(pk=experiment.cloned_from_id)
    offered = {one.pk: one for one in [*others.filter(origin), *others.exclude(origin)[:EXPERIMENTS_OFFERED]]}
    trained: dict[int, list[GlobalModel]] = defaultdict(list)
    rows = GlobalModel.objects.filter(experiment__in=offered, round_number__gt=0).order_by("round_number")
    # the scores of all rounds are a lot to read, and only the Dice of a region needs them
    for model in [*rows.filter(experiment__best_by=MEAN).defer("scores"), *rows.exclude(experiment__best_by=MEAN)]:
        model.experiment = offered[model.experiment_id]
        trained[model.experiment_id].append(model)
    found = {experiment.initial_model_id}
    for pk, models in trained.items():
        if initial_model_problem(models[-1], experiment.plan):
            continue
        if pk != experiment.cloned_from_id:
            models = [models[-1], best_of(models, offered[pk].best_by) or models[-1]]
        found.update(model.pk for model in models)
    return (
        GlobalModel.objects.filter(pk__in=found - {None})
        .select_related("experiment")
        .order_by("-experiment__created_at", "round_number")
    )


class RecipeForm(SettingsForm):
    section, title = "recipe", "Recipe"

    def __init__(self, data: Any = None, *, experiment: Experiment, **kwargs: Any) -> None:
        super().__init__(data, experiment=experiment, **kwargs)
        if self.labels():
            self.fields["regions"] = RegionsField(
                label="Regions",
                help_text="What the model learns to outline, one region a line: a name, a colon and the label numbers it covers.",
                error_messages={"required": "Name at least one region, like tumour: 1."},
            )

        self.fields["initial_model"].queryset = models_to_start_from(experiment)

    def clean(self) -> None:
        super().clean()
        start = self.cleaned_data.get("initial_model")
        if start and (trouble := initial_model_problem(start, merged(self.experiment.plan, self.plan_changes()))):
            self.add_error("initial_model", trouble)
        treatment = self.cleaned_data.get("optimizer_treatment")
        if treatment == "aggregate":
            strategy = STRATEGIES.get(self.experiment.strategy)
            if strategy and strategy.why_no_averaged_moments:
                self.add_error(
                    "optimizer_treatment",
                    f"Does not go with {strategy.title}: {strategy.why_no_averaged_moments}. "
                    "Choose another memory here, or another strategy first.",
                )

    def labels(self) -> dict[str, str]:
        """Return the task's labels, number → name, without the background."""
        labels = (self.experiment.plan.get("task") or {}).get("labels") or {}
        return {number: name for number, name in labels.items() if number != "0"}

    @classmethod
    def values_of(cls, experiment: Experiment) -> dict[str, Any]:
        regions = (experiment.plan.get("task") or {}).get("regions", [])
        return super().values_of(experiment) | {"regions": regions}

    def plan_changes(self) -> dict[str, Any]:
        changes = super().plan_changes()
        if "regions" in self.cleaned_data:
            changes["task"] = {"regions": self.cleaned_data["regions"]}
        return changes


class RoundsForm(SettingsForm):
    section, title = "rounds", "Rounds and aggregation"

    def __init__(self, data: Any = None, *, experiment: Experiment, **kwargs: Any) -> None:
        super().__init__(data, experiment=experiment, **kwargs)
        regions = [region["name"] for region in (experiment.plan.get("task") or {}).get("regions", [])]
        self.fields["best_by"].choices = [(MEAN, "Mean Dice over regions"), *((r, f"Dice of {r}") for r in regions)]

    def strategies(self) -> list[Strategy]:
        """Return what can be chosen, for the explanation under the fields."""
        return list(STRATEGIES.values())

    def options(self) -> dict[str, Any]:
        """Return the chosen strategy's options as far as they were understood."""
        strategy = self.cleaned_data.get("strategy")
        before = self.experiment.strategy_options if strategy == self.experiment.strategy else {}
        own = (s for s in STRATEGY_SETTINGS if s.needs[1] == (strategy,))
        return before | {s.option.name: self.cleaned_data[s.field] for s in own if s.field in self.cleaned_data}

    def changes(self) -> dict[str, Any]:
        changes = super().changes()
        if "strategy" in changes["fields"]:
            changes["fields"]["strategy_options"] = self.options()
        return changes

    def clean(self) -> None:
        super().clean()
        self._forgive_options_of_others()
        sites = self.experiment.participations.count()
        quorum = self.cleaned_data.get("min_sites")
        if sites and quorum and quorum > sites:
            self.add_error("min_sites", f"Only {sites} take part: write a number from 1 to {sites}.")
        strategy = self.cleaned_data.get("strategy")
        if strategy and sites:
            trouble = strategy_problem(self.experiment, strategy, self.options(), sites, quorum=quorum)
            if trouble:
                self.add_error("strategy", trouble)

    def _forgive_options_of_others(self) -> None:
        """Without scripts the options of all strategies stand on the page; only those of the chosen one are judged."""
        chosen = (self.cleaned_data.get("strategy"),)
        for setting in STRATEGY_SETTINGS:
            if setting.needs[1] != chosen:
                self.errors.pop(setting.field, None)


@dataclass(frozen=True)
class BaselineChoice:
    """A baseline that can be ticked. ``problem``: why it cannot be; one that is ticked all the same can be given up."""

    name: str
    label: str
    text: str
    is_ticked: bool
    problem: str

    @property
    def is_closed(self) -> bool:
        return bool(self.problem) and not self.is_ticked


class WithBaselines(forms.BaseForm):
    """A form with baselines to tick, for an experiment that may have some already."""

    experiment: Experiment
    present: Collection[str] = ()

    @cached_property
    def choices(self) -> list[BaselineChoice]:
        """What is not there yet."""
        problems, ticked = baselines.problems(self.experiment), self["baselines"].value() or ()
        return [
            BaselineChoice(one.value, one.label, BASELINE_TEXTS[one], one.value in ticked, problems.get(one.value, ""))
            for one in Baseline
            if one.value not in self.present
        ]

    def clean_baselines(self) -> list[str]:
        chosen = self.cleaned_data["baselines"]
        if problems := baseline_problems(self.experiment, chosen, beside=self.present):
            raise forms.ValidationError(problems)
        return chosen


class ComparisonForm(WithBaselines, SettingsForm):
    section, title = "comparison", "Comparison"

    def context(self, user: User) -> dict[str, Any]:
        return {"steps": step_table(self.experiment, user)}


class BaselinesForm(WithBaselines, forms.Form):
    """What an experiment that has started shall be compared with, beside what it is already."""

    baselines = field_of(BY_NAME["baselines"])

    def __init__(self, data: Any = None, *, experiment: Experiment, **kwargs: Any) -> None:
        self.experiment, self.present = experiment, experiment.baselines
        super().__init__(data, **kwargs)


SECTIONS: dict[str, type[SectionForm]] = {
    form.section: form for form in (QuestionForm, SitesForm, RecipeForm, RoundsForm, ComparisonForm)
}


class FilterForm(forms.Form):
    """What the list of experiments shows."""

    search = forms.CharField(
        required=False, max_length=100, label="Search", widget=forms.TextInput(attrs={"type": "search"})
    )
    state = forms.ChoiceField(required=False, choices=[("", "Any state"), *ExperimentState.choices()])
    mine = forms.BooleanField(required=False, label="Only mine")
