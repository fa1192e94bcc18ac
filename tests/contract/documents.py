"""Documents of the contract that its tests change one by one."""

import dataclasses
import json

from trainer.contract import (
    CaseScore,
    Fetch,
    JobSpec,
    Kind,
    Manifest,
    MetricRecord,
    Phase,
    Put,
    Region,
    Stored,
    Subject,
    Task,
    TrainingPlan,
    attempt_key,
    canonical_json,
    case_key,
    case_pseudonym,
    run_name,
)

TASK = Task("BRATS", ("FLAIR", "T1w"), {0: "background", 1: "edema"}, (Region("WT", (1,)),))
PLAN = TrainingPlan(task=TASK)
NAME = run_name(experiment="abcd2345", round=3, site="mainz", attempt=2)
SPEC = JobSpec(
    kind=Kind.TRAIN,
    run=NAME,
    experiment="abcd2345",
    round=3,
    site="mainz",
    attempt=2,
    dataset="Task01_BrainTumour",
    plan=PLAN,
    model=Fetch("http://store/model", "0" * 64, 10),
    manifest=Put("http://store/manifest"),
    log=Put("http://store/log"),
    update=Put(part_urls=("http://store/1", "http://store/2"), part_size=5, upload_id="u"),
)
MANIFEST = Manifest(
    run=NAME,
    experiment="abcd2345",
    round=3,
    site="mainz",
    attempt=2,
    kind=Kind.TRAIN,
    exit_code=0,
    message="",
    train_cases=8,
    validation_cases=4,
    steps=12,
    update=Stored("a" * 64, 10, ("etag-1", "etag-2")),
    metrics=(MetricRecord(Phase.TRAIN, "loss", 0.5, step=1),),
    seconds={"train": 1.5},
)
KEY = attempt_key(b"secret", NAME)
CASES = case_key(b"secret", "abcd2345")
SOMEBODY, SOMEBODY_ELSE = (case_pseudonym(CASES, content) for content in (b"one", b"other"))
LOCAL_MODELS = tuple(Fetch(f"http://store/{name}", name * 64, 10) for name in "ab")
EVALUATION = dataclasses.replace(
    SPEC,
    kind=Kind.EVALUATE,
    update=None,
    case_key=CASES,
    held_out=(SOMEBODY,),
    subjects=(Subject("local-graz", LOCAL_MODELS[:1]), Subject("ensemble", LOCAL_MODELS)),
)
EVALUATED = dataclasses.replace(
    MANIFEST,
    kind=Kind.EVALUATE,
    update=None,
    held_out=(SOMEBODY, SOMEBODY_ELSE),
    cases=(
        CaseScore("global", SOMEBODY, "dice", {"WT": 0.75, "ET": 1.0}),
        CaseScore("local-graz", SOMEBODY_ELSE, "hd95", {"WT": 3.5, "ET": None}),
    ),
    copies=1,
)


def through_json(document):
    return json.loads(canonical_json(document))
