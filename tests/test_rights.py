"""Every address of the portal, found and not listed, asked by everybody: who has no right to a thing neither changes it
nor reads of it, and nobody reads a secret."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from django.apps import apps
from django.db.models import Model
from django.test import Client
from knox.models import AuthToken

from fedportal.accounts.models import Role, User
from fedportal.experiments.models import Experiment, SiteRun
from fedportal.experiments.states import SiteRunState
from fedportal.sites.models import Site
from tests.factories import ada, audrey, eve, make_experiment, make_site, make_user, otto, stella
from tests.monitoring import scenes
from tests.test_strangers import BY_TOKEN, routes

pytestmark = pytest.mark.django_db

TITLE, SECRET = "Zebrafish of Ada", "opensesame-4711"
ROOMS = ("accounts", "experiments", "sites", "relay", "knox")
OWNED = {"experiments.experiment": "owner", "knox.authtoken": "user", "accounts.user": "pk"}
"""Rows that belong to a person, by which column. Those of an experiment belong to its owner."""
SKIPPED = {"accounts/logout/", "admin/logout/", "admin/{url}"}
Cell = tuple[str, Any, str, str]
"""Of a row: model, key, column, value."""
FORM = {"title": "Stolen", "name": "Stolen", "username": "eve", "role": Role.OPERATOR, "preset": "laptop"}
BODIES: dict[str, dict[str, Any]] = {
    "hand-over/": {"username": "eve"},
    "/share/": {"username": "eve"},
    "/unshare/": {"username": "grace"},
    "/users/ada/": {"role": Role.OPERATOR},
    "/sites/mainz/": {"name": "Stolen"},
    "/experiments/": {"preset": "laptop"},
}
"""What an address of the API is sent, by its end: it takes nothing that it does not know."""


def world() -> dict[str, User]:
    """Ada's experiment has begun at Mainz and Ulm and failed at one of them; she has a draft, too, and a token."""
    people = {"ada": ada(), "otto": otto(), "grace": make_user("grace"), "stella": stella(), "audrey": audrey()}
    people |= {"eve": eve(), "zoe": make_user("zoe", Role.STEWARD)}
    experiment = scenes.make_running(people["ada"])
    scenes.make_model(experiment, 0)
    scenes.finish_round(scenes.open_round(experiment, 1))
    scenes.open_round(experiment, 2)
    scenes.change(experiment, title=TITLE)
    SiteRun.objects.filter(round__number=2, participation__site__slug="mainz").update(state=SiteRunState.FAILED)
    make_experiment(people["ada"], sites=0, title=f"{TITLE}, a draft")
    experiment.viewers.add(people["grace"])
    site = Site.objects.get(slug="mainz")
    Site.objects.filter(pk=site.pk).update(secrets={"password": SECRET})
    site.stewards.add(people["stella"])
    make_site("kiel").stewards.add(people["zoe"])
    AuthToken.objects.create(people["ada"])
    return people


def requests(experiment: Experiment, *, reads: bool) -> Iterator[tuple[str, str]]:
    """Yield method and address of everything that can be asked about ``experiment``, Mainz and Ada."""
    token = AuthToken.objects.get().token_key
    places = {"slug": "mainz", "site": "mainz", "username": "ada", "name": "Task01_BrainTumour", "token_key": token}
    places |= {"number": "0", "kind": "weights", "section": "question", "chart": "dice", "content_type_id": "1"}
    for route in sorted(set(routes()) - SKIPPED):
        if BY_TOKEN.match(route):
            continue
        key = token if "tokens/{key}" in route else experiment.key
        address = "/" + route.format(**places, key=key, **_of_admin(route))
        methods = (*(("get",) if reads else ()), "post")
        if route.startswith("api/"):
            methods += ("put", "patch", "delete")
        for method in methods:
            yield method, address


def _of_admin(route: str) -> dict[str, Any]:
    room, _, rest = route.removeprefix("admin/").partition("/")
    row = None
    if route.startswith("admin/") and "{object_id}" in route and room in ROOMS:
        row = apps.get_model(room, rest.split("/")[0]).objects.order_by("pk").first()
    return {"object_id": row.pk if row else 1, "id": User.objects.get(username="ada").pk, "app_label": "sites"}


def rows_of_others(person: User) -> set[Cell]:
    """Return everything in the database that is not this person's own."""
    found = set()
    for room in ROOMS:
        for model in apps.get_app_config(room).get_models(include_auto_created=True):
            for row in model.objects.order_by("pk"):
                if not _is_own(row, person):
                    names = [field.attname for field in model._meta.concrete_fields]
                    found |= {(model._meta.label_lower, row.pk, name, repr(getattr(row, name))) for name in names}
    return found


def _is_own(row: Model, person: User) -> bool:
    column = OWNED.get(row._meta.label_lower)
    if column is not None:
        return getattr(row, "pk" if column == "pk" else f"{column}_id") == person.pk
    experiment = getattr(row, "experiment", None)
    return isinstance(experiment, Experiment) and experiment.owner_id == person.pk


def ask_everything(person: User, *, hidden: Sequence[str] = ()) -> list[str]:
    """Send every request that could change something, and with ``hidden`` every other, too; return which answers have
    one of the hidden words."""
    client, told = Client(), []
    client.force_login(person)
    for method, address in requests(Experiment.objects.get(title=TITLE), reads=bool(hidden)):
        sent: dict[str, Any] = {} if method == "get" else {"data": FORM}
        if sent and address.startswith("/api/"):
            data = next((body for end, body in BODIES.items() if address.endswith(end)), {})
            sent = {"data": data, "content_type": "application/json"}
        answer = getattr(client, method)(address, **sent)
        assert answer.status_code < 500, (method, address)
        content = b"".join(answer.streaming_content) if answer.streaming else answer.content
        told += [f"{method} {address} tells {word!r}" for word in hidden if word.encode() in content]
    return told


@pytest.mark.parametrize(
    ("who", "hidden"),
    [("eve", (TITLE, SECRET)), ("zoe", (TITLE, SECRET)), ("grace", ()), ("stella", ()), ("audrey", ())],
)
def test_who_has_no_right_to_a_thing_neither_changes_nor_reads_it(who, hidden):
    """Eve and Zoe are strangers to the experiment. Grace was given a look, Stella answers for Mainz, Audrey audits."""
    person = world()[who]
    before = rows_of_others(person)
    assert ask_everything(person, hidden=hidden) == []
    # a steward may ask for a look at the own site
    allowed = {("sites.site", "check_due_at")} if who == "stella" else set()
    assert columns(before ^ rows_of_others(person)) == allowed


def test_the_same_requests_of_an_operator_change_much_and_tell_no_secret():
    person = world()["otto"]
    before = rows_of_others(person)
    assert ask_everything(person, hidden=[SECRET]) == []
    changed = columns(before ^ rows_of_others(person))
    for model, column in (
        ("experiments.experiment", "owner_id"),
        ("experiments.experiment", "state"),
        ("sites.site", "name"),
        ("accounts.user", "role"),
    ):
        assert (model, column) in changed


def columns(cells: set[Cell]) -> set[tuple[str, str]]:
    return {(model, column) for model, _, column, _ in cells}
