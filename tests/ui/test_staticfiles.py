from pathlib import Path

import pytest
from django.contrib.staticfiles import finders
from django.core.management import call_command
from django.test import override_settings

from fedportal.ui.staticfiles import PlotlyFinder


def test_plotlys_script_is_found_in_its_wheel():
    found = finders.find("plotly/plotly.min.js")
    assert Path(found).stat().st_size > 1_000_000
    assert "site-packages" in found


def test_nothing_else_of_the_wheel_is_served():
    assert finders.find("plotly/datasets/iris.csv.gz") is None
    assert [path for path, _ in PlotlyFinder().list([])] == ["plotly.min.js"]


def test_collectstatic_can_leave_it_out():
    assert list(PlotlyFinder().list(["*.js"])) == []


def test_it_is_served_by_the_portal(client, db):
    answer = client.get("/static/plotly/plotly.min.js")
    assert answer.status_code == 200
    assert answer["Content-Type"].startswith("text/javascript")


@pytest.mark.slow
def test_collectstatic_gathers_everything_under_hashed_names(tmp_path):
    storages = {
        "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
        "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"},
    }
    with override_settings(STATIC_ROOT=tmp_path, STORAGES=storages):
        call_command("collectstatic", interactive=False, verbosity=0)
    assert len(list((tmp_path / "plotly").glob("plotly.min.*.js"))) == 1
    assert len(list((tmp_path / "css").glob("tokens.*.css"))) == 1
