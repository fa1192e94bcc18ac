"""What the gallery of components shows: one example of everything."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

from django import forms
from django.utils import timezone

from fedportal.ui.icons import ICONS, OF_COLOUR


class GalleryForm(forms.Form):
    """Every kind of control. None does anything; an empty form shows its errors."""

    title = forms.CharField(max_length=120, help_text="A name that you will recognise in a list.")
    question = forms.CharField(widget=forms.Textarea(attrs={"rows": 3}), required=False)
    rounds = forms.IntegerField(min_value=1, max_value=10_000, initial=12)
    rate = forms.DecimalField(label="Learning rate", initial="0.001", help_text="Between 1e-6 and 1.")
    network = forms.ChoiceField(choices=[("unet", "U-Net"), ("segresnet", "SegResNet")])
    sites = forms.MultipleChoiceField(
        choices=[("north", "Northern hospital"), ("south", "Southern hospital"), ("west", "Western hospital")],
        widget=forms.CheckboxSelectMultiple,
        help_text="At least two.",
    )
    stragglers = forms.ChoiceField(
        choices=[("wait", "Wait until the deadline"), ("drop", "Go on without it"), ("fail", "Stop")],
        widget=forms.RadioSelect,
        initial="wait",
    )
    mixed = forms.BooleanField(label="Mixed precision", required=False, help_text="On a CUDA device only.")
    notes = forms.FileField(required=False, label="A file")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["rounds"].unit = "rounds"


def gallery_context() -> dict[str, Any]:
    now = timezone.now()
    labels = {"quiet": "Waiting", "busy": "Training", "good": "Completed", "warn": "Paused", "bad": "Failed"}
    return {
        "states": [SimpleNamespace(colour=colour, label=labels[colour]) for colour in OF_COLOUR],
        "icons": list(ICONS),
        "moments": [now, now - timedelta(minutes=4), now - timedelta(days=3), now + timedelta(hours=2)],
        "sizes": [0, 820, 1_234_567, 76_000_000_000],
        "spans": [0.42, 38, 192, timedelta(hours=2, minutes=5), timedelta(days=3, hours=4)],
        "tokens": ["page", "surface", "sunken", "line", "line-strong", "text", "muted", "accent", *OF_COLOUR],
        "series": range(1, 9),
    }
