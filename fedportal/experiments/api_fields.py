"""The API's field of each setting, made from the table of settings as the form's fields are."""

from __future__ import annotations

import math
from typing import Any

from rest_framework import serializers

from fedportal.experiments.models import Experiment, GlobalModel
from fedportal.experiments.recipe import Kind, Setting
from fedportal.ui.serializers import StrictSerializer
from trainer.contract import MAX_REGION_NAME


def finite(value: float) -> None:
    if not math.isfinite(value):
        raise serializers.ValidationError("A number is expected.")


class NumberField(serializers.FloatField):
    """A finite JSON number; no text, no true or false."""

    default_validators = [finite]

    def to_internal_value(self, data: Any) -> float:
        if isinstance(data, bool | str):
            self.fail("invalid")
        return super().to_internal_value(data)


class WholeField(serializers.IntegerField):
    """A JSON integer; no text, no true or false, no 2.5."""

    def to_internal_value(self, data: Any) -> int:
        if not isinstance(data, int) or isinstance(data, bool):
            self.fail("invalid")
        return data


class YesNoField(serializers.BooleanField):
    def to_internal_value(self, data: Any) -> bool:
        if not isinstance(data, bool):
            self.fail("invalid", input=data)
        return data


class ModelSerializer(StrictSerializer):
    """A global model of an experiment that you may see."""

    experiment = serializers.CharField(max_length=10, help_text="Key of the experiment.")
    round = WholeField(min_value=0, help_text="Round that published the model; 0: its initial model.")

    def validate(self, attrs: dict[str, Any]) -> GlobalModel:
        visible = Experiment.objects.visible_to(self.context["request"].user)
        models = GlobalModel.objects.filter(experiment__in=visible, experiment__key=attrs["experiment"])
        if (found := models.filter(round_number=attrs["round"]).select_related("experiment").first()) is None:
            raise serializers.ValidationError(
                f"There is no model of round {attrs['round']} of an experiment {attrs['experiment']}."
            )
        return found

    def to_representation(self, instance: Any) -> dict[str, Any]:
        return {"experiment": instance.experiment.key, "round": instance.round_number}


def field_of(setting: Setting) -> serializers.Field:
    """Return the API's field of a setting; every one may be left out of a request."""
    about = f"{setting.help} ({setting.unit})" if setting.unit else setting.help
    common: dict[str, Any] = {"required": False, "help_text": about}
    if setting.optional:
        common["allow_null"] = True
    limits: dict[str, Any] = {"min_value": setting.low, "max_value": setting.high}
    whole_limits = {name: None if limit is None else int(limit) for name, limit in limits.items()}
    match setting.kind:
        case Kind.CHOICE:
            return serializers.ChoiceField(choices=setting.choices, **common)
        case Kind.SOME:
            choice = serializers.ChoiceField(choices=setting.choices)
            return serializers.ListField(child=choice, max_length=len(setting.choices), **common)
        case Kind.REGION:
            return serializers.CharField(max_length=MAX_REGION_NAME, **common)
        case Kind.MODEL:
            return ModelSerializer(**common)
        case Kind.YES_NO:
            return YesNoField(**common)
        case Kind.WHOLE:
            return WholeField(**whole_limits, **common)
        case Kind.NUMBER:
            return NumberField(**limits, **common)
        case Kind.WHOLES:
            return serializers.ListField(child=WholeField(**whole_limits), min_length=1, max_length=7, **common)
        case Kind.WHOLE_TRIPLE:
            return serializers.ListField(child=WholeField(**whole_limits), min_length=3, max_length=3, **common)
        case Kind.NUMBER_TRIPLE:
            return serializers.ListField(child=NumberField(**limits), min_length=3, max_length=3, **common)
