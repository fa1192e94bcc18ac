"""How every form looks: one template for a form, one for a field. And a field for choosing rows of a table."""

from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.forms.renderers import TemplatesSetting


class PortalRenderer(TemplatesSetting):
    """Render forms with ``templates/django/forms/``: label, control, help, errors, ``aria-describedby``.

    A form may give a field a ``unit`` attribute (``form.fields["threads"].unit = "threads"``): it is shown after
    the control. ``{{ form }}`` renders all fields, ``{{ form.name.as_field_group }}`` one.
    """

    form_template_name = "django/forms/form.html"
    field_template_name = "django/forms/field.html"


class RowsField(forms.ModelMultipleChoiceField):
    """Choose rows of a table by checkboxes. Django would pass any integer to the database, which fails on large ones."""

    widget = forms.CheckboxSelectMultiple

    def clean(self, value: Any) -> Any:
        for key in value or ():
            if not (str(key).isascii() and str(key).isdecimal() and len(str(key)) <= 18):
                raise ValidationError(
                    self.error_messages["invalid_pk_value"], code="invalid_pk_value", params={"pk": str(key)[:40]}
                )
        return super().clean(value)
