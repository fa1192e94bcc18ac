"""Numbers of a comparison in templates (``{% load compare %}``)."""

from __future__ import annotations

from django import template

from fedportal.monitoring.figures import Chart
from fedportal.monitoring.statistics import Estimate

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


def _signed(value: float, decimals: int) -> str:
    text = f"{value:+.{decimals}f}"
    return text.replace("-", "−") if float(text) else text[1:]
