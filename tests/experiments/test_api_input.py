"""What the API of experiments refuses: each with its field, and nothing changed."""

from __future__ import annotations

import pytest
from rest_framework.test import APIClient

from fedportal.experiments.models import Experiment
from fedportal.experiments.recipe import SETTINGS
from fedportal.sites.models import Dataset
from tests.factories import eve, otto

pytestmark = pytest.mark.django_db

LIST = "/api/experiments/"


def address(experiment: Experiment, act: str = "") -> str:
    return f"{LIST}{experiment.key}/{act}{'/' if act else ''}"


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


@pytest.mark.parametrize("act", ["share", "unshare", "hand-over"])
@pytest.mark.parametrize("sent", [{"username": "nobody"}, {"username": ""}, {}, {"username": "eve", "role": "owner"}])
def test_a_person_who_is_none_is_refused(draft, act, sent):
    eve()
    operator = APIClient()
    operator.force_authenticate(otto())
    answer = operator.post(address(draft, act), sent, format="json")
    assert answer.status_code == 400
    assert list(answer.json()["errors"]) == ["role" if "role" in sent else "username"]


def test_put_is_not_offered(api, draft):
    assert api.put(address(draft), {}, format="json").status_code == 405


def test_an_address_that_is_no_key_is_not_found(api):
    assert api.get(f"{LIST}A-B/").status_code == 404
