"""Steps that end a round: count, measure, aggregate, and go on to the next."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fedportal.aggregation.errors import AggregationError, AggregationFailed
from fedportal.aggregation.merge import Contribution
from fedportal.aggregation.strategies import STRATEGIES
from fedportal.experiments.states import RoundState, SiteRunState
from fedportal.orchestrator import spool
from fedportal.orchestrator.outcomes import (
    Advance,
    Changes,
    Fail,
    GlobalNumber,
    NewModel,
    Outcome,
    Score,
    SiteRunChange,
)
from fedportal.orchestrator.sitework import Tools, manifest_of
from fedportal.orchestrator.snapshot import Measurement, SiteRunView, Snapshot
from fedportal.orchestrator.steps.stopping import early_stop
from fedportal.orchestrator.steps.strays import cancel_strays, say_unconfirmed
from fedportal.orchestrator.words import sites
from trainer.contract import OPTIMIZER_NAME, UPDATE_NAME, Stored, global_model_key, server_state_key

OWN_WORK = ("load", "validate_incoming", "train", "validate_local")
"""What a site does for itself; all other time of a round is overhead."""
CANCEL_PATIENCE = 10.0


def collect(s: Snapshot, tools: Tools) -> Outcome:
    """COLLECTING: is the quorum there? In the final evaluation: what did the sites measure?"""
    changes = Changes(part="collect")
    if s.round.is_evaluation:
        _score(s, changes)
        if not s.admitted and s.kind == "cross_site":
            return Fail(_why_not(s, s.site_runs), changes)
        if not s.admitted:
            changes.say(
                "not_measured", "No site could measure the final model; it is kept without a score.", level="warn"
            )
        _end_round(s, changes)
        return Advance(changes)
    missing = [run for run in s.site_runs if run.state is not SiteRunState.ADMITTED]
    late = [run for run in missing if run.state is not SiteRunState.SKIPPED]
    if len(s.admitted) < s.min_sites or (s.stragglers == "fail" and late):
        say_unconfirmed(cancel_strays(s, tools, changes, patience=CANCEL_PATIENCE), changes)
        return Fail(_why_not(s, missing), changes)
    changes.round_through = (RoundState.AGGREGATING,)
    return Advance(changes)


def _why_not(s: Snapshot, missing: Iterable[SiteRunView]) -> str:
    reasons = " ".join(f"{run.site.name}: {run.reason or run.state.label}" for run in missing)
    needed = f"{sites(s.min_sites)} needed" if len(s.admitted) < s.min_sites else "every site has to deliver"
    return f"{s.round.title} has updates from {sites(len(s.admitted))}, {needed}. {reasons}".strip()


def aggregate(s: Snapshot, tools: Tools) -> Outcome:
    """AGGREGATING: merge the admitted updates into the next global model and publish it; score the one before."""
    changes = Changes(part="aggregate")
    reference = spool.model_file(s, s.model, tools)
    updates = [Contribution(run.site.slug, _update_file(s, run, tools), _cases(s, run)) for run in s.admitted]
    method = STRATEGIES.get(s.strategy)
    if method is None:
        return Fail(f"There is no strategy {s.strategy!r}.", changes)
    options = dict(s.strategy_options)
    if any(option.name == "weighting" for option in method.options):
        options.setdefault("weighting", s.weighting)
    number = s.round.number
    out, state_out = spool.global_in_spool(s, number, tools), spool.state_in_spool(s, number, tools)
    try:
        merged = tools.aggregation.aggregate(
            reference=reference,
            contributions=updates,
            strategy=s.strategy,
            options=options,
            state_in=spool.state_file(s, s.model, tools) if method.uses_server_state else None,
            out=out,
            state_out=state_out if method.uses_server_state else None,
            round=number,
        )
        if s.plan.optimizer.treatment == "aggregate" and not method.uses_server_state:
            _average_optimizers(s, tools)
    except AggregationFailed:
        raise  # it was killed or ran out of time or memory: the engine tries again
    except AggregationError as error:
        return Fail(f"The updates could not be aggregated: {error.reason}", changes)
    key = global_model_key(s.key, number)
    tools.store.put_file(key, out, sha256=merged.sha256)
    spool.trust(out, merged.sha256, tools)
    state: dict[str, Any] = {}
    if state_out.exists():
        state_key = server_state_key(s.key, number)
        state_sha256 = tools.store.put_file(state_key, state_out)
        spool.trust(state_out, state_sha256, tools)
        state = {
            "server_state_key": state_key,
            "server_state_sha256": state_sha256,
            "server_state_size": state_out.stat().st_size,
        }
    _score(s, changes)
    changes.model = NewModel(number, key, merged.sha256, merged.size, **state)
    for run in s.admitted:
        changes.site_runs.append(SiteRunChange(run.id, fields={"weight": merged.weights[run.site.slug]}))
    changes.say(
        "aggregated",
        f"{s.round.title} aggregated from {len(s.admitted)} of {sites(len(s.candidates))}.",
        level="good",
        sha256=merged.sha256,
        left_out=[run.site.slug for run in s.site_runs if run.state is not SiteRunState.ADMITTED],
    )
    _end_round(s, changes)
    is_last = number >= s.rounds_planned
    if not is_last and (stop := early_stop(s, changes.score)):
        is_last = True
        changes.rounds_planned = number
        changes.say("stopped_early", stop.text(s), best_round=stop.round_number, dice=stop.dice, waited=stop.waited)
    changes.new_round = (number + 1, "evaluate" if is_last else "train")
    return Advance(changes)


def _update_file(s: Snapshot, run: SiteRunView, tools: Tools) -> Path:
    """Return an admitted update in the spool; after a crash it is fetched again from the store."""
    path = spool.spooled(s, run.attempt, UPDATE_NAME, tools)
    spool.fetch(f"{s.prefix(run.attempt)}/{UPDATE_NAME}", path, Stored(run.update_sha256, run.update_size), tools)
    return path


def _optimizer_file(s: Snapshot, run: SiteRunView, tools: Tools) -> Path:
    """Return the optimizer state beside an admitted update. What this process has not counted, the manifest tells."""
    path = spool.spooled(s, run.attempt, OPTIMIZER_NAME, tools)
    if path not in tools.counted or not path.exists():
        stored = manifest_of(s, run.attempt, tools).optimizer
        spool.fetch(f"{s.prefix(run.attempt)}/{OPTIMIZER_NAME}", path, stored, tools)
    return path


def _cases(s: Snapshot, run: SiteRunView) -> int:
    """Return for how many cases a site counts: those that it trained on, and no more than its dataset has."""
    known = next((p.cases for p in s.participants if p.site.id == run.site.id), 0)
    return min(run.train_cases, known) if known else run.train_cases


def _average_optimizers(s: Snapshot, tools: Tools) -> None:
    states = [Contribution(run.site.slug, _optimizer_file(s, run, tools), _cases(s, run)) for run in s.admitted]
    tools.aggregation.aggregate(
        # in the first round there is no average yet; the first state only lends its layout
        reference=spool.state_file(s, s.model, tools) or states[0].path,
        contributions=states,
        strategy="fedavg",
        options={"weighting": s.weighting},
        state_in=None,
        out=spool.state_in_spool(s, s.round.number, tools),
        state_out=None,
        round=s.round.number,
    )


def _end_round(s: Snapshot, changes: Changes) -> None:
    changes.round_through = (RoundState.DONE,)
    own = [sum(float(run.seconds.get(name, 0.0)) for name in OWN_WORK) for run in s.admitted]
    changes.slowest_site = max(own, default=0.0)


# --- scores ---------------------------------------------------------------------------------------


def _score(s: Snapshot, changes: Changes) -> None:
    counted = {run.site.slug for run in s.admitted}
    measured = [m for m in s.measurements if m.site in counted]
    if not measured:
        return
    numbers = means(measured)
    by_name = {(number.name, number.region): number.value for number in numbers}
    changes.score = Score(
        round_number=s.round.number - 1,
        dice=by_name.get(("dice", "mean")),
        scores={"all": _table((n.name, n.region, n.value) for n in numbers), "sites": _by_site(measured)},
        numbers=tuple(numbers),
    )


def means(measured: Iterable[Measurement]) -> list[GlobalNumber]:
    """Return every number as its mean over sites, each site counting by its cases; undefined values count nowhere."""
    groups: dict[tuple[str, str], list[Measurement]] = defaultdict(list)
    for m in measured:
        groups[m.name, m.region].append(m)
    found = []
    for (name, region), values in sorted(groups.items()):
        defined = [(m.value, max(m.cases, 1)) for m in values if m.value is not None and math.isfinite(m.value)]
        cases = sum(count for _, count in defined)
        # fsum: the same mean, whichever site answered first
        mean = math.fsum(value * count for value, count in defined) / cases if defined else None
        found.append(GlobalNumber(name, region, mean, cases))
    return found


def _table(values: Iterable[tuple[str, str, float | None]]) -> dict[str, dict[str, float | None]]:
    """Return ``{"dice": {"WT": 0.81, "mean": 0.7}, …}``; a number without a region stands under ``""``."""
    table: dict[str, dict[str, float | None]] = defaultdict(dict)
    for name, region, value in values:
        table[name][region] = value
    return dict(table)


def _by_site(measured: Iterable[Measurement]) -> Mapping[str, Any]:
    sites_: dict[str, list[tuple[str, str, float | None]]] = defaultdict(list)
    for m in measured:
        sites_[m.site].append((m.name, m.region, m.value))
    return {site: _table(values) for site, values in sorted(sites_.items())}
