"""The API of experiments: what it gives, and what is done over it."""

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
from fedportal.ui.pagination import PortalPagination
from tests.factories import eve, make_dataset, make_experiment, make_site, otto, stella

pytestmark = pytest.mark.django_db

LIST = "/api/experiments/"


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
    make_experiment(draft.owner, sites=0)
    assert api.get(LIST).json()["results"][0]["sites"] == 0


def test_the_list_costs_the_same_for_one_and_for_many(api, owner, django_assert_num_queries):
    make_experiment(owner)
    with django_assert_num_queries(2):
        api.get(LIST)
    for _ in range(5):
        make_experiment(owner)
    with django_assert_num_queries(2):
        api.get(LIST)


def test_the_list_comes_in_pages(api, owner, monkeypatch):
    for _ in range(3):
        make_experiment(owner, sites=0)
    page = api.get(f"{LIST}?limit=2").json()
    assert (page["count"], len(page["results"])) == (3, 2)
    assert len(api.get(page["next"]).json()["results"]) == 1
    monkeypatch.setattr(PortalPagination, "max_limit", 2)
    assert len(api.get(f"{LIST}?limit=1000000").json()["results"]) == 2


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
