"""Steps that end an experiment: make its files and complete it, or end what runs and cancel it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta

from fedportal.connectors.errors import StoreError, StoreUnreachable
from fedportal.experiments.models.scores import MEAN, best_of
from fedportal.experiments.states import SITE_RUN_OVER, ExperimentState, RoundState, SiteRunState
from fedportal.orchestrator import files, spool
from fedportal.orchestrator.outcomes import Advance, Changes, Outcome, SiteRunChange, Wait
from fedportal.orchestrator.sitework import Tools
from fedportal.orchestrator.snapshot import AttemptView, ModelView, Snapshot
from fedportal.orchestrator.steps.logs import LAST_WORDS
from fedportal.orchestrator.steps.strays import cancel_strays, say_unconfirmed
from fedportal.orchestrator.words import listed, sites

logger = logging.getLogger(__name__)

STRAYS_PATIENCE = 10.0
CANCEL_PATIENCE = 5.0
CANCEL_LIMIT = timedelta(minutes=15)
"""So long a site is asked to end its run before the experiment is cancelled without its word."""
CANCEL_PAUSE = timedelta(seconds=2)


def finish(s: Snapshot, tools: Tools) -> Outcome:
    """DONE, and no round follows: make recipes and bundles, tidy up, complete the experiment."""
    changes = Changes()
    if not s.round.is_evaluation:
        # A planned round that ends makes the next one in the same transaction; only a changed database gets here.
        return Advance(Changes(new_round=(s.round.number + 1, "evaluate")))
    tidying = ("tidy", f"{s.key}-{s.round.number}")
    tools.errands.wait([tidying], STRAYS_PATIENCE)
    if tools.errands.is_under_way(tidying):
        return Wait(s.now + CANCEL_PAUSE)  # it empties the folders in which the bundles are made
    tools.errands.wait(tools.errands.keys("logs", s.key), LAST_WORDS + 1.0)
    say_unconfirmed(cancel_strays(s, tools, changes, patience=STRAYS_PATIENCE), changes)
    made = {(artefact.model, artefact.kind) for artefact in s.artefacts}
    own = () if s.kind == "cross_site" else s.models  # an evaluation only measures the models of others
    changes.artefacts = [files.put_recipe(s, model, tools) for model in own if (model.id, "recipe") not in made]
    for model in _worth_bundling(own, s.best_by) if s.kind == "federated" else ():
        if (model.id, "bundle") in made:
            continue
        try:
            changes.artefacts.append(files.put_bundle(s, model, spool.folder_of(s, model.round_number, tools), tools))
        except StoreUnreachable:
            raise
        except files.TROUBLES as error:
            logger.warning("bundle of %s round %d: %s", s.key, model.round_number, error)
            text = f"{files.no_bundle(model, error)} The models page can ask for it again."
            changes.say("no_bundle", text, level="warn")
    spool.tidy_experiment(s, tools)
    changes.experiment_to = ExperimentState.COMPLETED
    changes.say("completed", _summary(s), level="good")
    return Advance(changes)


def _summary(s: Snapshot) -> str:
    if s.kind == "cross_site":
        models = 1 + len(s.subjects)
        return f"{models} model{'s are' if models != 1 else ' is'} measured at {sites(len(s.admitted))}."
    text = f"The experiment is complete after {s.rounds_planned} round{'s' if s.rounds_planned != 1 else ''}."
    best = best_of(s.models, s.best_by)
    if best is None:
        return text
    of = "" if s.best_by == MEAN else f" of {s.best_by}"
    last = [model for model in s.models if model.dice_of(s.best_by) is not None][-1]
    text += f" Final Dice{of} {last.dice_of(s.best_by):.3f}."
    if best is last:
        return text
    return f"{text} The best model is that of round {best.round_number} with {best.dice_of(s.best_by):.3f}."


def _worth_bundling(models: Sequence[ModelView], best_by: str) -> list[ModelView]:
    """Return the final model and the best one; nobody infers with the random weights of the start."""
    trained = [model for model in models if model.round_number]
    if not trained:
        return []
    chosen = {trained[-1].id: trained[-1]}
    best = best_of(trained, best_by)
    if best is not None:
        chosen[best.id] = best
    return sorted(chosen.values(), key=lambda model: model.round_number)


# --- cancel ---------------------------------------------------------------------------------------


def cancel(s: Snapshot, tools: Tools) -> Outcome:
    """CANCELLING: end what runs at the sites until each has confirmed it, then cancel round and experiment."""
    changes = Changes()
    left = cancel_strays(s, tools, changes, patience=CANCEL_PATIENCE)
    since = s.stopping_since or s.now
    if left and s.now < since + CANCEL_LIMIT:
        names = listed(sorted({stray.site.name for stray in left}))
        reason = f"Waiting for {names} to confirm that the run has ended."
        pause = min(max(0.5, tools.pace.remaining(("cancel", stray.run))) for stray in left)
        return Wait(s.now + min(timedelta(seconds=pause), timedelta(seconds=60)), changes, reason)
    for run in s.site_runs:
        if run.state not in SITE_RUN_OVER:
            changes.site_runs.append(SiteRunChange(run.id, (SiteRunState.CANCELLED,), "The experiment was cancelled."))
    if s.newest is not None and s.round.state not in (RoundState.DONE, RoundState.FAILED):
        changes.round_through = (RoundState.CANCELLED,)
        changes.round_because = "The experiment was cancelled."
    changes.experiment_to = ExperimentState.CANCELLED
    text = "The experiment is cancelled; nothing of it runs at a site any more."
    if left:
        text = "The experiment is cancelled. " + " ".join(_unconfirmed(stray) for stray in left)
    changes.experiment_because = text
    changes.say("cancelled", text, level="warn")
    try:
        spool.tidy_experiment(s, tools)
    except StoreError as error:
        logger.warning("leftovers of %s stay in the store: %s", s.key, error)
        changes.say("untidy", "Some leftovers could not be removed from the object store.", level="warn")
    return Advance(changes)


def _unconfirmed(stray: AttemptView) -> str:
    return (
        f"{stray.site.name} did not confirm within {CANCEL_LIMIT.total_seconds() / 60:.0f} minutes that {stray.run} has "
        "ended: please look there. Its result would not be used."
    )
