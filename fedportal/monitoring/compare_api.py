"""The API of the compare page: the same numbers, sentences and settings."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from fedportal.monitoring import verdict
from fedportal.monitoring.access import visible_head
from fedportal.monitoring.api import AFTER, LIMIT, whole_number
from fedportal.monitoring.board import Board, board_of
from fedportal.monitoring.compare_exports import case_dicts, withheld_sites
from fedportal.monitoring.comparison import Role
from fedportal.monitoring.families import family_of
from fedportal.monitoring.rows import BATCH
from fedportal.sites.counts import told_cases


class EstimateSerializer(serializers.Serializer):
    """A number with its 95 % bootstrap interval over cases (and over seeds, where it was repeated); null: not known."""

    value = serializers.FloatField(allow_null=True)
    low = serializers.FloatField(allow_null=True)
    high = serializers.FloatField(allow_null=True)


class SiteScoreSerializer(EstimateSerializer):
    site = serializers.CharField()
    undefined = serializers.IntegerField(
        allow_null=True, help_text="Cases in which the number is undefined; null where so small a number is withheld."
    )


class LineSerializer(serializers.Serializer):
    model = serializers.CharField(help_text="global, best, pooled, ensemble, cyclic, or local-<site>.")
    role = serializers.ChoiceField(choices=Role.choices)
    label = serializers.CharField()
    sites = SiteScoreSerializer(many=True, help_text="On each site's held-out cases.")
    mean = EstimateSerializer(help_text="Over the sites, each counting the same.")


class ContrastSerializer(serializers.Serializer):
    against = serializers.CharField(help_text="The other model.")
    gain = EstimateSerializer(help_text="Positive where the federated model is the better one.")
    percentage = EstimateSerializer(help_text="What it reached of the other's, in percent; Dice only.")
    without = serializers.ListField(
        child=serializers.CharField(), help_text="Names of sites where not both were measured."
    )
    text = serializers.CharField()


class GainSerializer(serializers.Serializer):
    """What a site gets from joining: the federated model against the site's own, on its own held-out cases."""

    site = serializers.CharField()
    name = serializers.CharField()
    federated = EstimateSerializer()
    own = EstimateSerializer()
    gain = EstimateSerializer(help_text="Positive where the federated model is the better one.")
    cases = serializers.IntegerField(allow_null=True, help_text="Null where so small a number is withheld.")
    is_worst = serializers.BooleanField(help_text="Whether the federated model is worst here.")


class OtherSerializer(serializers.Serializer):
    experiment = serializers.CharField()
    title = serializers.CharField()
    mean = EstimateSerializer(help_text="Of its federated model, over its own sites and their cases.")


class ColumnSerializer(serializers.Serializer):
    experiment = serializers.CharField()
    label = serializers.CharField()
    gradient_steps = serializers.IntegerField(help_text="Done so far, of all its sites together.")
    seconds = serializers.FloatField(allow_null=True, help_text="From its first dispatch to its end.")


class ComparedSettingSerializer(serializers.Serializer):
    label = serializers.CharField()
    values = serializers.ListField(child=serializers.CharField(), help_text="One for each of ``experiments``.")


class CurveSerializer(serializers.Serializer):
    """A line: the model after ``rounds[i]`` rounds, ``steps[i]`` gradient steps and ``seconds[i]`` of work."""

    label = serializers.CharField()
    rounds = serializers.ListField(child=serializers.FloatField())
    steps = serializers.ListField(child=serializers.IntegerField())
    seconds = serializers.ListField(child=serializers.FloatField())
    values = serializers.DictField(
        child=serializers.ListField(child=serializers.FloatField(allow_null=True)),
        help_text="By site; under the empty name: the mean over the sites.",
    )


class ComparisonSerializer(serializers.Serializer):
    experiment = serializers.CharField()
    measure = serializers.CharField(help_text="dice, or hd95 in mm.")
    region = serializers.CharField()
    round = serializers.IntegerField(allow_null=True, help_text="Round that the models are of; null: the end.")
    rounds = serializers.ListField(child=serializers.IntegerField(), help_text="Rounds that can be asked for.")
    repeats = serializers.IntegerField()
    headline = serializers.ListField(child=serializers.CharField())
    notes = serializers.ListField(child=serializers.CharField(), help_text="What is not there yet.")
    warnings = serializers.ListField(
        child=serializers.CharField(), help_text="What somebody who reads the numbers has to know."
    )
    lines = LineSerializer(many=True)
    contrasts = ContrastSerializer(many=True)
    gains = GainSerializer(many=True)
    others = OtherSerializer(many=True)
    experiments = ColumnSerializer(many=True)
    settings = ComparedSettingSerializer(many=True, help_text="Those that differ.")
    curves = CurveSerializer(many=True)


class ComparisonView(APIView):
    @extend_schema(
        tags=["read"],
        parameters=[
            OpenApiParameter("measure", str, enum=["dice", "hd95"], default="dice"),
            OpenApiParameter("region", str, description="A region of the plan, or “mean” over all.", default="mean"),
            OpenApiParameter("round", int, description="One of ``rounds``; without: the end."),
            OpenApiParameter("with", str, many=True, description="Keys of other experiments to lay beside it."),
        ],
        responses={200: ComparisonSerializer, 400: OpenApiResponse(description="What cannot be asked for.")},
    )
    def get(self, request: Request, key: str) -> Response:
        """An experiment beside its baselines, repeats and others: means, gains, intervals, curves, settings."""
        head = visible_head(request.user, key)
        board, problems = board_of(request.user, head, dict(request.query_params.lists()))
        if problems:
            raise serializers.ValidationError({name: [text] for name, text in problems.items()})
        return Response(as_json(board))


class CaseScoreSerializer(serializers.Serializer):
    """A number of one held-out case, which is known by its pseudonym."""

    id = serializers.IntegerField()
    repeat = serializers.IntegerField()
    seed = serializers.IntegerField(allow_null=True)
    site = serializers.CharField()
    case = serializers.CharField()
    model = serializers.CharField(help_text="Name that the evaluation gave the model.")
    role = serializers.ChoiceField(choices=Role.choices)
    round = serializers.IntegerField(allow_null=True, help_text="Round that the model is of; null: the end.")
    measure = serializers.CharField(help_text="dice, or hd95 in mm.")
    region = serializers.CharField()
    value = serializers.FloatField(allow_null=True, help_text="Null where undefined.")


class CaseScorePageSerializer(serializers.Serializer):
    next = serializers.IntegerField(help_text="Pass it as ``after`` to go on.")
    withheld = serializers.ListField(
        child=serializers.CharField(), help_text="Sites left out: they have so few cases that their number is withheld."
    )
    results = CaseScoreSerializer(many=True)


class CaseScoresView(APIView):
    """Every number of every held-out case, in the order in which they came in."""

    @extend_schema(tags=["read"], parameters=[AFTER, LIMIT], responses=CaseScorePageSerializer)
    def get(self, request: Request, key: str) -> Response:
        family = family_of(visible_head(request.user, key))
        after = whole_number(request, "after", default=0)
        limit = whole_number(request, "limit", default=500, low=1, high=BATCH)
        rows = list(case_dicts(request.user, family, after=after, limit=limit))
        last = rows[-1]["id"] if rows else after
        return Response({"next": last, "withheld": withheld_sites(request.user, family), "results": rows})


def as_json(board: Board) -> dict[str, Any]:
    comparison, choice = board.comparison, board.choice

    def told(site: str, number: int) -> int | None:
        return told_cases(board.user, site, number)

    return {
        "experiment": board.family.head.key,
        "measure": choice.measure.name,
        "region": choice.region,
        "round": choice.round,
        "rounds": board.rounds,
        "repeats": len(board.family.runs),
        "headline": verdict.headline(comparison),
        "notes": board.family.notes(),
        "warnings": board.family.warnings(),
        "lines": [
            {
                "model": line.contender.key,
                "role": line.contender.role.value,
                "label": line.contender.label,
                "sites": [
                    {"site": cell.site, **vars(cell.estimate), "undefined": told(cell.site, cell.undefined)}
                    for cell in line.cells
                ],
                "mean": vars(line.mean),
            }
            for line in comparison.lines
        ],
        "contrasts": [
            {
                "against": one.other.key,
                "gain": vars(one.gain),
                "percentage": vars(one.percentage),
                "without": list(one.missing),
                "text": verdict.about(comparison, one),
            }
            for one in comparison.contrasts
        ],
        "gains": [
            {
                "site": one.slug,
                "name": one.name,
                "federated": vars(one.federated),
                "own": vars(one.own),
                "gain": vars(one.gain),
                "cases": told(one.slug, one.cases),
                "is_worst": one.is_worst,
            }
            for one in comparison.gains
        ],
        "others": [
            {"experiment": one.family.head.key, "title": one.family.head.title, "mean": vars(one.mean)}
            for one in board.other_results
        ],
        "experiments": [
            {
                "experiment": column.experiment.key,
                "label": column.label,
                "gradient_steps": column.steps,
                "seconds": column.time.total_seconds() if column.time else None,
            }
            for column in board.columns
        ],
        "settings": [{"label": label, "values": values} for label, values in board.settings],
        "curves": [
            {name: getattr(curve, name) for name in ("label", "rounds", "steps", "seconds", "values")}
            for curve in board.curves
        ],
    }
