"""The files that are made from a global model: its recipe, and a MONAI bundle.

Functions of a snapshot that has the experiment's models and contributions; each may be done again at any time.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from fedportal.connectors.errors import SiteError, StoreError
from fedportal.connectors.objectstore import sha256_of_file
from fedportal.orchestrator import spool
from fedportal.orchestrator.outcomes import NewArtefact
from fedportal.orchestrator.sitework import Tools
from fedportal.orchestrator.snapshot import ModelView, Snapshot
from fedportal.orchestrator.words import trainer_said
from fedportal.sites.counts import told_cases
from trainer.contract import Stored, round_prefix

logger = logging.getLogger(__name__)

BUNDLE_TIMEOUT = 180.0
RECIPE_NAME = "recipe.json"
BUNDLE_NAME = "bundle.zip"


class BundleFailed(Exception):
    """The trainer could not make a bundle; the text says why, for people."""


TROUBLES = (BundleFailed, SiteError, StoreError, OSError)
"""What :func:`put_bundle` raises when it cannot be done."""


def recipe(s: Snapshot, model: ModelView) -> dict[str, Any]:
    """Return how a global model came about: what a reader needs to judge it or to make it again."""
    return {
        "experiment": {"key": s.key, "title": s.title, "question": s.question, "rounds_planned": s.rounds_planned},
        "round": model.round_number,
        "plan": s.plan.to_json(),
        "aggregation": {"strategy": s.strategy, "options": dict(s.strategy_options), "weighting": s.weighting},
        "initial_model": None if s.start is None else {"title": s.start.title, "sha256": s.start.sha256},
        "best_by": s.best_by,
        "contributions": [
            {
                "site": c.site,
                "train_cases": told_cases(None, c.site, c.train_cases),  # the file is for everybody
                "weight": c.weight,
                "update_sha256": c.update_sha256,
            }
            for c in s.contributions
            if c.round_number == model.round_number
        ],
        "scores": dict(model.scores),
        "dice": model.dice,
        "weights": {"file": Path(model.key).name, "sha256": model.sha256, "size": model.size},
    }


def put_recipe(s: Snapshot, model: ModelView, tools: Tools) -> NewArtefact:
    """Put a model's recipe into the store."""
    data = json.dumps(recipe(s, model), indent=2, sort_keys=True, ensure_ascii=False).encode()
    key = f"{round_prefix(s.key, model.round_number)}/{RECIPE_NAME}"
    sha256 = tools.store.put_bytes(key, data, content_type="application/json")
    return NewArtefact(model.id, "recipe", key, sha256, len(data))


def put_bundle(s: Snapshot, model: ModelView, folder: Path, tools: Tools) -> NewArtefact:
    """Have the trainer make a model's bundle in ``folder`` and put it into the store. Raises :data:`TROUBLES`."""
    folder.mkdir(parents=True, exist_ok=True)
    weights, description, out = folder / "global.safetensors", folder / RECIPE_NAME, folder / BUNDLE_NAME
    spool.fetch(model.key, weights, Stored(model.sha256, model.size), tools)
    description.write_text(json.dumps(recipe(s, model)))
    argv = ["bundle", "--model", str(weights), "--recipe", str(description), "--out", str(out)]
    exit_code, output = tools.trainer(argv, BUNDLE_TIMEOUT)
    if exit_code != 0:
        logger.warning("bundle of %s round %d, exit code %d: %s", s.key, model.round_number, exit_code, output)
        raise BundleFailed(trainer_said(exit_code, output))
    key = f"{round_prefix(s.key, model.round_number)}/{BUNDLE_NAME}"
    sha256 = tools.store.put_file(key, out, sha256=sha256_of_file(out), content_type="application/zip")
    return NewArtefact(model.id, "bundle", key, sha256, out.stat().st_size)


def no_bundle(model: ModelView, error: Exception) -> str:
    """Say that there is no bundle and why, without a path of this machine."""
    return f"The MONAI bundle of the model of round {model.round_number} could not be made: {in_words(error)}"


def in_words(error: Exception) -> str:
    match error:
        case BundleFailed() | SiteError():
            return str(error)
        case StoreError():
            return "The model's weights are gone from the object store, or damaged. Tell an operator."
        case OSError(strerror=str(words)):
            return f"The portal's machine says: {words}. Tell an operator."
    return "The portal stumbled over it. The orchestrator's log has the details for an operator."
