"""The API of the front page: what runs, how the sites are, what happened last."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from fedportal.experiments.models import Event
from fedportal.experiments.serializers import ExperimentRowSerializer
from fedportal.monitoring.dashboard import dashboard_of
from fedportal.sites.models import Health, Site


class NewsSerializer(serializers.ModelSerializer):
    """A line of an experiment's journal."""

    experiment = serializers.CharField(source="experiment.key", read_only=True)

    class Meta:
        model = Event
        fields = ["id", "experiment", "at", "level", "kind", "text"]


class SiteHealthSerializer(serializers.ModelSerializer):
    """A site in short. ``problem``: what its last check stumbled over; empty when it is ready."""

    health = serializers.ChoiceField(choices=Health.choices, read_only=True)
    problem = serializers.SerializerMethodField()

    class Meta:
        model = Site
        fields = ["slug", "name", "city", "health", "problem"]

    def get_problem(self, site: Site) -> str:
        step = (site.last_check and site.last_check.first_problem) or {}
        return str(step.get("message", ""))


class CardSerializer(ExperimentRowSerializer):
    where = serializers.CharField(help_text="How far it is, in words.")

    class Meta(ExperimentRowSerializer.Meta):
        fields = [*ExperimentRowSerializer.Meta.fields, "where"]
        read_only_fields = fields


class DashboardSerializer(serializers.Serializer):
    """What the front page shows you; each list is cut where the page cuts it."""

    active = CardSerializer(many=True)
    recent = CardSerializer(many=True, help_text="Those that ended lately.")
    drafts = ExperimentRowSerializer(many=True)
    sites = SiteHealthSerializer(many=True)
    more_sites = serializers.IntegerField(help_text="How many sites are not in the list.")
    events = NewsSerializer(many=True)


class DashboardView(APIView):
    @extend_schema(tags=["read"], responses=DashboardSerializer)
    def get(self, request: Request) -> Response:
        """What runs, how the sites are, what happened last: only what you may see."""
        board = dashboard_of(request.user)

        def cards(found: list[Any]) -> list[dict[str, Any]]:
            return [{**ExperimentRowSerializer(card.experiment).data, "where": card.where} for card in found]

        shown = {
            "active": cards(board.active),
            "recent": cards(board.recent),
            "drafts": ExperimentRowSerializer(board.drafts, many=True).data,
            "sites": SiteHealthSerializer(board.sites, many=True).data,
            "more_sites": board.more_sites,
            "events": NewsSerializer(board.events, many=True).data,
        }
        return Response(shown)
