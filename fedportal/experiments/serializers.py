"""What the API reads and writes. The plan's fields come from :mod:`~fedportal.experiments.recipe`, as the form's do."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from fedportal.accounts.models import User
from fedportal.aggregation.errors import AggregationRefused
from fedportal.aggregation.strategies import WEIGHTING, Strategy, plan_fields
from fedportal.experiments import bundles, services
from fedportal.experiments.api_fields import NumberField, WholeField, field_of
from fedportal.experiments.models import Baseline, Experiment
from fedportal.experiments.models import Kind as ExperimentKind
from fedportal.experiments.plan import (
    PRESETS,
    merged,
    nested,
    preset_plan,
    with_task_of,
)
from fedportal.experiments.readiness import (
    ENSEMBLE_ALONE,
    baseline_problems,
    best_by_problem,
    initial_model_problem,
    is_ensemble_alone,
)
from fedportal.experiments.recipe import BY_NAME, SETTINGS, Kind, Setting, flatten
from fedportal.experiments.review import planned_steps, sentence
from fedportal.experiments.size import datasets_of, demand_of, plan_problems
from fedportal.experiments.states import ExperimentState
from fedportal.sites.models import Dataset, Site
from fedportal.ui.serializers import StrictSerializer
from fedportal.ui.validators import visible_line
from trainer.contract import LOCAL_LAYERS, MAX_REGION_NAME


def _part(prefix: str) -> StrictSerializer:
    chosen = {s.name.removeprefix(f"{prefix}."): field_of(s) for s in SETTINGS if s.name.startswith(f"{prefix}.")}
    return type(f"{prefix.capitalize()}Serializer", (StrictSerializer,), chosen)(required=False)


class RegionSerializer(StrictSerializer):
    name = serializers.CharField(max_length=MAX_REGION_NAME)
    labels = serializers.ListField(child=WholeField(min_value=1), min_length=1, max_length=255)


class TaskSerializer(StrictSerializer):
    """What is segmented. Channels and labels are the datasets'; the regions may be changed."""

    name = serializers.CharField(read_only=True)
    channels = serializers.ListField(child=serializers.CharField(), read_only=True)
    labels = serializers.DictField(child=serializers.CharField(), read_only=True)
    regions = RegionSerializer(many=True, required=False)


FOLLOWS = "Follows from the strategy and its options; sent back as it was read, or not at all."


class PlanSerializer(
    type(
        "PlanSettings",
        (StrictSerializer,),
        {s.name: field_of(s) for s in SETTINGS if s.of_plan and "." not in s.name},
    )
):
    """The training recipe. In a request only what shall change; the answer always has all of it."""

    task = TaskSerializer(required=False)
    network = _part("network")
    optimizer = _part("optimizer")
    schedule = _part("schedule")
    validation = _part("validation")
    proximal_mu = NumberField(min_value=0, max_value=10, required=False, help_text=FOLLOWS)
    local_layers = serializers.ChoiceField(choices=LOCAL_LAYERS, required=False, help_text=FOLLOWS)

    def to_representation(self, instance: Any) -> Any:
        return instance


class ParticipantSerializer(StrictSerializer):
    site = serializers.SlugField(max_length=15, help_text="Short name of the site.")
    dataset = serializers.CharField(max_length=120, help_text="Name of one of the site's datasets.")

    def validate(self, attrs: dict[str, Any]) -> Dataset:
        dataset = Dataset.objects.select_related("site").filter(
            site__in=Site.objects.hospitals(), site__slug=attrs["site"], name=attrs["dataset"]
        )
        if (found := dataset.first()) is None:
            raise serializers.ValidationError(f"There is no dataset {attrs['dataset']} at a site {attrs['site']}.")
        return found

    def to_representation(self, instance: Any) -> dict[str, str]:
        return {"site": instance.site.slug, "dataset": instance.dataset.name}


HEAD = "Key of the first experiment of its family (its repeats and their baselines); null: it is the first."
BESIDE = "Key of the federated run that it stands beside, as a baseline or cross-site evaluation."


class ExperimentRowSerializer(serializers.ModelSerializer):
    """An experiment in a list: without its plan."""

    owner = serializers.CharField(source="owner.username", read_only=True)
    head = serializers.CharField(source="head.key", read_only=True, default=None, allow_null=True, help_text=HEAD)
    beside = serializers.CharField(source="beside.key", read_only=True, default=None, allow_null=True, help_text=BESIDE)
    seed = serializers.IntegerField(source="plan.seed", read_only=True, default=None, allow_null=True)
    baselines = serializers.ListField(child=serializers.CharField(), read_only=True)
    runs_left = serializers.IntegerField(
        read_only=True, help_text="How many of its repeats and baselines are not over."
    )
    round = serializers.IntegerField(source="round_now", allow_null=True, read_only=True)
    sites = serializers.IntegerField(source="site_count", read_only=True)
    dice = serializers.FloatField(source="last_dice", allow_null=True, read_only=True)

    class Meta:
        model = Experiment
        fields = [
            "key", "title", "owner", "kind", "head", "beside", "seed", "repeats", "baselines", "runs_left", "state", "reason", "round", "rounds_planned", "sites", "dice",
            "created_at", "started_at", "ended_at",
        ]  # fmt: skip
        read_only_fields = fields


class DemandSerializer(serializers.Serializer):
    """What a plan takes, about. ``update`` (what a site sends back each round) and ``memory`` are bytes."""

    parameters = serializers.IntegerField()
    update = serializers.IntegerField()
    memory = serializers.IntegerField(
        allow_null=True, help_text="For training at a site; null where it depends on volumes of an unknown size."
    )


class ExperimentSerializer(
    type(
        "ExperimentSettings",
        (StrictSerializer,),
        {s.name: field_of(s) for s in SETTINGS if not s.of_plan},
    )
):
    """An experiment. ``plan`` and the settings can be changed while it is a draft."""

    key = serializers.CharField(read_only=True)
    strategy_options = serializers.DictField(
        required=False,
        help_text="Options of the strategy, by name; what is left out has its default. Those of another strategy are dropped.",
    )
    title = serializers.CharField(max_length=120, required=False, validators=[visible_line])
    question = serializers.CharField(max_length=4000, allow_blank=True, required=False)
    owner = serializers.CharField(source="owner.username", read_only=True)
    viewers = serializers.SerializerMethodField(help_text="With whom the owner shares it.")
    cloned_from = serializers.CharField(source="cloned_from.key", read_only=True, default=None, allow_null=True)
    kind = serializers.ChoiceField(choices=ExperimentKind.choices, read_only=True)
    head = serializers.CharField(source="head.key", read_only=True, default=None, allow_null=True, help_text=HEAD)
    beside = serializers.CharField(source="beside.key", read_only=True, default=None, allow_null=True, help_text=BESIDE)
    family = serializers.SerializerMethodField(
        help_text="The experiment, its repeats and all their baselines, in the order in which they run."
    )
    state = serializers.ChoiceField(choices=ExperimentState.choices(), read_only=True)
    reason = serializers.CharField(read_only=True)
    round = serializers.IntegerField(
        source="round_now",
        read_only=True,
        allow_null=True,
        help_text="Number of the round under way, or of the last one.",
    )
    dice = serializers.FloatField(
        source="last_dice",
        read_only=True,
        allow_null=True,
        help_text="Mean Dice of the newest global model that was measured.",
    )
    participants = ParticipantSerializer(source="participations", many=True, required=False)
    plan = PlanSerializer(required=False)
    summary = serializers.SerializerMethodField(help_text="The plan in one sentence.")
    size = serializers.SerializerMethodField(help_text="What the plan takes; null while it is incomplete.")
    gradient_steps = serializers.SerializerMethodField(
        help_text="Planned steps of the experiment and of every baseline, by name; null where they would tell a small "
        "number of cases, empty while the plan is incomplete."
    )
    created_at = serializers.DateTimeField(read_only=True)
    started_at = serializers.DateTimeField(read_only=True, allow_null=True)
    ended_at = serializers.DateTimeField(read_only=True, allow_null=True)

    @extend_schema_field(serializers.ListField(child=serializers.CharField()))
    def get_viewers(self, experiment: Experiment) -> list[str]:
        first = experiment.head or experiment  # a family has the people of its first experiment
        return sorted(first.viewers.values_list("username", flat=True))

    @extend_schema_field(ExperimentRowSerializer(many=True))
    def get_family(self, experiment: Experiment) -> Any:
        rows = experiment.family.visible_to(self.context["request"].user).with_progress()
        return ExperimentRowSerializer(rows.select_related("owner", "head", "beside"), many=True).data

    @extend_schema_field(serializers.CharField)
    def get_summary(self, experiment: Experiment) -> str:
        return sentence(experiment)

    @extend_schema_field(DemandSerializer(allow_null=True))
    def get_size(self, experiment: Experiment) -> dict[str, Any] | None:
        needed = demand_of(experiment)
        return None if needed is None else DemandSerializer(needed).data

    @extend_schema_field(serializers.DictField(child=serializers.IntegerField(allow_null=True)))
    def get_gradient_steps(self, experiment: Experiment) -> dict[str, int | None]:
        return {steps.name: steps.count for steps in planned_steps(experiment, self.context["request"].user)}

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Refuse values that are right one by one but not together."""
        following = self._following_from_strategy(attrs)
        before = with_task_of(self.plan_before(attrs), attrs.get("participations", []))
        if changes := attrs.get("plan"):
            for name in following.keys() & changes.keys():
                if changes.pop(name) != following[name]:
                    raise serializers.ValidationError({"plan": {name: [FOLLOWS]}})
            document = merged(before, changes)
            found = plan_problems(document, self._datasets(attrs), flatten(changes, BY_NAME))
            together = {name: text for name, text in found.items() if flatten(changes, [name])}
            if together:
                sentences = {name: [f"{text[:1].upper()}{text[1:]}."] for name, text in together.items()}
                raise serializers.ValidationError({"plan": nested(sentences)})
        after = merged(before, attrs.get("plan", {}))
        start = attrs.get("initial_model")
        found = {
            "baselines": self._baselines_problem(attrs),
            "best_by": best_by_problem(attrs["best_by"], after) if "best_by" in attrs else "",
            "initial_model": initial_model_problem(start, after) if start else "",
        }
        if problems := {name: [text] for name, text in found.items() if text}:
            raise serializers.ValidationError(problems)
        return attrs

    def _datasets(self, attrs: dict[str, Any]) -> list[Dataset]:
        before = datasets_of(self.instance) if self.instance else []
        return attrs.get("participations", before)

    def _baselines_problem(self, attrs: dict[str, Any]) -> str:
        """Return why it cannot be compared with what is chosen. With new participants the readiness tells the rest."""
        chosen = attrs.get("baselines", [])
        if self.instance and "participations" not in attrs:
            return " ".join(baseline_problems(self.instance, chosen))
        return ENSEMBLE_ALONE if is_ensemble_alone(chosen) else ""

    def _following_from_strategy(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Return the plan's fields that the strategy decides about; refuse options that it does not take."""
        before = self.instance.strategy if self.instance else services.DEFAULT_STRATEGY
        strategy = attrs.get("strategy", before)
        kept = self.instance.strategy_options if self.instance and strategy == before else {}
        options = attrs.get("strategy_options", kept)
        if WEIGHTING.name in options:
            reason = "How sites are weighted is a setting of its own: “weighting”."
            raise serializers.ValidationError({"strategy_options": [reason]})
        try:
            return plan_fields(strategy, options)
        except AggregationRefused as error:
            raise serializers.ValidationError({"strategy_options": [error.reason]}) from error

    def plan_before(self, attrs: dict[str, Any]) -> dict[str, Any]:
        return self.instance.plan

    def validate_baselines(self, chosen: list[str]) -> list[str]:
        return [one.value for one in Baseline if one.value in chosen]

    def validate_participants(self, datasets: list[Dataset]) -> list[Dataset]:
        if len({dataset.site_id for dataset in datasets}) < len(datasets):
            raise serializers.ValidationError("A site takes part once, with one dataset.")
        return datasets


class NewExperimentSerializer(ExperimentSerializer):
    """A new draft. What is left out comes from the preset."""

    preset = serializers.ChoiceField(
        choices=[(p.name, p.title) for p in PRESETS.values()], default="laptop", write_only=True
    )

    def plan_before(self, attrs: dict[str, Any]) -> dict[str, Any]:
        return preset_plan(PRESETS[attrs["preset"]])


class ProblemSerializer(serializers.Serializer):
    """How every error of the API looks (RFC 9457)."""

    type = serializers.CharField()
    title = serializers.CharField()
    status = serializers.IntegerField()
    detail = serializers.CharField(help_text="What is wrong and what helps, in a sentence.")
    errors = serializers.DictField(required=False, help_text="For refused input: field → sentences.")


class CheckSerializer(serializers.Serializer):
    """One precondition of a start."""

    title = serializers.CharField()
    ok = serializers.BooleanField()
    problems = serializers.ListField(child=serializers.CharField())


class BundleSerializer(serializers.Serializer):
    """How far the MONAI bundle of a model is; when it is ready, it is among the model's files."""

    state = serializers.ChoiceField(choices=[(state, state) for state in bundles.STATES])
    message = serializers.CharField(allow_blank=True, help_text="What is waited for, or why it could not be made.")


class BaselinesSerializer(StrictSerializer):
    """Baselines for the experiment in the context, which has started."""

    baselines = serializers.ListField(
        child=serializers.ChoiceField(choices=Baseline.choices),
        help_text="None: only the cross-site evaluation of the models that there are.",
    )

    def validate_baselines(self, chosen: list[str]) -> list[str]:
        experiment = self.context["experiment"]
        if problems := baseline_problems(experiment, chosen, beside=experiment.baselines):
            raise serializers.ValidationError(problems)
        return chosen


class PersonSerializer(StrictSerializer):
    """One of the people in the context, by user name."""

    username = serializers.CharField(max_length=150)

    def validate_username(self, username: str) -> User:
        if (person := self.context["people"].filter(username=username).first()) is None:
            raise serializers.ValidationError(f"There is nobody of the name {username}.")
        return person


class SettingSerializer(serializers.Serializer):
    """What a setting is for, what it may be, what it is if nobody says."""

    name = serializers.CharField(help_text="Dotted name; those with in_plan stand in the plan, others beside it.")
    in_plan = serializers.BooleanField(source="of_plan")
    label = serializers.CharField()
    help = serializers.CharField()
    kind = serializers.ChoiceField(choices=[(kind.value, kind.value) for kind in Kind])
    unit = serializers.CharField()
    low = serializers.FloatField(allow_null=True)
    high = serializers.FloatField(allow_null=True)
    optional = serializers.BooleanField()
    choices = serializers.SerializerMethodField()
    default = serializers.JSONField()

    def get_choices(self, setting: Setting) -> dict[str, str]:
        return {value: str(label) for value, label in setting.choices}


class PresetSerializer(serializers.Serializer):
    name = serializers.CharField()
    title = serializers.CharField()
    text = serializers.CharField()
    plan = serializers.DictField()


class OptionSerializer(serializers.Serializer):
    """A number that a strategy leaves to the researcher."""

    name = serializers.CharField()
    title = serializers.CharField()
    help = serializers.CharField()
    default = serializers.FloatField()
    low = serializers.FloatField(source="least")
    high = serializers.FloatField(source="most")


class StrategySerializer(serializers.Serializer):
    """A way to aggregate: what it does, where it comes from, what it needs."""

    name = serializers.CharField()
    title = serializers.CharField()
    about = serializers.CharField()
    paper = serializers.CharField()
    weighted = serializers.BooleanField(help_text="Whether sites may count by their cases.")
    min_sites = serializers.IntegerField(help_text="Updates that every round needs.")
    options = serializers.SerializerMethodField()

    @extend_schema_field(OptionSerializer(many=True))
    def get_options(self, strategy: Strategy) -> Any:
        return OptionSerializer([option for option in strategy.options if option is not WEIGHTING], many=True).data


class PlanSchemaSerializer(serializers.Serializer):
    strategies = StrategySerializer(many=True)
    settings = SettingSerializer(many=True)
    presets = PresetSerializer(many=True)
