"""The steps of a round: pure functions of a snapshot and tools, each returning what to do next.

No step touches a row or the clock. Each may be done again after a crash at any point: names and keys are computed,
and what a site or the store has done already is found done.
"""

from __future__ import annotations

from collections.abc import Callable

from fedportal.experiments.states import ExperimentState, RoundState
from fedportal.orchestrator.outcomes import Fail, Outcome
from fedportal.orchestrator.sitework import Tools
from fedportal.orchestrator.snapshot import Snapshot
from fedportal.orchestrator.steps.closing import aggregate, collect
from fedportal.orchestrator.steps.ending import cancel, finish
from fedportal.orchestrator.steps.logs import take_logs
from fedportal.orchestrator.steps.opening import begin, dispatch, open_round, publish
from fedportal.orchestrator.steps.watching import watch

Step = Callable[[Snapshot, Tools], Outcome]


def _out_of_step(s: Snapshot, _tools: Tools) -> Outcome:
    return Fail(f"{s.round.title} is “{s.round.state.label}”, but the experiment is running.")


STEPS: dict[RoundState, Step] = {
    RoundState.PENDING: open_round,
    RoundState.PUBLISHING: publish,
    RoundState.DISPATCHING: dispatch,
    RoundState.TRAINING: watch,
    RoundState.EVALUATING: watch,
    RoundState.COLLECTING: collect,
    RoundState.AGGREGATING: aggregate,
    RoundState.DONE: finish,
    RoundState.FAILED: _out_of_step,
    RoundState.CANCELLED: _out_of_step,
}


def step_for(s: Snapshot) -> Step:
    """Return the one step that is next."""
    if s.state is ExperimentState.CANCELLING:
        return cancel
    return begin if s.newest is None else STEPS[s.round.state]


__all__ = ["STEPS", "Step", "step_for", "take_logs"]
