"""How every form looks: one template for a form, one for a field."""

from django.forms.renderers import TemplatesSetting


class PortalRenderer(TemplatesSetting):
    """Render forms with ``templates/django/forms/``: label, control, help, errors, ``aria-describedby``.

    A form may give a field a ``unit`` attribute (``form.fields["threads"].unit = "threads"``): it is shown behind
    the control. ``{{ form }}`` renders all fields, ``{{ form.name.as_field_group }}`` one.
    """

    form_template_name = "django/forms/form.html"
    field_template_name = "django/forms/field.html"
