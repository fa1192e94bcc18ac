"""What crosses the wire between portal and trainer, and the names both sides compute.

Standard library only: this module is the one door between the rooms of the portal and the trainer.
``docs/contract.md`` explains it in prose; a change here that an older peer cannot read raises
:data:`CONTRACT_VERSION`.

The round trip of one attempt::

    portal   spec.json      signed job: plan, inputs (presigned GET), outputs (presigned PUT)
    launch   LaunchTicket   run name, address of the spec, key of the attempt, on the control path
    trainer  metrics        small records while it works (idempotent by attempt, phase, name, region, step)
    trainer  update         safetensors, then log, then *last of all* manifest.json: its existence is the commit
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.contract.checks import CONTRACT_VERSION, MAX_REGION_NAME, ContractError
    from trainer.contract.exits import EXPLANATIONS, PERMANENT, Exit
    from trainer.contract.job import (
        INCOMING_SUBJECT,
        Fetch,
        JobSpec,
        Kind,
        LaunchTicket,
        Put,
        Subject,
        spec_from_json,
    )
    from trainer.contract.names import (
        LOG_NAME,
        MANIFEST_NAME,
        MAX_RUN_NAME,
        OPTIMIZER_NAME,
        POOL_DATASET,
        ROOT,
        SPEC_NAME,
        UPDATE_NAME,
        attempt_prefix,
        check_name,
        global_model_key,
        on_shelf,
        round_prefix,
        run_name,
        server_state_key,
        shelf_folder,
        shelf_of,
        site_of,
    )
    from trainer.contract.plan import (
        AUGMENTATIONS,
        LOCAL_LAYERS,
        LOSSES,
        NETWORKS,
        OPTIMIZERS,
        PRECISIONS,
        SCHEDULES,
        TREATMENTS,
        Network,
        Optimizer,
        Region,
        Schedule,
        Task,
        TrainingPlan,
        Validation,
        has_norm_entries,
        plan_from_json,
        plan_problems,
    )
    from trainer.contract.regions import regions_for
    from trainer.contract.report import (
        CaseScore,
        Manifest,
        MetricRecord,
        Phase,
        Stored,
        manifest_from_json,
        metric_from_json,
        records_in_log,
    )
    from trainer.contract.signing import (
        MAX_JSON_BYTES,
        attempt_key,
        canonical_json,
        case_key,
        case_pseudonym,
        metrics_token,
        relay_token,
        signed,
        site_key,
        verified,
    )
    from trainer.contract.size import (
        activations_of,
        divisor,
        input_shape,
        parameters_of,
        swin_width,
        training_memory,
        update_bytes,
    )

__all__ = [
    "AUGMENTATIONS",
    "CONTRACT_VERSION",
    "EXPLANATIONS",
    "INCOMING_SUBJECT",
    "LOCAL_LAYERS",
    "LOG_NAME",
    "LOSSES",
    "MANIFEST_NAME",
    "MAX_JSON_BYTES",
    "MAX_REGION_NAME",
    "MAX_RUN_NAME",
    "NETWORKS",
    "OPTIMIZERS",
    "OPTIMIZER_NAME",
    "PERMANENT",
    "POOL_DATASET",
    "PRECISIONS",
    "ROOT",
    "SCHEDULES",
    "SPEC_NAME",
    "TREATMENTS",
    "UPDATE_NAME",
    "CaseScore",
    "ContractError",
    "Exit",
    "Fetch",
    "JobSpec",
    "Kind",
    "LaunchTicket",
    "Manifest",
    "MetricRecord",
    "Network",
    "Optimizer",
    "Phase",
    "Put",
    "Region",
    "Schedule",
    "Stored",
    "Subject",
    "Task",
    "TrainingPlan",
    "Validation",
    "activations_of",
    "attempt_key",
    "attempt_prefix",
    "canonical_json",
    "case_key",
    "case_pseudonym",
    "check_name",
    "divisor",
    "global_model_key",
    "has_norm_entries",
    "input_shape",
    "manifest_from_json",
    "metric_from_json",
    "metrics_token",
    "on_shelf",
    "parameters_of",
    "plan_from_json",
    "plan_problems",
    "records_in_log",
    "regions_for",
    "relay_token",
    "round_prefix",
    "run_name",
    "server_state_key",
    "shelf_folder",
    "shelf_of",
    "signed",
    "site_key",
    "site_of",
    "spec_from_json",
    "swin_width",
    "training_memory",
    "update_bytes",
    "verified",
]

_PARTS = ("checks", "exits", "names", "signing", "job", "plan", "regions", "report", "size")


def __getattr__(name: str) -> Any:
    """Return a name of :data:`__all__` when it is first asked for: a site's task begins with few of them, and making all
    the classes of plans and reports would take half of its start."""
    if name in __all__:
        for part in _PARTS:  # those that import nothing of the others first
            found = vars(import_module(f"{__name__}.{part}"))
            if name in found:
                return globals().setdefault(name, found[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
