"""The form of a site: checks what people type before it becomes a connector's configuration."""

from __future__ import annotations

from typing import Any, ClassVar

from django import forms
from django.db.models import Q

from fedportal.accounts.models import Role, User
from fedportal.connectors.fields import Configured, Field, Unfit
from fedportal.sites import services
from fedportal.sites.connection import Card, card, connectors, stored_fields
from fedportal.sites.form_fields import CertificatesField, DefinitionField, SecretField, form_field
from fedportal.sites.models import Dataset, Site
from fedportal.ui.forms import RowsField

RESERVED_SLUGS = {"register"}
"""Words that ``sites/urls.py`` uses in place of a short name."""


class SiteForm(forms.ModelForm):
    """Register or change a site: its name and people, and the fields of one connector.

    Made by :func:`site_form` for a kind of connector. A site with another connector switches to this one and loses the
    old one's settings and secrets.
    """

    kind: ClassVar[str]
    connector: ClassVar[type[Configured]]

    class Meta:
        model = Site
        fields = ["name", "slug", "city", "contact", "stewards"]
        help_texts = {
            "slug": "At most 15 lower-case letters, digits and hyphens. Used in addresses, file names and logs; it cannot be changed later."
        }
        widgets = {"slug": forms.TextInput(attrs={"spellcheck": "false", "autocapitalize": "none"})}
        field_classes = {"stewards": RowsField}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        may_be_named = Q(role=Role.STEWARD, is_active=True)
        if not self.instance._state.adding:
            may_be_named |= Q(sites=self.instance)
            self.fields["slug"].disabled = True
        self.fields["stewards"].queryset = people = User.objects.filter(may_be_named).distinct()
        if not people.exists():
            self.fields["stewards"].help_text = "There are no stewards yet. Add one in the admin, under Users."
        has_this_connector = not self.instance._state.adding and self.instance.connector == self.kind
        self.stored_config: dict[str, Any] = self.instance.config if has_this_connector else {}
        self.stored_secrets: dict[str, str] = self.instance.secrets if has_this_connector else {}
        for declared in self.declared:
            self._prepare(self.fields[declared.name], declared)

    @property
    def declared(self) -> list[Field]:
        """The connector's fields that are in the form."""
        return [field for field in self.connector.FIELDS if field.name in self.base_fields]

    @property
    def card(self) -> Card:
        return card(self.kind)

    @property
    def sections(self) -> tuple[list[forms.BoundField], list[forms.BoundField]]:
        """The connector's bound fields: the usual ones, and the advanced ones, which are collapsed."""
        usual = [self[field.name] for field in self.declared if not field.advanced]
        return usual, [self[field.name] for field in self.declared if field.advanced]

    @property
    def opens_advanced(self) -> bool:
        return any(bound.errors for bound in self.sections[1])

    def _prepare(self, field: forms.Field, declared: Field) -> None:
        """Fill a field with the stored value, or mention it in the help text if it must not be shown."""
        if isinstance(field, SecretField):
            field.mark_stored(is_stored=bool(self.stored_secrets.get(declared.name)))
        elif isinstance(field, DefinitionField):
            field.mark_stored(is_stored=any(part.name in self.stored_config for part in field.parts))
        elif declared.name in self.stored_config:
            self.initial.setdefault(declared.name, self.stored_config[declared.name])
            if isinstance(field, CertificatesField):
                field.mark_stored(self.stored_config[declared.name])

    # --- checking ---------------------------------------------------------------------------

    def clean_slug(self) -> str:
        slug = self.cleaned_data["slug"]
        if slug in RESERVED_SLUGS:
            raise forms.ValidationError("This word is part of the portal's addresses. Choose another.", code="reserved")
        return slug

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean()
        if not any(field.name in self.errors for field in self.declared):
            config, self.typed_secrets = self._taken_apart(cleaned)
            whole = {**self.stored_secrets, **self.typed_secrets}
            try:
                self.config = self.connector.clean_config(config, {name: text for name, text in whole.items() if text})
            except Unfit as refusal:
                self.add_error(self._field_of(refusal.field), refusal.message)
            else:
                self._require_unique()
                cleaned.update({name: value for name, value in self.config.items() if name in self.fields})
        return cleaned

    def _require_unique(self) -> None:
        """Refuse a value that another site, even a retired one, already has."""
        for field in stored_fields(self.connector):
            value = self.config.get(field.name) if field.unique else None
            others = Site.objects.filter(connector=self.kind).exclude(pk=self.instance.pk)
            if value and (other := others.filter(**{f"config__{field.name}": value}).first()):
                text = f"{other} already has the {field.label.lower()} “{value}”. Each site needs its own."
                self.add_error(self._field_of(field.name), text)

    def _taken_apart(self, cleaned: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
        """Return the configuration, including stored settings that the form does not know, and the newly typed secrets."""
        config, secrets = dict(self.stored_config), {}
        for field in self.declared:
            value = cleaned[field.name]
            values = {field.name: value} if not field.parts else value
            for part in field.parts or (field,):
                if part.name not in values:
                    continue
                if part.kind != "secret":
                    config[part.name] = values[part.name]
                elif values[part.name] is not None:
                    secrets[part.name] = values[part.name]
        return config, secrets

    def _field_of(self, name: str) -> str | None:
        """Return the field of the form under which a stored value is typed."""
        holders = {part.name: field.name for field in self.declared for part in field.parts or (field,)}
        return holders.get(name)

    # --- storing ----------------------------------------------------------------------------

    def store(self, *, by: User) -> Site:
        """Register or change the site through the service; a check is due at once. Who did it is recorded."""
        done = self._done()
        values = {name: self.cleaned_data[name] for name in ("name", "city", "contact")}
        values |= {
            "connector": self.kind,
            "config": self.config,
            "stewards": list(self.cleaned_data["stewards"]),
            "secrets": self.typed_secrets,
        }
        if self.instance._state.adding:
            site = services.register(slug=self.cleaned_data["slug"], **values)
        else:
            site = services.update(self.instance, **values)
        services.record_act(site, by=by, text=done)
        return site

    def _done(self) -> str:
        """Describe the change for the history. It names fields but no values: they may be secret."""
        if self.instance._state.adding:
            return f"Registered the site with the connector {self.connector.TITLE}"
        if self.instance.connector != self.kind:
            return f"Switched the site to the connector {self.connector.TITLE}"
        changed = ", ".join(f"“{self[name].label}”" for name in self.changed_data)
        return f"Changed {changed}" if changed else "Saved the site without changes"


def site_form(kind: str) -> type[SiteForm]:
    """Return the form for sites with this kind of connector. Raises ``KeyError`` for one that cannot be chosen."""
    connector = connectors()[kind]
    fields = {field.name: form_field(field) for field in connector.FIELDS if not field.issued}
    return type(SiteForm)(
        "SiteForm", (SiteForm,), {**fields, "kind": kind, "connector": connector, "__module__": __name__}
    )


class CopiesForm(forms.ModelForm):
    """Choose the datasets of other sites whose every case this one holds. Offers only those that fit."""

    class Meta:
        model = Dataset
        fields: ClassVar[list[str]] = ["copy_of"]

    copy_of = RowsField(
        queryset=Dataset.objects.none(),
        required=False,
        label="Holds every case of",
        help_text="The portal can then train the pooled baseline of these datasets here, on one copy of all their cases.",
        error_messages={
            "invalid_choice": "There is no such dataset. Choose from the list.",
            "invalid_pk_value": "“%(pk)s” is not a dataset. Choose from the list.",
        },
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        every = Dataset.objects.filter(site__is_pool=False).select_related("site")
        chosen = set(self.initial.get("copy_of") or ())
        self.fields["copy_of"].queryset = every
        self.fields["copy_of"].widget.choices = [
            (other.pk, str(other))
            for other in every
            if other in chosen or not (other.site.is_retired or services.copy_problem(self.instance, other))
        ]

    def clean_copy_of(self) -> list[Dataset]:
        chosen = list(self.cleaned_data["copy_of"])
        if problems := list(filter(None, (services.copy_problem(self.instance, other) for other in chosen))):
            raise forms.ValidationError(problems)
        return chosen

    def store(self, *, by: User) -> Dataset:
        services.set_copies(self.instance, self.cleaned_data["copy_of"], by=by)
        return self.instance
