"""Numbers of a comparison in templates (``{% load compare %}``)."""

from __future__ import annotations

from django import template
from django.conf import settings

from fedportal.monitoring.figures import Chart
from fedportal.monitoring.statistics import Estimate
from fedportal.sites.counts import Count, told_cases

register = template.Library()


@register.filter
def measured(value: float | None, measure: Chart) -> str:
    """Write a number with the decimals of its measure; a dash where there is none."""
    return "–" if value is None else f"{value:.{measure.decimals}f}"


@register.filter
def gained(value: float | None, measure: Chart) -> str:
    """Write a difference with its sign."""
    return "–" if value is None else _signed(value, measure.decimals)


@register.filter
def interval(estimate: Estimate, measure: Chart) -> str:
    """Write an interval: “0.812 to 0.871”; empty where there is none."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"{estimate.low:.{measure.decimals}f} to {estimate.high:.{measure.decimals}f}".replace("-", "−")


@register.filter
def signed_interval(estimate: Estimate, measure: Chart) -> str:
    """Write the interval of a difference: “+0.020 to +0.080”; empty where there is none."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"{_signed(estimate.low, measure.decimals)} to {_signed(estimate.high, measure.decimals)}"


@register.simple_tag(takes_context=True)
def case_count_at(context: template.Context, slug: str, number: int) -> Count:
    """Write a number of cases at a site as far as the visitor may know it."""
    told = told_cases(context.get("user"), slug, number)
    return Count(told) if told is not None else Count(None, settings.FEDPORTAL_SMALL_COUNT)


@register.simple_tag(takes_context=True)
def undefined_cases(context: template.Context, slug: str, number: int) -> str:
    """Say in how many cases a number is undefined: “2 undefined”."""
    told = told_cases(context.get("user"), slug, number)
    return "some undefined" if told is None else f"{told} undefined"


def _signed(value: float, decimals: int) -> str:
    text = f"{value:+.{decimals}f}"
    return text.replace("-", "−") if float(text) else text[1:]
