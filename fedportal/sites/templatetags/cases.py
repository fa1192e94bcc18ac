"""Case counts in templates, as far as the visitor may know them (``{% load cases %}``)."""

from __future__ import annotations

from django import template

from fedportal.sites.counts import CaseCounts, Count, case_counts, count_for
from fedportal.sites.models import Dataset

register = template.Library()


@register.simple_tag(takes_context=True, name="case_counts")
def case_counts_tag(context: template.Context, dataset: Dataset) -> CaseCounts:
    """``{% case_counts dataset as cases %}{{ cases.train }} to train on, {{ cases.validation }} held out``"""
    return case_counts(dataset, context.get("user"))


@register.filter
def public_count(number: int) -> Count:
    """Return a number of cases as everybody may see it, for content that is sent to many people at once."""
    return count_for(None, 0, number)


@register.simple_tag(takes_context=True)
def case_count(context: template.Context, site_id: int, number: int) -> Count:
    """``{% case_count run.participation.site_id run.train_cases %}``"""
    return count_for(context.get("user"), site_id, number)
