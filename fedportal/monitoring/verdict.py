"""What a comparison says, in plain sentences: the headline of the page and of the API."""

from __future__ import annotations

from fedportal.experiments.models import MEAN, Kind
from fedportal.experiments.plan import listed
from fedportal.experiments.states import ExperimentState
from fedportal.monitoring.comparison import Comparison, Contrast, Role, spread
from fedportal.monitoring.statistics import Estimate

NAMES = {
    Role.BEST: "the model of the best round",
    Role.POOLED: "the pooled model",
    Role.ENSEMBLE: "the ensemble of the local-only models",
    Role.CYCLIC: "cyclic weight transfer",
}
TOO_FEW = "too few cases for an interval"
NOT_MEASURED_YET = "No case scores of the federated model yet. They come with the final evaluation of its run."
NEVER_MEASURED = "There are no case scores of the federated model: its run ended before its final evaluation, or no site holds cases out."
UNSETTLED = "The interval reaches over zero: these cases do not settle which is better."


def headline(comparison: Comparison) -> list[str]:
    """Return what the federated model reached, most important first; what cannot be said is said, too."""
    if comparison.federated is None:
        return [NOT_MEASURED_YET if comparison.family.is_active else NEVER_MEASURED]
    said, is_open = [], []
    pooled = next((one for one in comparison.contrasts if one.other.role == Role.POOLED), None)
    local = next((one for one in comparison.contrasts if one.other.role == Role.LOCAL), None)
    if pooled is not None and pooled.percentage.value is not None:
        said.append(f"Federated reached {_percent(pooled.percentage)} of pooled{without(pooled)}.")
    elif pooled is not None:
        said.append(about(comparison, pooled))
    else:
        is_open.append(f"How much of pooled training it reached is open: {_why_open(comparison, Kind.POOLED)}.")
    if local is not None and local.gain.value is None:
        said.append(about(comparison, local))
    elif local is not None:
        text = f"{'It' if said else 'Federated'} is {_against(comparison, local)} {_name_of(comparison, local)}."
        said.append(text if _is_settled(local.gain) else f"{text} {UNSETTLED}")
    else:
        is_open.append(f"What a hospital reaches alone is open: {_why_open(comparison, Kind.LOCAL_ONLY)}.")
    mean = comparison.lines[0].mean
    if mean.value is not None:
        sites = "its one site" if len(comparison.sites) == 1 else f"the {len(comparison.sites)} sites"
        subject = "Its own" if said else "The federated model's"
        said.append(f"{subject} {_short(comparison)} is {_with_interval(comparison, mean)}, mean over {sites}.")
    return said + is_open


def _why_open(comparison: Comparison, kind: Kind) -> str:
    is_pooled = kind == Kind.POOLED
    if not comparison.family.has(kind):
        return f"there {'is no pooled baseline' if is_pooled else 'are no local-only baselines'} beside it"
    states = {member.status for run in comparison.family.runs for member in run.of(kind)}
    if states <= {ExperimentState.FAILED, ExperimentState.CANCELLED}:
        return f"the {'pooled baseline' if is_pooled else 'local-only baselines'} did not come to the end"
    if comparison.family.is_active:
        return "the cross-site evaluation has not measured it yet"
    return "the pooled model has no number" if is_pooled else "no local-only model has a number at every site"


def about(comparison: Comparison, contrast: Contrast) -> str:
    """Return a contrast as a sentence."""
    if contrast.gain.value is None:
        return f"Federated cannot be compared with {_name_of(comparison, contrast)}: no case has a score of both."
    return f"Federated is {_against(comparison, contrast)} {_name_of(comparison, contrast)}{without(contrast)}."


def without(contrast: Contrast) -> str:
    """Say which sites a contrast leaves out because not both models were measured there; empty for none."""
    return f", without {listed(contrast.missing)}" if contrast.missing else ""


def _name_of(comparison: Comparison, contrast: Contrast) -> str:
    site = comparison.family.site_names.get(contrast.other.site, contrast.other.site)
    return NAMES.get(contrast.other.role) or f"the best local-only model, that of {site}"


def about_sites(comparison: Comparison) -> list[str]:
    """Return what the per-site panel says: who gains, the worst site, how far the sites are apart."""
    gains = comparison.gains
    known = [(one, one.gain.value) for one in gains if one.gain.value is not None]
    said = []
    if known:
        better = [one for one, value in known if value > 0]
        sure = [one for one in better if one.gain.excludes_zero]
        of, get = "site" if len(known) == 1 else "sites", "gets" if 1 in (len(known), len(better)) else "get"
        of += " whose own model was measured" if len(known) < len(gains) else ""
        text = f"{len(better)} of {len(known)} {of} {get} a better model from joining than from training alone."
        said.append(f"{text} {_how_sure(len(sure), len(better))}" if better else text)
        low, least = min(known, key=lambda pair: pair[1])
        word = "gains least" if least > 0 else "loses most"
        if len(known) > 1:
            said.append(f"{low.name} {word}: {_signed(comparison, least)}.")
    federated = spread([one.federated.value for one in gains])
    if federated is not None:
        worst = next(one for one in gains if one.is_worst)
        text = f"The federated model is worst at {worst.name}; its best and worst site are {_size(comparison, federated)} apart"
        alone = spread([one.own.value for one in gains])
        whole = f"{text} (the sites' own models: {_size(comparison, alone)})." if alone is not None else f"{text}."
        said.append(whole)
    return said


def measured(comparison: Comparison) -> str:
    """Return what is measured: “Dice, mean over the regions”."""
    region = "mean over the regions" if comparison.region == MEAN else comparison.region
    return f"{comparison.measure.title}, {region}"


def subject_of(comparison: Comparison) -> str:
    """Return what the numbers are of: what is measured, and of which round the models are if not of the end."""
    at = "" if comparison.at is None else f", models after round {comparison.at}"
    return f"{measured(comparison)}{at}"


def _is_settled(gain: Estimate) -> bool:
    return not gain.has_interval or gain.excludes_zero


def _percent(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.1f} % ({TOO_FEW})"
    return f"{estimate.value:.1f} % (95 % interval {estimate.low:.1f}–{estimate.high:.1f})"


def _short(comparison: Comparison) -> str:
    name = "Dice" if comparison.higher_is_better else "HD95"
    return name if comparison.region == MEAN else f"{name} of {comparison.region}"


def _with_interval(comparison: Comparison, estimate: Estimate) -> str:
    value = _size(comparison, estimate.value or 0.0)
    if estimate.low is None or estimate.high is None:
        return f"{value} ({TOO_FEW})"
    places = comparison.measure.decimals
    return f"{value} (95 % interval {estimate.low:.{places}f} to {estimate.high:.{places}f})"


def _against(comparison: Comparison, contrast: Contrast) -> str:
    """Return “0.051 above (95 % interval 0.020 to 0.080)”; for a distance “0.8 mm shorter than”."""
    gain = contrast.gain
    value = gain.value or 0.0
    if comparison.higher_is_better:
        word = "above" if value >= 0 else "below"
    else:
        word = "better than" if value >= 0 else "worse than"
    sign = 1 if value >= 0 else -1
    if gain.low is None or gain.high is None:
        return f"{_size(comparison, abs(value))} {word} ({TOO_FEW})"
    low, high = sorted((sign * gain.low, sign * gain.high))
    places = comparison.measure.decimals
    interval = f"95 % interval {_number(low, places)} to {_number(high, places)}"
    return f"{_size(comparison, abs(value))} ({interval}) {word}"


def _size(comparison: Comparison, value: float) -> str:
    unit = f" {comparison.measure.unit}" if comparison.measure.unit else ""
    return f"{value:.{comparison.measure.decimals}f}{unit}"


def _signed(comparison: Comparison, value: float) -> str:
    sign = "+" if value >= 0 else "−"
    return f"{sign}{_size(comparison, abs(value))}"


def _number(value: float, places: int) -> str:
    text = f"{value:.{places}f}"
    return text.replace("-", "−") if float(text) else text.lstrip("-")


def _how_sure(sure: int, of: int) -> str:
    if sure == of:
        return "The interval of the gain lies above zero." if of == 1 else "The interval of each gain lies above zero."
    if sure == 0:
        return "No interval of a gain lies above zero: more cases would be needed to be sure."
    return f"For {sure} of them the interval of the gain lies above zero."
