"""What the front page says before there is anything to show: to each role what comes next."""

import pytest
from django.urls import reverse

from tests import factories

pytestmark = pytest.mark.django_db
REGISTER, COMPOSE = "sites:create", "experiments:create"


@pytest.mark.parametrize(
    ("person", "sites", "title", "offered"),
    [
        (factories.otto, 0, "Register the first hospital", {REGISTER}),
        (factories.ada, 0, "No hospital takes part yet", {COMPOSE}),
        (factories.stella, 0, "No hospital takes part yet", set()),
        (factories.audrey, 0, "No hospital takes part yet", set()),
        (factories.otto, 1, "Start with the reference experiment", {COMPOSE}),
        (factories.ada, 1, "Start with the reference experiment", {COMPOSE}),
        (factories.stella, 1, "No experiment yet", set()),
    ],
)
def test_an_empty_portal_tells_each_role_what_comes_next(client, person, sites, title, offered):
    for _ in range(sites):
        factories.make_site()
    client.force_login(person())
    shown = client.get("/").content.decode()
    assert f"<h2>{title}</h2>" in shown
    assert {name for name in (REGISTER, COMPOSE) if f'href="{reverse(name)}"' in shown} == offered
