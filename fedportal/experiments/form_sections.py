"""What the sections of the composer have in common.

A draft may be incomplete, but never wrong: :meth:`SectionForm.save` stores what was understood, the rest stays on the
page as it was typed, with what to do about it.
"""

from __future__ import annotations

from typing import Any, ClassVar

from django import forms

from fedportal.accounts.models import User
from fedportal.experiments import services
from fedportal.experiments.form_fields import field_of
from fedportal.experiments.models import Experiment
from fedportal.experiments.plan import merged, nested
from fedportal.experiments.recipe import Group, of_section, value_of
from fedportal.experiments.size import datasets_of, plan_problems


class SectionForm(forms.Form):
    """A section of the composer. Knows the draft it edits, and turns its values into changes of it."""

    section: ClassVar[str]
    title: ClassVar[str]
    required_css_class = "field--required"

    def __init__(self, data: Any = None, *, experiment: Experiment, **kwargs: Any) -> None:
        self.experiment = experiment
        super().__init__(data, initial=self.values_of(experiment), **kwargs)
        self.use_required_attribute = False  # an incomplete draft may be saved; the server says what is missing

    @classmethod
    def values_of(cls, experiment: Experiment) -> dict[str, Any]:
        raise NotImplementedError

    def changes(self) -> dict[str, Any]:
        """Return the arguments of ``services.update_draft`` for what was understood."""
        raise NotImplementedError

    def context(self, user: User) -> dict[str, Any]:
        """Return what the section's page shows beside the fields."""
        return {}

    def save(self, by: User) -> bool:
        """Store what was understood; say whether that is all."""
        is_complete = self.is_valid()
        services.update_draft(experiment=self.experiment, by=by, **self.changes())
        return is_complete


class SettingsForm(SectionForm):
    """A section that is made from the table of settings, group by group."""

    def __init__(self, data: Any = None, *, experiment: Experiment, **kwargs: Any) -> None:
        self.settings = [setting for _, settings in of_section(self.section) for setting in settings]
        super().__init__(data, experiment=experiment, **kwargs)
        for setting in self.settings:
            self.fields[setting.field] = field_of(setting)

    @classmethod
    def values_of(cls, experiment: Experiment) -> dict[str, Any]:
        every = (setting for _, settings in of_section(cls.section) for setting in settings)
        return {setting.field: value_of(experiment, setting) for setting in every}

    def groups(self) -> list[tuple[Group, list[forms.BoundField], list[forms.BoundField], bool]]:
        """Return for each group its plain fields, its advanced ones, and whether those need to be seen at once."""
        rows = []
        for group, settings in of_section(self.section):
            plain = [self[setting.field] for setting in settings if not setting.advanced]
            advanced = [self[setting.field] for setting in settings if setting.advanced]
            rows.append((group, plain, advanced, any(field.errors for field in advanced)))
        return rows

    def plan_changes(self) -> dict[str, Any]:
        known = {
            s.name: self.cleaned_data[s.field] for s in self.settings if s.of_plan and s.field in self.cleaned_data
        }
        return nested(known)

    def changes(self) -> dict[str, Any]:
        fields = {
            s.name: self.cleaned_data[s.field]
            for s in self.settings
            if not s.of_plan and s.option is None and s.field in self.cleaned_data
        }
        return {"plan": self.plan_changes(), "fields": fields}

    def clean(self) -> None:
        """Refuse values that are right one by one but not together."""
        by_name = {setting.name: setting.field for setting in self.settings}
        by_name |= {"task.regions": "regions", "local_layers": "network_norm"}
        changed = [setting.name for setting in self.settings if setting.field in self.changed_data]
        document = merged(self.experiment.plan, self.plan_changes())
        for name, text in plan_problems(document, datasets_of(self.experiment), changed).items():
            field = by_name.get(name)
            if field in self.fields and not self.errors.get(field):
                self.add_error(field, f"{text[:1].upper()}{text[1:]}.")
