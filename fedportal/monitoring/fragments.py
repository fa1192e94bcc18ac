"""Pieces of the experiment page as HTML: rendered by the page at first, and sent over the socket when they change.

One template each, so the two cannot differ. A fragment depends on the experiment only, never on who looks at it:
one rendering serves all sockets. What only some may do (buttons) is in the page itself and switched by the state.
"""

from __future__ import annotations

from typing import TypedDict

from django.template.loader import render_to_string

from fedportal.experiments.models import Event, Experiment
from fedportal.monitoring.case_table import case_table
from fedportal.monitoring.overview import Overview, RoundRow
from fedportal.monitoring.relatives import Relatives


class Fragment(TypedDict):
    """``html`` is one element whose id is ``id``; where the page has none yet, it goes first into ``into``."""

    id: str
    into: str
    html: str


def head(view: Overview) -> Fragment:
    return {"id": "head", "into": "", "html": render_to_string("monitoring/_head.html", {"view": view})}


def models(view: Overview) -> Fragment:
    return {"id": "models-list", "into": "", "html": render_to_string("monitoring/_models.html", {"view": view})}


def relatives(of: Relatives) -> Fragment:
    return {"id": "relatives", "into": "", "html": render_to_string("monitoring/_relatives.html", {"relatives": of})}


def scores(view: Overview) -> Fragment:
    context = {"styles": view.styles, "lines": case_table(view.experiment, view.styles)}
    return {"id": "scores", "into": "", "html": render_to_string("monitoring/_case_table.html", context)}


def round_row(view: Overview, row: RoundRow) -> Fragment:
    html = render_to_string("monitoring/_round.html", {"experiment": view.experiment, "row": row})
    return {"id": f"round-{row.number}", "into": "rounds", "html": html}


def event(row: Event, *, experiment: Experiment) -> Fragment:
    html = render_to_string("monitoring/_event.html", {"event": row, "experiment": experiment})
    return {"id": f"event-{row.pk}", "into": "feed", "html": html}
