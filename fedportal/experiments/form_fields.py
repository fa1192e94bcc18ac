"""Form fields for what people write in one line, and the field of each setting."""

from __future__ import annotations

import re
from typing import Any

from django import forms

from fedportal.experiments.models import GlobalModel
from fedportal.experiments.plan import region_text
from fedportal.experiments.recipe import BY_NAME, Kind, Setting, number_text
from trainer.contract import MAX_REGION_NAME

SEPARATORS = re.compile(r"[\s,;x×–]+")


class NumbersField(forms.CharField):
    """Several numbers in one line, separated by commas, blanks or “×”; empty is ``None`` where that is allowed."""

    def __init__(self, setting: Setting, **kwargs: Any) -> None:
        self.setting = setting
        self.is_whole = setting.kind in (Kind.WHOLES, Kind.WHOLE_TRIPLE)
        self.count = None if setting.kind is Kind.WHOLES else 3
        super().__init__(**kwargs)

    @property
    def example(self) -> str:
        return {Kind.WHOLES: "8, 16, 32", Kind.WHOLE_TRIPLE: "128 × 128 × 64"}.get(self.setting.kind, "1.5 × 1.5 × 2")

    def prepare_value(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return (" × " if self.count else ", ").join(map(number_text, value))
        return value

    def to_python(self, value: Any) -> list[float] | None:
        text = super().to_python(value)
        if not text:
            return None
        kind = "whole numbers" if self.is_whole else "numbers"
        parts = [part for part in SEPARATORS.split(text.strip()) if part]
        try:
            numbers = [(int if self.is_whole else float)(part) for part in parts]
        except ValueError as error:
            raise forms.ValidationError(f"Write {kind} like {self.example}.") from error
        if self.count and len(numbers) != self.count:
            raise forms.ValidationError(f"Write three {kind} like {self.example}, one for each direction.")
        low, high = self.setting.low, self.setting.high
        wrong = [part[:20] for part, number in zip(parts, numbers, strict=True) if not low <= number <= high]
        if wrong:
            raise forms.ValidationError(f"Each number must be between {low:g} and {high:g}; {wrong[0]} is not.")
        return numbers

    def has_changed(self, initial: Any, data: Any) -> bool:
        return super().has_changed(self.prepare_value(initial), data)


class RegionsField(forms.CharField):
    """Regions, one a line: ``name: label numbers``."""

    widget = forms.Textarea(attrs={"rows": 4, "spellcheck": "false"})

    def prepare_value(self, value: Any) -> Any:
        return region_text(value) if isinstance(value, list | tuple) else value

    def to_python(self, value: Any) -> list[dict[str, Any]]:
        regions = []
        for line in (super().to_python(value) or "").splitlines():
            if not line.strip():
                continue
            name, colon, numbers = line.rpartition(":")
            name = name.strip()
            parts = [part for part in SEPARATORS.split(numbers.strip()) if part]
            if not colon or not name or not parts or not all(part.isdecimal() and len(part) < 6 for part in parts):
                raise forms.ValidationError(
                    f"“{line.strip()[:60]}”: write a name, a colon and label numbers, like WT: 1, 2, 3."
                )
            if len(name) > MAX_REGION_NAME:
                raise forms.ValidationError(f"“{name[:60]}”: a region's name has at most {MAX_REGION_NAME} characters.")
            regions.append({"name": name, "labels": [int(part) for part in parts]})
        return regions


class SomeField(forms.MultipleChoiceField):
    """Any of some choices, each once and in their order."""

    widget = forms.CheckboxSelectMultiple

    def clean(self, value: Any) -> list[str]:
        ticked = super().clean(value)
        return [str(choice) for choice, _ in self.choices if choice in ticked]


class NumberField(forms.FloatField):
    """A number in a text field: a number field of the browser would throw away what it cannot read."""

    widget = forms.TextInput(attrs={"inputmode": "decimal"})

    def prepare_value(self, value: Any) -> Any:
        return number_text(value) if isinstance(value, float) else value


class ModelField(forms.ModelChoiceField):
    def label_from_instance(self, obj: GlobalModel) -> str:
        dice = "" if obj.dice is None else f", Dice {obj.dice:.3f}"
        return f"{obj.experiment.title} ({obj.experiment.key}), round {obj.round_number}{dice}"


def field_of(setting: Setting) -> forms.Field:
    """Return the form field of a setting, with help, unit, range and default."""
    common: dict[str, Any] = {
        "label": setting.label,
        "help_text": " ".join(filter(None, [setting.help, setting.range_text])),
        "required": not setting.optional,
    }
    match setting.kind:
        case Kind.CHOICE:
            field: forms.Field = forms.ChoiceField(choices=setting.choices, **common)
        case Kind.SOME:
            field = SomeField(choices=setting.choices, **{**common, "required": False})
        case Kind.YES_NO:
            field = forms.BooleanField(**{**common, "required": False})
        case Kind.REGION:
            field = forms.ChoiceField(**common)  # the form knows the regions
        case Kind.MODEL:
            field = ModelField(queryset=GlobalModel.objects.none(), empty_label="Random weights", **common)
        case Kind.WHOLE:
            field = forms.IntegerField(min_value=int(setting.low), max_value=int(setting.high), **common)
            field.error_messages["invalid"] = "Write a whole number."
        case Kind.NUMBER:
            field = NumberField(min_value=setting.low, max_value=setting.high, **common)
            field.error_messages["invalid"] = "Write a number with a decimal point, like 0.001."
        case _:
            field = NumbersField(setting, **common)
    field.error_messages["required"] = f"{setting.label} is missing. {setting.range_text}"
    field.unit = setting.unit
    name, values = setting.needs
    if name:  # compose.js hides it while it has no effect
        field.widget.attrs |= {"data-needs": BY_NAME[name].field, "data-values": " ".join(values)}
    return field
