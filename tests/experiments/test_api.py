"""The API of experiments: what it gives, takes and refuses."""

from __future__ import annotations

import pytest
from rest_framework.test import APIClient

from fedportal.accounts.models import User
from fedportal.aggregation.strategies import STRATEGIES
from fedportal.experiments import services
from fedportal.experiments.models import Experiment, GlobalModel, SiteRun
from fedportal.experiments.plan import PRESETS
from fedportal.experiments.recipe import SETTINGS
from fedportal.experiments.serializers import ExperimentSerializer
from fedportal.experiments.states import ExperimentState, RoundState, SiteRunState
from fedportal.sites.models import Dataset
from tests.factories import ada, eve, make_dataset, make_experiment, make_site, otto, stella

pytestmark = pytest.mark.django_db

LIST = "/api/experiments/"


@pytest.fixture
def api() -> APIClient:
    client = APIClient()
    client.force_authenticate(ada())
    return client


@pytest.fixture
def owner(api):
    return api.handler._force_user


@pytest.fixture
def draft(owner) -> Experiment:
    return make_experiment(owner)


def address(experiment: Experiment, act: str = "") -> str:
    return f"{LIST}{experiment.key}/{act}{'/' if act else ''}"


def test_a_new_experiment_is_the_preset_with_what_was_said(api):
    datasets = [make_dataset(make_site(slug)) for slug in ("mainz", "essen", "heidelberg")]
    answer = api.post(
        LIST,
        {
            "preset": "laptop",
            "title": "Mine",
            "question": "Does it work?",
            "participants": [{"site": d.site.slug, "dataset": d.name} for d in datasets[:2]],
            "plan": {"rounds": 20, "optimizer": {"learning_rate": 0.002}},
            "min_sites": 1,
            "max_relative_norm": 0.5,
        },
        format="json",
    )
    assert answer.status_code == 201
    body = answer.json()
    assert (body["title"], body["state"], body["owner"]) == ("Mine", "draft", "ada")
    assert [part["site"] for part in body["participants"]] == ["essen", "mainz"]
    assert (body["plan"]["rounds"], body["plan"]["optimizer"]["learning_rate"]) == (20, 0.002)
    assert body["plan"]["network"]["channels"] == [8, 16, 32, 64]
    assert (body["min_sites"], body["max_relative_norm"]) == (1, 0.5)
    assert body["summary"].startswith("Train a U-Net on BRATS (WT, TC and ET")
    assert Experiment.objects.get(key=body["key"]).rounds_planned == 20


def test_an_empty_request_makes_the_reference_experiment(api):
    make_dataset(make_site("mainz"))
    body = api.post(LIST, {}, format="json").json()
    assert body["participants"] == [{"site": "mainz", "dataset": "Task01_BrainTumour"}]
    assert (body["plan"]["rounds"], body["min_sites"]) == (12, 1)


def test_what_is_read_can_be_sent_back(api, draft):
    body = api.get(address(draft)).json()
    read_only = {name for name, field in ExperimentSerializer().fields.items() if field.read_only}
    assert {"key", "state", "summary"} < read_only < body.keys()
    sent = {name: value for name, value in body.items() if name not in read_only}
    sent["plan"] = body["plan"] | {"task": {"regions": body["plan"]["task"]["regions"]}}
    answer = api.patch(address(draft), sent, format="json")
    assert answer.status_code == 200
    assert answer.json()["plan"] == body["plan"]
    assert answer.json()["participants"] == body["participants"]


def test_a_strategy_comes_with_its_options_and_tells_the_plan_what_the_sites_need(api, draft):
    body = api.patch(
        address(draft), {"strategy": "fedprox", "strategy_options": {"proximal_mu": 0.1}}, format="json"
    ).json()
    assert (body["strategy_options"], body["plan"]["proximal_mu"]) == ({"proximal_mu": 0.1}, 0.1)
    sent = {"strategy_options": {}}
    assert api.patch(address(draft), sent, format="json").json()["plan"]["proximal_mu"] == 0.01
    assert api.patch(address(draft), {"title": "Same"}, format="json").json()["plan"]["proximal_mu"] == 0.01
    body = api.patch(address(draft), {"strategy": "fedbn"}, format="json").json()
    assert (body["strategy_options"], body["plan"]["proximal_mu"]) == ({}, 0)
    assert body["plan"]["local_layers"] == "normalisation"
    body = api.patch(address(draft), {"strategy": "fedavg"}, format="json").json()
    assert (body["plan"]["proximal_mu"], body["plan"]["local_layers"]) == (0, "none")


def test_a_new_draft_may_have_any_strategy(api):
    body = {"strategy": "trimmed_mean", "strategy_options": {"trim": 0.3}}
    made = api.post(LIST, body, format="json")
    assert (made.status_code, made.json()["strategy_options"]) == (201, {"trim": 0.3})
    assert api.post(LIST, {"strategy": "fedprox"}, format="json").json()["plan"]["proximal_mu"] == 0.01


def test_options_of_another_strategy_are_dropped_with_it(api, draft):
    api.patch(address(draft), {"strategy": "fedadam", "strategy_options": {"learning_rate": 0.1}}, format="json")
    body = api.patch(address(draft), {"strategy": "fedavgm"}, format="json").json()
    assert (body["strategy"], body["strategy_options"]) == ("fedavgm", {})


def test_a_change_leaves_the_rest(api, draft):
    before = api.get(address(draft)).json()
    changed = {"title": "New", "plan": {"rounds": 5, "task": {"regions": [{"name": "tumour", "labels": [1, 2, 3]}]}}}
    after = api.patch(address(draft), changed, format="json").json()
    assert (after["title"], after["plan"]["rounds"]) == ("New", 5)
    assert after["plan"]["task"]["regions"] == [{"name": "tumour", "labels": [1, 2, 3]}]
    assert after["plan"]["optimizer"] == before["plan"]["optimizer"]
    assert after["participants"] == before["participants"]


def test_regions_and_sites_may_come_in_one_request(api):
    make_dataset(make_site("bonn"), "Task09_Spleen", channels=["CT"], labels={"0": "background", "1": "spleen"})
    body = {
        "preset": "blank",
        "participants": [{"site": "bonn", "dataset": "Task09_Spleen"}],
        "plan": {"task": {"regions": [{"name": "organ", "labels": [1]}]}},
    }
    answer = api.post(LIST, body, format="json")
    assert (answer.status_code, answer.json()["plan"]["task"]["channels"]) == (201, ["CT"])


REFUSED = [
    ({"title": ""}, "title"),
    ({"title": "x" * 121}, "title"),
    ({"title": "two\nlines"}, "title"),
    ({"title": "\u202eturned"}, "title"),
    ({"title": "\u200b"}, "title"),
    ({"title": ["a"]}, "title"),
    ({"question": "x" * 4001}, "question"),
    ({"colour": "red"}, "colour"),
    ({"state": "completed"}, "state"),
    ({"key": "abcd2345"}, "key"),
    ({"owner": "eve"}, "owner"),
    ({"strategy": "voting"}, "strategy"),
    ({"strategy_options": 3}, "strategy_options"),
    ({"strategy_options": {"momentum": 0.5}}, "strategy_options"),
    ({"strategy_options": {"weighting": "cases"}}, "strategy_options"),
    *(
        ({"strategy": strategy, "strategy_options": {option: value}}, "strategy_options")
        for strategy, option, value in [
            ("fedprox", "proximal_mu", 0),
            ("fedprox", "proximal_mu", 11),
            ("fedprox", "mu", 0.1),
            ("fedbn", "proximal_mu", 0.1),
            ("fedavgm", "momentum", 1),
            ("fedavgm", "learning_rate", "1"),
            ("fedadam", "learning_rate", 0),
            ("fedadam", "beta1", -0.1),
            ("fedadam", "beta2", 1),
            ("fedadam", "tau", 0),
            ("fedyogi", "tau", 2),
            ("fedyogi", "beta1", True),
            ("fedadagrad", "beta2", 0.9),
            ("fedadagrad", "learning_rate", None),
            ("median", "trim", 0.2),
            ("trimmed_mean", "trim", 0.5),
            ("trimmed_mean", "trim", 0),
        ]
    ),
    ({"plan": {"proximal_mu": 0.1}}, "plan.proximal_mu"),
    ({"strategy": "fedprox", "plan": {"proximal_mu": 0.1}}, "plan.proximal_mu"),
    ({"plan": {"local_layers": "normalisation"}}, "plan.local_layers"),
    ({"plan": {"local_layers": "all"}}, "plan.local_layers"),
    ({"weighting": "mood"}, "weighting"),
    ({"max_relative_norm": 0}, "max_relative_norm"),
    ({"max_relative_norm": "1"}, "max_relative_norm"),
    ({"best_by": "NET"}, "best_by"),
    ({"best_by": "x" * 41}, "best_by"),
    ({"patience": -1}, "patience"),
    ({"patience": 1.5}, "patience"),
    ({"initial_model": {"experiment": "nobody", "round": 1}}, "initial_model"),
    ({"initial_model": 3}, "initial_model"),
    ({"min_sites": 0}, "min_sites"),
    ({"min_sites": 1.5}, "min_sites"),
    ({"min_sites": True}, "min_sites"),
    ({"min_sites": None}, "min_sites"),
    ({"deadline_minutes": 0}, "deadline_minutes"),
    ({"stragglers": "shout"}, "stragglers"),
    ({"grace_minutes": -1}, "grace_minutes"),
    ({"max_attempts": 100}, "max_attempts"),
    ({"baselines": ["voting"]}, "baselines"),
    ({"baselines": ["pooled", "ensemble"]}, "baselines"),
    ({"baselines": "pooled"}, "baselines"),
    ({"baselines": None}, "baselines"),
    ({"repeats": 0}, "repeats"),
    ({"repeats": 21}, "repeats"),
    ({"repeats": True}, "repeats"),
    ({"compare_every": -1}, "compare_every"),
    ({"compare_every": 10_001}, "compare_every"),
    ({"gradient_steps": {}}, "gradient_steps"),
    ({"participants": "all"}, "participants"),
    ({"participants": [{"site": "mainz"}]}, "participants"),
    ({"participants": [{"site": "mainz", "dataset": "Task99"}]}, "participants"),
    ({"participants": [{"site": "m/z", "dataset": "Task01_BrainTumour"}]}, "participants"),
    ({"participants": [{"site": "mainz", "dataset": "Task01_BrainTumour"}] * 2}, "participants"),
    ({"plan": 3}, "plan"),
    ({"plan": {"round": 3}}, "plan.round"),
    ({"plan": {"rounds": 0}}, "plan.rounds"),
    ({"plan": {"rounds": "12"}}, "plan.rounds"),
    ({"plan": {"local_epochs": 1001}}, "plan.local_epochs"),
    ({"plan": {"batch_size": 65}}, "plan.batch_size"),
    ({"plan": {"patches_per_case": 0}}, "plan.patches_per_case"),
    ({"plan": {"loss": "l2"}}, "plan.loss"),
    ({"plan": {"augmentation": "wild"}}, "plan.augmentation"),
    ({"plan": {"precision": "half"}}, "plan.precision"),
    ({"plan": {"seed": -1}}, "plan.seed"),
    ({"plan": {"threads": 257}}, "plan.threads"),
    ({"plan": {"patch": [64, 64]}}, "plan.patch"),
    ({"plan": {"patch": [64, 64, 4]}}, "plan.patch"),
    ({"plan": {"spacing": [1, 1, 0]}}, "plan.spacing"),
    ({"plan": {"spacing": "1.5"}}, "plan.spacing"),
    ({"plan": {"network": {"name": "resnet"}}}, "plan.network.name"),
    ({"plan": {"network": {"channels": []}}}, "plan.network.channels"),
    ({"plan": {"network": {"channels": [8, 0]}}}, "plan.network.channels"),
    ({"plan": {"network": {"strides": [2, 2, 2, 2]}}}, "plan.network.strides"),
    ({"plan": {"network": {"strides": [3]}}}, "plan.network.strides"),
    ({"plan": {"network": {"residual_units": 5}}}, "plan.network.residual_units"),
    ({"plan": {"network": {"norm": "layer"}}}, "plan.network.norm"),
    ({"plan": {"network": {"dropout": 0.95}}}, "plan.network.dropout"),
    ({"plan": {"optimizer": {"name": "lion"}}}, "plan.optimizer.name"),
    ({"plan": {"optimizer": {"learning_rate": 0}}}, "plan.optimizer.learning_rate"),
    ({"plan": {"optimizer": {"learning_rate": "nan"}}}, "plan.optimizer.learning_rate"),
    ({"plan": {"optimizer": {"weight_decay": 2}}}, "plan.optimizer.weight_decay"),
    ({"plan": {"optimizer": {"momentum": 1}}}, "plan.optimizer.momentum"),
    ({"plan": {"optimizer": {"amsgrad": "yes"}}}, "plan.optimizer.amsgrad"),
    ({"plan": {"optimizer": {"name": "sgd", "amsgrad": True}}}, "plan.optimizer.amsgrad"),
    ({"plan": {"optimizer": {"treatment": "forget"}}}, "plan.optimizer.treatment"),
    ({"plan": {"schedule": {"name": "random"}}}, "plan.schedule.name"),
    ({"plan": {"schedule": {"warmup_rounds": 99}}}, "plan.schedule.warmup_rounds"),
    ({"plan": {"schedule": {"final_factor": 2}}}, "plan.schedule.final_factor"),
    ({"plan": {"schedule": {"power": 0}}}, "plan.schedule.power"),
    ({"plan": {"schedule": {"step_rounds": 0}}}, "plan.schedule.step_rounds"),
    ({"plan": {"schedule": {"step_factor": 0}}}, "plan.schedule.step_factor"),
    ({"plan": {"validation": {"local": 1}}}, "plan.validation.local"),
    ({"plan": {"validation": {"hd95_every": -1}}}, "plan.validation.hd95_every"),
    ({"plan": {"validation": {"overlap": 0.95}}}, "plan.validation.overlap"),
    ({"plan": {"task": {"channels": ["CT"]}}}, "plan.task.channels"),
    ({"plan": {"task": {"labels": {"1": "tumour"}}}}, "plan.task.labels"),
    ({"plan": {"task": {"name": "Other"}}}, "plan.task.name"),
    ({"plan": {"task": {"regions": []}}}, "plan.task.regions"),
    ({"plan": {"task": {"regions": [{"name": "WT"}]}}}, "plan.task.regions"),
    ({"plan": {"task": {"regions": [{"name": "WT", "labels": [9]}]}}}, "plan.task.regions"),
    ({"plan": {"task": {"regions": [{"name": "mean", "labels": [1]}]}}}, "plan.task.regions"),
    ({"plan": {"task": {"regions": [{"name": "x" * 41, "labels": [1]}]}}}, "plan.task.regions"),
]


@pytest.mark.parametrize(("body", "where"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("method", ["post", "patch"])
def test_refused_input_names_its_field_and_changes_nothing(api, draft, method, body, where):
    Dataset.objects.update(name="Task01_BrainTumour")
    before = Experiment.objects.get(pk=draft.pk).version
    answer = getattr(api, method)(LIST if method == "post" else address(draft), body, format="json")
    assert (answer.status_code, answer.headers["Content-Type"]) == (400, "application/problem+json")
    place = answer.json()["errors"]
    for part in where.split("."):
        assert list(place) == [part]
        place = place[part]
    assert place
    assert Experiment.objects.get().version == before


def test_every_setting_has_a_refused_case():
    tried = {where.removeprefix("plan.") for _, where in REFUSED}
    assert {setting.name for setting in SETTINGS} <= tried


@pytest.mark.parametrize("body", [b"{", b"[]", b'"text"', b'{"plan": {"spacing": [NaN, 1, 1]}}'])
def test_what_is_not_an_object_of_json_is_refused(api, draft, body):
    answer = api.patch(address(draft), body, content_type="application/json")
    assert (answer.status_code, answer.headers["Content-Type"]) == (400, "application/problem+json")


@pytest.mark.parametrize("preset", ["", "huge", None, 3])
def test_an_unknown_preset_is_refused(api, preset):
    assert list(api.post(LIST, {"preset": preset}, format="json").json()["errors"]) == ["preset"]


def test_an_experiment_is_started_paused_resumed_and_cancelled(api, draft):
    for act, state in (("start", "running"), ("pause", "paused"), ("resume", "running"), ("cancel", "cancelling")):
        answer = api.post(address(draft, act))
        assert (answer.status_code, answer.json()["state"]) == (200, state)
    assert api.get(address(draft)).json()["round"] == 1


def test_a_start_that_is_refused_says_why(api, owner):
    experiment = make_experiment(owner, sites=1)
    answer = api.post(address(experiment, "start"))
    assert answer.status_code == 409
    assert "The quorum is 2, but 1 sites take part" in answer.json()["detail"]
    checks = api.get(address(experiment, "readiness")).json()
    assert [check["ok"] for check in checks].count(False) == 1


def test_a_running_experiment_cannot_be_changed_or_deleted(api, draft):
    api.post(address(draft, "start"))
    for answer in (api.patch(address(draft), {"title": "New"}, format="json"), api.delete(address(draft))):
        assert answer.status_code == 409
        assert answer.json()["detail"].startswith("Only a draft can be changed or deleted.")
    assert api.post(address(draft, "start")).status_code == 409


def test_a_draft_is_deleted(api, draft):
    assert api.delete(address(draft)).status_code == 204
    assert api.get(address(draft)).status_code == 404


def test_a_clone_belongs_to_whoever_made_it(api, draft):
    services.share(experiment=draft, user=(friend := eve()), by=draft.owner)
    api.force_authenticate(friend)
    answer = api.post(address(draft, "clone"))
    assert answer.status_code == 201
    body = answer.json()
    assert (body["owner"], body["cloned_from"], body["state"]) == ("eve", draft.key, "draft")


def test_a_failed_site_tries_again(api, draft):
    services.start(experiment=draft, by=draft.owner)
    draft.rounds.update(state=RoundState.TRAINING)
    part = draft.participations.first()
    run = SiteRun.objects.create(round=draft.current_round, participation=part, attempt=1, state=SiteRunState.FAILED)
    assert api.post(f"{address(draft)}sites/{part.site.slug}/retry/").status_code == 200
    run.refresh_from_db()
    assert run.status is SiteRunState.PENDING
    assert api.post(f"{address(draft)}sites/{part.site.slug}/retry/").status_code == 409
    assert api.post(f"{address(draft)}sites/elsewhere/retry/").status_code == 404


def test_an_experiment_is_shared_by_name_and_the_share_is_taken_back(api, draft):
    friend = eve()
    body = api.post(address(draft, "share"), {"username": "eve"}, format="json").json()
    assert body["viewers"] == ["eve"]
    User.objects.filter(pk=friend.pk).update(is_active=False)  # even of a closed account
    for _ in range(2):
        answer = api.post(address(draft, "unshare"), {"username": "eve"}, format="json")
        assert (answer.status_code, answer.json()["viewers"]) == (200, [])
    assert [event.text for event in draft.events.filter(kind__in=["shared", "unshared"])] == [
        "Ada shared the experiment with Eve.",
        "Ada no longer shares the experiment with Eve.",
    ]


def test_an_operator_hands_an_experiment_over_and_the_owner_before_may_still_look(draft):
    operator, eve_ = APIClient(), eve()
    operator.force_authenticate(otto())
    body = operator.post(address(draft, "hand-over"), {"username": "eve"}, format="json").json()
    assert (body["owner"], body["viewers"]) == ("eve", ["ada"])
    assert Experiment.objects.get(pk=draft.pk).can_be_controlled_by(eve_)
    stella()
    answer = operator.post(address(draft, "hand-over"), {"username": "stella"}, format="json")
    assert answer.status_code == 409
    assert "only researchers and operators" in answer.json()["detail"]


@pytest.mark.parametrize("act", ["share", "unshare", "hand-over"])
@pytest.mark.parametrize("sent", [{"username": "nobody"}, {"username": ""}, {}, {"username": "eve", "role": "owner"}])
def test_a_person_who_is_none_is_refused(draft, act, sent):
    eve()
    operator = APIClient()
    operator.force_authenticate(otto())
    answer = operator.post(address(draft, act), sent, format="json")
    assert answer.status_code == 400
    assert list(answer.json()["errors"]) == ["role" if "role" in sent else "username"]


def test_the_list_is_filtered_by_state_owner_and_words(api, owner):
    mine = make_experiment(owner, title="Brain tumours", question="Does cosine help?")
    running = make_experiment(owner, title="Spleens", state=ExperimentState.RUNNING)
    other = make_experiment(otto(), title="Brains of others")
    other.viewers.add(owner)

    def keys(query: str) -> set[str]:
        return {row["key"] for row in api.get(f"{LIST}?{query}").json()["results"]}

    assert keys("") == {mine.key, running.key, other.key}
    assert keys("state=running") == {running.key}
    assert keys("mine=1") == {mine.key, running.key}
    assert keys("search=brain") == {mine.key, other.key}
    assert keys("search=brain+cosine") == {mine.key}
    assert keys(f"search={running.key}") == {running.key}
    assert keys("state=nonsense") == set()


def test_the_list_tells_round_sites_and_dice(api, draft):
    services.start(experiment=draft, by=draft.owner)
    for number, dice in ((0, 0.1), (1, 0.5), (2, None)):
        GlobalModel.objects.create(experiment=draft, round_number=number, key="k", sha256="0" * 64, size=1, dice=dice)
    row = api.get(LIST).json()["results"][0]
    assert (row["round"], row["rounds_planned"], row["sites"], row["dice"]) == (1, 2, 3, 0.5)


def test_the_list_costs_the_same_for_one_and_for_many(api, owner, django_assert_num_queries):
    make_experiment(owner)
    with django_assert_num_queries(2):
        api.get(LIST)
    for _ in range(5):
        make_experiment(owner)
    with django_assert_num_queries(2):
        api.get(LIST)


def test_the_list_comes_in_pages(api, owner):
    for _ in range(3):
        make_experiment(owner, sites=0)
    page = api.get(f"{LIST}?limit=2").json()
    assert (page["count"], len(page["results"])) == (3, 2)
    assert len(api.get(page["next"]).json()["results"]) == 1


def test_the_schema_tells_every_setting_with_its_range_and_default(api):
    body = api.get("/api/plan-schema/").json()
    settings = {setting["name"]: setting for setting in body["settings"]}
    assert set(settings) == {setting.name for setting in SETTINGS}
    rate = settings["optimizer.learning_rate"]
    assert (rate["low"], rate["high"], rate["default"], rate["in_plan"]) == (1e-8, 10, 0.001, True)
    assert settings["network.name"]["choices"]["segresnet"] == "SegResNet"
    assert (settings["min_sites"]["in_plan"], settings["patch"]["optional"]) == (False, True)
    assert [preset["name"] for preset in body["presets"]] == list(PRESETS)
    strategies = {strategy["name"]: strategy for strategy in body["strategies"]}
    assert list(strategies) == list(STRATEGIES)
    (trim,) = strategies["trimmed_mean"]["options"]
    assert (trim["name"], trim["low"], trim["high"], trim["default"]) == ("trim", 0.01, 0.49, 0.2)
    assert (strategies["median"]["min_sites"], strategies["median"]["weighted"]) == (3, False)
    assert strategies["fedavg"]["options"] == []


def test_put_is_not_offered(api, draft):
    assert api.put(address(draft), {}, format="json").status_code == 405


def test_an_address_that_is_no_key_is_not_found(api):
    assert api.get(f"{LIST}A-B/").status_code == 404
