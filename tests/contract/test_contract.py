"""The contract reads what it wrote, and refuses everything else with a sentence."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.contract import (
    CONTRACT_VERSION,
    EXPLANATIONS,
    CaseScore,
    ContractError,
    Exit,
    Fetch,
    JobSpec,
    Kind,
    LaunchTicket,
    Manifest,
    MetricRecord,
    Network,
    Optimizer,
    Phase,
    Put,
    Region,
    Schedule,
    Stored,
    Subject,
    Task,
    TrainingPlan,
    Validation,
    attempt_key,
    attempt_prefix,
    canonical_json,
    case_key,
    case_pseudonym,
    global_model_key,
    has_norm_entries,
    manifest_from_json,
    metric_from_json,
    metrics_token,
    plan_from_json,
    plan_problems,
    run_name,
    signed,
    site_key,
    site_of,
    spec_from_json,
    verified,
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
)


def through_json(document):
    return json.loads(canonical_json(document))


def test_run_names_are_dns_labels_of_at_most_forty_characters():
    longest = run_name(experiment="a" * 8, round=10_000, site="b" * 15, attempt=99)
    assert longest == "fp-aaaaaaaa-r10000-bbbbbbbbbbbbbbb-a99"
    assert len(longest) <= 40


@pytest.mark.parametrize(
    "part",
    [
        {"experiment": "UPPER"},
        {"experiment": "a/../b"},
        {"experiment": ""},
        {"site": "mainz_1"},
        {"site": "-mainz"},
        {"site": "mainz-"},
        {"site": "mainz\n"},
        {"site": "a" * 16},
        {"round": -1},
        {"round": 100_000},
        {"attempt": 0},
        {"attempt": 100},
    ],
)
def test_a_name_that_could_not_be_a_run_is_refused(part):
    with pytest.raises(ContractError):
        run_name(**{"experiment": "abcd", "round": 1, "site": "mainz", "attempt": 1, **part})


def test_two_attempts_never_share_a_key():
    first, second = (attempt_prefix(experiment="abcd", round=1, site="mainz", attempt=n) for n in (1, 2))
    assert not first.startswith(second)
    assert not second.startswith(first)
    assert not global_model_key("abcd", 1).startswith(first)


@pytest.mark.parametrize("plan", [PLAN, dataclasses.replace(PLAN, patch=(64, 64, 32), spacing=(1.5, 1.5, 2.0))])
def test_a_plan_survives_json(plan):
    assert plan_from_json(through_json(plan.to_json())) == plan


def test_spec_and_manifest_survive_signed_json():
    assert spec_from_json(verified(signed(SPEC.to_json(), KEY), KEY)) == SPEC
    assert manifest_from_json(verified(signed(MANIFEST.to_json(), KEY), KEY)) == MANIFEST


def test_a_comparison_survives_signed_json():
    assert spec_from_json(verified(signed(EVALUATION.to_json(), KEY), KEY)) == EVALUATION
    assert manifest_from_json(verified(signed(EVALUATED.to_json(), KEY), KEY)) == EVALUATED


def test_a_peer_that_knows_of_no_comparison_is_understood():
    spec, manifest = through_json(SPEC.to_json()), through_json(MANIFEST.to_json())
    for name in ("case_key", "held_out", "subjects"):
        spec.pop(name)
    for name in ("held_out", "cases"):
        manifest.pop(name)
    assert spec_from_json(spec) == SPEC
    assert manifest_from_json(manifest) == MANIFEST


def test_the_digest_of_a_plan_changes_with_every_field():
    changed = [
        dataclasses.replace(PLAN, seed=1),
        dataclasses.replace(PLAN, optimizer=Optimizer(learning_rate=2e-3)),
        dataclasses.replace(PLAN, task=dataclasses.replace(TASK, labels={0: "background", 1: "oedema"})),
    ]
    assert len({plan.digest() for plan in [PLAN, *changed]}) == 4


REFUSED_PLANS = {
    "task.channels": {"task": dataclasses.replace(TASK, channels=())},
    "task.regions": {"task": dataclasses.replace(TASK, regions=(Region("X", (7,)),))},
    "network.name": {"network": Network(name="transformer9000")},
    "network.channels": {"network": Network(channels=(8,), strides=())},
    "network.strides": {"network": Network(channels=(8, 16), strides=(3,))},
    "network.residual_units": {"network": Network(residual_units=9)},
    "network.norm": {"network": Network(norm="layer")},
    "network.dropout": {"network": Network(dropout=1.0)},
    "loss": {"loss": "mse"},
    "optimizer.name": {"optimizer": Optimizer(name="lion")},
    "optimizer.learning_rate": {"optimizer": Optimizer(learning_rate=float("nan"))},
    "optimizer.weight_decay": {"optimizer": Optimizer(weight_decay=-1)},
    "optimizer.momentum": {"optimizer": Optimizer(momentum=1.0)},
    "optimizer.amsgrad": {"optimizer": Optimizer(name="sgd", amsgrad=True)},
    "optimizer.treatment": {"optimizer": Optimizer(treatment="forget")},
    "schedule.name": {"schedule": Schedule(name="random")},
    "schedule.warmup_rounds": {"schedule": Schedule(warmup_rounds=13)},
    "schedule.final_factor": {"schedule": Schedule(final_factor=2)},
    "schedule.power": {"schedule": Schedule(power=0)},
    "schedule.step_rounds": {"schedule": Schedule(step_rounds=0)},
    "schedule.step_factor": {"schedule": Schedule(step_factor=0)},
    "validation.local": {"validation": Validation(local="yes")},
    "validation.hd95_every": {"validation": Validation(hd95_every=-1)},
    "validation.overlap": {"validation": Validation(overlap=1)},
    "rounds": {"rounds": 0},
    "local_epochs": {"local_epochs": 0},
    "batch_size": {"batch_size": True},
    "patches_per_case": {"patches_per_case": 0},
    "patch": {"patch": (4, 64, 64)},
    "spacing": {"spacing": (0.0, 1.0, 1.0)},
    "augmentation": {"augmentation": "magic"},
    "precision": {"precision": "bfloat8"},
    "threads": {"threads": -1},
    "seed": {"seed": 2**31},
    "proximal_mu": {"proximal_mu": 10.5},
    "local_layers": {"local_layers": "everything"},
}


@pytest.mark.parametrize("name", REFUSED_PLANS)
def test_every_field_of_the_plan_has_a_refused_value_that_names_it(name):
    assert name in plan_problems(dataclasses.replace(PLAN, **REFUSED_PLANS[name]))


@pytest.mark.parametrize("value", [-0.1, 10.5, float("nan"), True, "0.1"])
def test_a_proximal_term_is_a_number_from_0_to_10(value):
    assert "proximal_mu" in plan_problems(dataclasses.replace(PLAN, proximal_mu=value))
    assert not plan_problems(dataclasses.replace(PLAN, proximal_mu=0.01))


@pytest.mark.parametrize(
    ("network", "keeps"),
    [
        (Network(norm="instance"), False),
        (Network(norm="batch"), True),
        (Network(norm="group"), True),
        (Network(name="segresnet", norm="instance"), False),
        (Network(name="dynunet", norm="instance"), True),
        (Network(name="attention_unet", norm="instance"), True),
    ],
)
def test_layers_can_stay_at_a_site_only_where_they_have_something_to_keep(network, keeps):
    plan = dataclasses.replace(PLAN, network=network, local_layers="normalisation")
    assert has_norm_entries(network) is keeps
    assert ("local_layers" not in plan_problems(plan)) is keeps


def test_every_field_of_the_plan_is_covered_by_a_refused_value():
    parts = {"network": Network, "optimizer": Optimizer, "schedule": Schedule, "validation": Validation}
    wanted = {f.name for f in dataclasses.fields(TrainingPlan)} - set(parts) - {"task"}
    wanted |= {f"{part}.{f.name}" for part, cls in parts.items() for f in dataclasses.fields(cls)}
    assert wanted <= set(REFUSED_PLANS)


@pytest.mark.parametrize(
    "break_it",
    [
        lambda d: d.pop("task"),
        lambda d: d.update(batch_size="two"),
        lambda d: d.update(surprise=1),
        lambda d: d["network"].update(depth=3),
        lambda d: d["task"].update(labels="none"),
        lambda d: d["task"].update(regions=[{"name": "X"}]),
        lambda d: d.update(patch=[64, 64]),
        lambda d: d.update(optimizer=None),
    ],
)
def test_a_broken_plan_document_is_a_contract_error(break_it):
    document = through_json(PLAN.to_json())
    break_it(document)
    with pytest.raises(ContractError):
        plan_from_json(document)


@pytest.mark.parametrize(
    "change",
    [
        {"contract": CONTRACT_VERSION + 1},
        {"contract": None},
        {"run": "fp-other-r1-mainz-a1"},
        {"attempt": 3},
        {"kind": "delete"},
        {"update": None},
        {"manifest": None},
        {"model": {"url": "x"}},
        {"plan": {}},
        {"unknown": 1},
    ],
)
def test_a_broken_job_is_a_contract_error(change):
    with pytest.raises(ContractError):
        spec_from_json({**through_json(SPEC.to_json()), **change})


def subject(name: str = "pooled", **changes):
    return {"name": name, "models": [dataclasses.asdict(LOCAL_MODELS[0])], **changes}


@pytest.mark.parametrize(
    "change",
    [
        {"case_key": ""},  # by which name would the cases go?
        {"case_key": "secret"},
        {"case_key": "A" * 64},
        {"case_key": None},
        {"held_out": ["BRATS_007"]},
        {"held_out": [SOMEBODY.upper()]},
        {"held_out": [7]},
        {"held_out": None},
        {"subjects": [subject("global")]},
        {"subjects": [subject(), subject()]},
        {"subjects": [subject("")]},
        {"subjects": [subject("s" * 41)]},
        {"subjects": [subject(models=[])]},
        {"subjects": [subject(models=[{"url": "x"}])]},
        {"subjects": [{"name": "pooled"}]},
        {"kind": "train", "update": dataclasses.asdict(Put("http://store/update"))},
    ],
)
def test_a_comparison_that_would_not_say_what_it_measures_is_refused(change):
    document = through_json(EVALUATION.to_json())
    with pytest.raises(ContractError):
        spec_from_json({**document, **change})


def test_a_training_that_could_not_recognise_the_held_out_cases_is_refused():
    assert spec_from_json(dataclasses.replace(SPEC, case_key=CASES, held_out=(SOMEBODY,)).to_json()).held_out
    with pytest.raises(ContractError, match="no key"):
        spec_from_json(dataclasses.replace(SPEC, held_out=(SOMEBODY,)).to_json())


SCORE = {"subject": "global", "case": SOMEBODY, "name": "dice", "values": {"WT": 0.5}}


@pytest.mark.parametrize(
    "change",
    [
        {"case": "BRATS_007"},
        {"case": "Erika Mustermann"},
        {"case": SOMEBODY + "0"},
        {"case": SOMEBODY + "\n"},
        {"case": int(SOMEBODY[:8], 16)},
        {"subject": ""},
        {"subject": "s" * 41},
        {"subject": None},
        {"name": "loss"},
        {"values": {"WT": float("nan")}},
        {"values": {"WT": float("inf")}},
        {"values": {"WT": "high"}},
        {"values": {"WT": True}},
        {"values": {"W" * 41: 0.5}},
        {"values": [0.5]},
        {"values": None},
        {"surprise": 1},
    ],
)
def test_what_is_no_score_of_a_pseudonymous_case_is_refused(change):
    document = {**through_json(EVALUATED.to_json()), "cases": [SCORE]}
    assert manifest_from_json(document).cases[0].values == {"WT": 0.5}
    with pytest.raises(ContractError):
        manifest_from_json({**document, "cases": [{**SCORE, **change}]})


@pytest.mark.parametrize("held_out", [["BRATS_007"], [None], [""], 7, "ab"])
def test_held_out_cases_leave_their_site_by_pseudonym_only(held_out):
    with pytest.raises(ContractError):
        manifest_from_json({**through_json(EVALUATED.to_json()), "held_out": held_out})


def test_a_case_has_one_pseudonym_in_a_family_of_experiments_and_another_in_every_other():
    assert case_pseudonym(case_key(b"secret", "abcd2345"), b"one") == SOMEBODY != SOMEBODY_ELSE
    assert case_pseudonym(case_key(b"secret", "wxyz2345"), b"one") != SOMEBODY
    assert case_pseudonym(case_key(b"other", "abcd2345"), b"one") != SOMEBODY


@pytest.mark.parametrize(
    "change",
    [
        {"contract": 0},
        {"train_cases": -1},
        {"train_cases": "8"},
        {"steps": True},
        {"message": None},
        {"update": {"sha256": "xyz", "size": 3}},
        {"update": {"sha256": "a" * 64, "size": 0}},
        {"metrics": [{"phase": "train", "name": "loss"}]},
        {"metrics": 3},
        {"seconds": {"train": None}},
        {"surprise": 1},
    ],
)
def test_a_broken_manifest_is_a_contract_error(change):
    with pytest.raises(ContractError):
        manifest_from_json({**through_json(MANIFEST.to_json()), **change})


@pytest.mark.parametrize(
    "change",
    [
        {"phase": "global"},
        {"phase": "dream"},
        {"name": "Loss!"},
        {"name": ""},
        {"name": "x" * 33},
        {"region": "r" * 41},
        {"region": None},
        {"step": -1},
        {"step": 1.5},
        {"cases": -1},
        {"progress": 1.1},
        {"progress": None},
        {"at": -1},
        {"value": "high"},
        {"value": True},
        {"extra": 1},
    ],
)
def test_a_record_that_no_page_could_draw_is_refused(change):
    record = MetricRecord(Phase.TRAIN, "loss", 0.5).to_json()
    with pytest.raises(ContractError):
        metric_from_json({**record, **change})


def test_a_record_with_nan_cannot_even_be_encoded():
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(MetricRecord(Phase.TRAIN, "loss", float("nan")).to_json())
    with pytest.raises(ContractError):
        metric_from_json({**MetricRecord(Phase.TRAIN, "loss", 0.5).to_json(), "value": float("inf")})


def test_a_changed_byte_or_another_key_breaks_the_signature():
    data = signed(SPEC.to_json(), KEY)
    with pytest.raises(ContractError):
        verified(data.replace(b"mainz", b"graz1"), KEY)
    with pytest.raises(ContractError):
        verified(data, attempt_key(b"secret", NAME.replace("a2", "a3")))


@given(st.binary(max_size=200))
def test_no_bytes_pass_as_signed_by_chance(data):
    with pytest.raises(ContractError):
        verified(data, KEY)


def test_deeply_nested_json_is_refused_without_a_crash():
    with pytest.raises(ContractError):
        verified(b"[" * 100_000, KEY)


def test_the_metrics_token_is_not_the_signing_key():
    assert metrics_token(KEY) != KEY
    assert metrics_token(KEY) != metrics_token(attempt_key(b"other", NAME))


def test_each_site_has_a_key_of_its_own_and_each_attempt_its_own_below_it():
    keys = {attempt_key(site_key(b"secret", slug), NAME) for slug in ("mainz", "graz")}
    assert len(keys | {KEY}) == 3
    assert attempt_key(site_key(b"secret", "mainz"), NAME) in keys


@given(st.from_regex(r"[a-z](?:[a-z0-9-]{0,13}[a-z0-9])?", fullmatch=True), st.integers(0, 999), st.integers(1, 9))
def test_the_site_is_read_from_the_name_of_a_run(slug, round, attempt):
    assert site_of(run_name(experiment="abcd", round=round, site=slug, attempt=attempt)) == slug


@pytest.mark.parametrize("name", ["", "mainz", "fp-abcd-r1-mainz", "fp-abcd-r1--a1", NAME + "\n", f"x{NAME}"])
def test_what_is_no_run_name_belongs_to_no_site(name):
    with pytest.raises(ContractError):
        site_of(name)


def test_every_exit_code_has_a_sentence():
    assert set(EXPLANATIONS) == set(Exit)
    assert all(text.endswith(".") for text in EXPLANATIONS.values())


def test_the_ticket_is_plain_json():
    assert through_json(LaunchTicket(NAME, "http://store/spec", KEY).to_json())["run"] == NAME
