"""Form fields made from what connectors declare (``connectors/fields.py``): one function, and the fields it uses.

Secrets are write-only here: no widget shows one, whether stored or just typed into a form that was refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from django import forms
from django.core.files.uploadedfile import UploadedFile
from django.utils.html import escape

from fedportal.connectors.fields import Field
from fedportal.connectors.http import why_refused
from fedportal.sites import certificates

LONGEST = 4000
LONGEST_SECRET = 8000
LONGEST_JSON = 64 * 1024
_AS_TYPED = {"spellcheck": "false", "autocapitalize": "none", "autocomplete": "off"}


def form_field(declared: Field) -> forms.Field:
    """Return the form field for a connector's field. Issued secrets have none: nobody types them."""
    common: dict[str, Any] = {
        "label": declared.label,
        "help_text": escape(declared.help),  # Django's templates render help texts as HTML
        "required": declared.required,
        "initial": declared.default,
    }
    attrs = {"placeholder": declared.placeholder} if declared.placeholder else {}
    field: forms.Field
    match declared.kind:
        case "secret":
            field = SecretField(**common)
        case "url":
            field = AddressField(**common, max_length=LONGEST, widget=forms.TextInput({**_AS_TYPED, **attrs}))
        case "number":
            widget = forms.NumberInput(attrs)
            field = forms.IntegerField(**common, min_value=declared.least, max_value=declared.most, widget=widget)
        case "flag":
            field = forms.BooleanField(**{**common, "required": False})
        case "choice":
            choices = declared.choices if declared.required else (("", "–"), *declared.choices)
            field = forms.ChoiceField(**common, choices=choices)
        case "file":
            field = CertificatesField(**common)
        case "json":
            field = DefinitionField(declared.parts, **common, placeholder=declared.placeholder)
        case _:
            field = forms.CharField(**common, max_length=LONGEST, widget=forms.TextInput({**_AS_TYPED, **attrs}))
    field.unit = declared.unit  # type: ignore[attr-defined]
    return field


class SecretInput(forms.PasswordInput):
    """A password input that shows nothing. A stored secret that is optional has a checkbox to delete it."""

    template_name = "sites/widgets/secret.html"
    is_stored = False

    def __init__(self) -> None:
        super().__init__({"autocomplete": "new-password", "spellcheck": "false"}, render_value=False)

    def get_context(self, name: str, value: Any, attrs: dict[str, Any] | None) -> dict[str, Any]:
        context = super().get_context(name, value, attrs)
        return {**context, "forget": f"{name}-forget" if self.is_stored and not self.is_required else ""}

    def value_from_datadict(self, data: Mapping[str, Any], files: Any, name: str) -> Any:
        typed = super().value_from_datadict(data, files, name)
        return False if not typed and data.get(f"{name}-forget") else typed

    def use_required_attribute(self, initial: Any) -> bool:
        return super().use_required_attribute(initial) and not self.is_stored


class SecretField(forms.CharField):
    """Cleans to the secret, to ``None`` to keep the stored one, or to ``""`` to delete it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "initial": None}, max_length=LONGEST_SECRET, widget=SecretInput())

    def mark_stored(self, *, is_stored: bool) -> None:
        self.widget.is_stored = is_stored
        if is_stored:
            self.help_text = f"{self.help_text} A value is stored. Leave this empty to keep it.".strip()

    def clean(self, value: Any) -> str | None:
        if value is False:
            if not self.required:
                return ""
            value = None
        if self.widget.is_stored and value in self.empty_values:
            return None
        return super().clean(value) or None

    def has_changed(self, initial: Any, data: Any) -> bool:
        return bool(data) or data is False


class AddressField(forms.CharField):
    """An address that the portal will call. Refused if no site can be there; the network is not asked."""

    def to_python(self, value: Any) -> str:
        address = super().to_python(value).rstrip("/")
        if not address:
            return ""
        if reason := why_refused(address):
            raise forms.ValidationError(reason, code="forbidden")
        parts = urlsplit(address)
        if parts.query or parts.fragment or any(letter.isspace() for letter in address):
            raise forms.ValidationError(
                "Enter the address only: no spaces, and nothing after “?” or “#”.", code="shape"
            )
        return address


class CertificatesInput(forms.Textarea):
    """A text area to paste into, with a file input. A chosen file takes precedence over the text."""

    template_name = "sites/widgets/certificates.html"
    needs_multipart_form = True

    def __init__(self) -> None:
        super().__init__({"rows": 4, "spellcheck": "false", "placeholder": "-----BEGIN CERTIFICATE-----"})

    def value_from_datadict(self, data: Mapping[str, Any], files: Any, name: str) -> Any:
        chosen = files.get(f"{name}-file") if files else None
        return chosen or super().value_from_datadict(data, files, name)


class CertificatesField(forms.CharField):
    """Certificates in PEM, uploaded or pasted. Cleans to PEM text with nothing else in it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, widget=CertificatesInput())

    def to_python(self, value: Any) -> str:
        if isinstance(value, UploadedFile):
            if (value.size or 0) > certificates.MOST_BYTES:
                raise forms.ValidationError("This file is too large to be a certificate.", code="size")
            try:
                value = value.read().decode()
            except UnicodeDecodeError as error:
                raise forms.ValidationError(
                    "This is not a text file. If it is a certificate in DER, convert it to PEM: openssl x509 -inform der.",
                    code="shape",
                ) from error
        text = super().to_python(value)
        if not text:
            return ""
        try:
            return certificates.read(text)
        except certificates.BadCertificate as error:
            raise forms.ValidationError(str(error), code="certificate") from error

    def mark_stored(self, pem: str) -> None:
        if pem:
            self.help_text = f"{self.help_text} Stored: {escape('; '.join(certificates.describe(pem)))}.".strip()


class WriteOnlyTextarea(forms.Textarea):
    """A text area that shows nothing: neither the stored value nor what was typed into a form shown again."""

    def format_value(self, value: Any) -> None:
        return None


class DefinitionField(forms.CharField):
    """A pasted JSON object, each declared part of which is checked like a field of its own. Cleans to a dictionary.

    Undeclared members are dropped. It may contain secrets, so all of it is write-only.
    """

    def __init__(self, parts: tuple[Field, ...], *, placeholder: str = "", **options: Any) -> None:
        self.parts = tuple(part for part in parts if not part.issued)
        attrs = {"rows": 6, "spellcheck": "false", "autocomplete": "off", "placeholder": placeholder}
        super().__init__(**{**options, "initial": None}, max_length=LONGEST_JSON, widget=WriteOnlyTextarea(attrs))
        self.is_stored = False

    def mark_stored(self, *, is_stored: bool) -> None:
        self.is_stored = is_stored
        if is_stored:
            self.help_text = f"{self.help_text} A value is stored. Leave this empty to keep it.".strip()
            self.required = self.widget.is_required = False

    def to_python(self, value: Any) -> Any:
        if isinstance(value, dict):  # from the API
            return value
        text = super().to_python(value)
        if not text:
            return {}
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise forms.ValidationError("This is not JSON. Copy it again, from “{” to “}”.", code="json") from error
        if not isinstance(document, dict):
            raise forms.ValidationError("This is JSON but not an object. Copy it again, from “{” to “}”.", code="json")
        return document

    def run_validators(self, value: Any) -> None:
        """Nothing to do: the length is checked on the text, and a document has no validators of its own."""

    def clean(self, value: Any) -> dict[str, Any]:
        if isinstance(value, str) and len(value) > LONGEST_JSON:
            raise forms.ValidationError("This is too long to be a definition. Copy only the definition.", code="size")
        document = super().clean(value)
        if not document:
            return {}
        form = forms.Form(data=_typed(document, self.parts))
        form.fields.update({part.name: form_field(part) for part in self.parts})
        if not form.is_valid():
            wrong = [f"{name}: {error}" for name, errors in form.errors.items() for error in errors]
            raise forms.ValidationError(wrong, code="part")
        return form.cleaned_data

    def has_changed(self, initial: Any, data: Any) -> bool:
        return bool(data)


def _typed(document: Mapping[str, Any], parts: tuple[Field, ...]) -> dict[str, Any]:
    """Return a document's members as a form would send them. Refuses a list or an object in place of a single value."""
    typed = {}
    for part in parts:
        value = document.get(part.name, part.default)
        if isinstance(value, (list, dict)):
            raise forms.ValidationError(f"{part.name}: expected a single value.", code="part")
        typed[part.name] = value
    return typed
