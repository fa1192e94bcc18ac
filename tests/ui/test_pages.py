import re
from pathlib import Path
from unittest import mock

import pytest
from django.conf import settings
from django.db import DatabaseError, connection
from django.test import Client

from tests.factories import PASSWORD, ada, audrey, make_site, otto, stella

TEMPLATES = Path(settings.BASE_DIR) / "templates"


def test_the_health_probe_is_public(client, db):
    answer = client.get("/ui/healthz/")
    assert answer.status_code == 200
    assert answer.json() == {"status": "ok", "database": True, "version": settings.VERSION}


def test_the_health_probe_fails_without_the_database(client, db):
    with mock.patch.object(connection, "cursor", side_effect=DatabaseError):
        answer = client.get("/ui/healthz/")
    assert answer.status_code == 503
    assert answer.json()["database"] is False


@pytest.mark.django_db
@pytest.mark.parametrize("path", ["/accounts/login/", "/nowhere/", "/ui/healthz/", "/api/me/", "/admin/login/"])
def test_every_answer_carries_the_content_security_policy(client, path):
    policy = client.get(path)["Content-Security-Policy"]
    directives = dict(part.split(" ", 1) for part in policy.split("; "))
    assert directives["script-src"] == "'self'"
    assert directives["default-src"] == "'self'"
    assert directives["frame-ancestors"] == "'none'"


@pytest.mark.parametrize("template", sorted(TEMPLATES.rglob("*.html")), ids=lambda path: path.stem)
def test_no_template_holds_an_inline_script_or_handler(template):
    """The policy would block it: the page would break in the browser and nowhere else."""
    source = template.read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)(?![^>]*application/json)", source)
    assert not re.search(r"\son[a-z]+\s*=\s*[\"']", source)
    assert not re.search(r"(?:src|href)=[\"'](?:https?:)?//", source)


@pytest.mark.parametrize("component", sorted((TEMPLATES / "components").glob("*.html")), ids=lambda path: path.stem)
def test_every_component_says_what_it_is_and_takes(component):
    source = component.read_text().removeprefix("{% load static %}")
    assert source.startswith(("{# ", "{% comment %}\n"))


@pytest.mark.django_db
@pytest.mark.parametrize("theme", ["auto", "light", "dark"])
def test_the_theme_is_kept_in_a_cookie_and_painted_by_the_server(client, theme):
    answer = client.post("/ui/theme/", {"theme": theme}, headers={"referer": "http://testserver/accounts/login/"})
    assert (answer.status_code, answer.url) == (302, "http://testserver/accounts/login/")
    assert client.cookies["theme"].value == theme
    assert f'<html lang="en" data-theme="{theme}">' in client.get("/accounts/login/").content.decode()


@pytest.mark.django_db
def test_an_unknown_theme_is_not_kept(client):
    client.post("/ui/theme/", {"theme": "solarized"})
    assert "theme" not in client.cookies


@pytest.mark.django_db
def test_the_theme_switch_sends_nobody_to_another_site(client):
    answer = client.post("/ui/theme/", {"theme": "dark"}, headers={"referer": "https://evil.example/"})
    assert answer.url == "/"


@pytest.mark.django_db
@pytest.mark.parametrize(("person", "status"), [(ada, 403), (stella, 403), (audrey, 403), (otto, 200)])
def test_the_gallery_is_for_operators(client, person, status):
    client.force_login(person())
    assert client.get("/ui/").status_code == status


@pytest.mark.django_db
def test_the_gallery_shows_a_refused_form(client):
    client.force_login(otto())
    shown = client.get("/ui/?title=").content.decode()
    assert 'id="id_title_error"' in shown
    assert 'aria-describedby="id_title_helptext id_title_error"' in shown


@pytest.mark.django_db
def test_a_page_that_needs_sign_in_leads_there_and_back(client):
    answer = client.get("/sites/")
    assert (answer.status_code, answer.url) == (302, "/accounts/login/?next=/sites/")


@pytest.mark.django_db
@pytest.mark.parametrize("came_from", ["http://testserver/sites/mainz/", "http://elsewhere.example/sites/mainz/", ""])
def test_a_form_that_needs_sign_in_leads_back_to_its_page(client, came_from):
    make_site("mainz")
    person = otto()
    asked = client.post("/sites/mainz/check/", headers={"referer": came_from})
    back = client.post(asked.url, {"username": person.username, "password": PASSWORD})
    assert back.url == (came_from if "testserver" in came_from else "/")
    assert client.get(back.url).status_code == 200


@pytest.mark.django_db
def test_a_form_without_a_token_is_refused_in_words():
    answer = Client(enforce_csrf_checks=True).post("/accounts/login/", {"username": "ada"})
    assert answer.status_code == 403
    assert "The form has expired" in answer.content.decode()


def test_an_address_that_is_not_the_portals_is_refused_in_words(client):
    answer = client.get("/accounts/login/", headers={"host": "elsewhere.example"})
    assert answer.status_code == 400
    assert "Use the address that you were given" in answer.content.decode()


@pytest.mark.django_db
def test_the_api_page_stands_in_the_portals_frame_and_needs_no_inline_script(client):
    client.force_login(ada())
    shown = client.get("/api/docs/").content.decode()
    assert '<a class="skip-link"' in shown
    assert "SwaggerUIBundle" not in shown
    assert client.get("/api/docs/?script=").status_code == 200


def test_the_api_has_a_door_and_says_of_every_address_what_it_does(client, db):
    client.force_login(ada())
    assert client.get("/api/").headers["Location"] == "/api/docs/"
    schema = client.get("/api/schema/", headers={"accept": "application/json"}).json()
    for path, methods in schema["paths"].items():
        assert all(one.get("summary") for one in methods.values()), path
