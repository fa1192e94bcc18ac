"""The form of a site: what people type, checked before it becomes a connector's configuration."""

from __future__ import annotations

import os
from pathlib import PurePosixPath
from typing import Any

from django import forms
from django.db.models import Q

from fedportal.accounts.models import Role, User
from fedportal.sites import services
from fedportal.sites.models import Site

RESERVED_SLUGS = {"register"}
"""Words that ``sites/urls.py`` has in the place of a short name."""


def clean_folder(value: str) -> str:
    """Return an absolute, normalised path of a folder; raise ``ValidationError`` for anything else."""
    path = value.strip()
    if "\0" in path or not PurePosixPath(path).is_absolute():
        raise forms.ValidationError("Give the whole path, beginning with “/”.", code="relative")
    if ".." in PurePosixPath(path).parts:
        raise forms.ValidationError("Give the path without “..”.", code="upwards")
    folder = os.path.normpath(path)
    if folder == "/":
        raise forms.ValidationError("The root of the machine is no folder of data.", code="root")
    return folder


class WriteOnlyTextarea(forms.Textarea):
    """A text area that shows nothing: neither what is stored nor what was typed into a form that is shown again."""

    def format_value(self, value: Any) -> None:
        return None


class CredentialsField(forms.CharField):
    """Credentials, ``name = value`` a line, that can be written and never read.

    Cleans to a dictionary. A name without a value (``token =``) forgets what is stored under it; an empty field keeps
    everything.
    """

    widget = WriteOnlyTextarea(attrs={"rows": 3, "autocomplete": "off", "spellcheck": "false"})

    def to_python(self, value: Any) -> dict[str, str]:
        credentials = {}
        for line in super().to_python(value).splitlines():
            name, equals, secret = (part.strip() for part in line.partition("="))
            if not (line := line.strip()):
                continue
            if not equals or not name.isidentifier():
                # The line itself is not repeated: it may be the secret.
                raise forms.ValidationError("Write one credential a line: name = value.", code="shape")
            credentials[name] = secret
        return credentials

    def has_changed(self, initial: Any, data: Any) -> bool:
        return bool(data)


class SiteForm(forms.ModelForm):
    """Register or change a site. Settings of its connector are fields here and one JSON value in the row."""

    data_root = forms.CharField(
        label="Data folder",
        max_length=400,
        help_text="Folder on this machine that holds one folder per dataset, each with a dataset.json.",
        widget=forms.TextInput(attrs={"placeholder": "/srv/hospital/data", "spellcheck": "false"}),
    )
    work_dir = forms.CharField(
        label="Work folder",
        max_length=400,
        help_text="Folder for run logs and the preprocessed cache; it must not lie inside the data folder.",
        widget=forms.TextInput(attrs={"placeholder": "/srv/hospital/work", "spellcheck": "false"}),
    )
    threads = forms.IntegerField(
        min_value=1, max_value=256, initial=1, help_text="Processor threads that one site run may use here."
    )

    class Meta:
        model = Site
        fields = ["name", "slug", "city", "contact", "connector", "stewards"]
        labels = {"slug": "Short name"}
        widgets = {
            "slug": forms.TextInput(attrs={"spellcheck": "false", "autocapitalize": "none"}),
            "stewards": forms.CheckboxSelectMultiple,
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        may_be_named = Q(role=Role.STEWARD, is_active=True)
        if not self.instance._state.adding:
            may_be_named |= Q(sites=self.instance)
        self.fields["stewards"].queryset = User.objects.filter(may_be_named).distinct()
        self.fields["threads"].unit = "threads"
        if not self.instance._state.adding:
            self.fields["slug"].disabled = True
            for name in ("data_root", "work_dir", "threads"):
                self.initial.setdefault(name, self.instance.config.get(name))

    def clean_slug(self) -> str:
        slug = self.cleaned_data["slug"]
        if slug in RESERVED_SLUGS:
            raise forms.ValidationError("This word is part of the portal's addresses. Choose another.", code="reserved")
        return slug

    def clean_data_root(self) -> str:
        return clean_folder(self.cleaned_data["data_root"])

    def clean_work_dir(self) -> str:
        return clean_folder(self.cleaned_data["work_dir"])

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean()
        data, work = cleaned.get("data_root"), cleaned.get("work_dir")
        if data and work and PurePosixPath(work).is_relative_to(data):
            self.add_error("work_dir", "Choose a folder outside of the data folder: it is never written to.")
        return cleaned

    def _post_clean(self) -> None:
        super()._post_clean()
        if not self.errors:
            self.instance.config = self.connector_config()

    def connector_config(self) -> dict[str, Any]:
        """The connector's settings; ones that this form does not know are kept."""
        known = {name: self.cleaned_data[name] for name in ("data_root", "work_dir", "threads")}
        return {**self.instance.config, **known}

    def store(self) -> Site:
        """Register the site or bring it up to date, through the service; its check is due at once."""
        values = {name: self.cleaned_data[name] for name in ("name", "city", "contact", "connector")}
        values |= {
            "config": self.connector_config(),
            "stewards": list(self.cleaned_data["stewards"]),
            "secrets": self.cleaned_data.get("credentials"),
        }
        if self.instance._state.adding:
            return services.register(slug=self.cleaned_data["slug"], **values)
        return services.update(self.instance, **values)


class SiteAdminForm(SiteForm):
    """The admin's form: also the credentials of connectors that need some (the local one needs none)."""

    credentials = CredentialsField(
        required=False,
        help_text="One a line: name = value. Leave empty to keep what is stored; “name =” forgets one.",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        stored = ", ".join(sorted(self.instance.secrets)) or "nothing"
        self.fields["credentials"].help_text += f" Stored now: {stored}."
