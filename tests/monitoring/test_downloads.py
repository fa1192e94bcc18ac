from urllib.parse import parse_qs, urlsplit

import pytest
from django.urls import reverse

from fedportal.experiments.models import Artefact
from fedportal.experiments.store import object_store
from tests import factories
from tests.monitoring import scenes

pytestmark = pytest.mark.django_db


@pytest.fixture
def ada():
    return factories.ada()


@pytest.fixture(autouse=True)
def store_with_a_key(settings):
    settings.OBJECT_STORE = {**settings.OBJECT_STORE, "access_key": "portal"}
    object_store.cache_clear()
    yield
    object_store.cache_clear()


@pytest.fixture
def finished(ada):
    experiment = scenes.make_running(ada)
    model = scenes.make_model(experiment, 3)
    for kind in Artefact.Kind:
        Artefact.objects.create(
            model=model, kind=kind, key=f"fedportal/{experiment.key}/{kind}", sha256="c" * 64, size=9
        )
    return experiment


def address(name, experiment, number=3, kind="weights"):
    return reverse(name, args=[experiment.key, number, kind])


@pytest.mark.parametrize("name", ["monitoring:download", "api-experiment-model-file"])
@pytest.mark.parametrize(
    ("kind", "file"), [("weights", "r3.safetensors"), ("recipe", "r3-recipe.json"), ("bundle", "r3-bundle.zip")]
)
def test_a_download_is_a_redirect_to_the_store_under_a_good_name(client, finished, ada, name, kind, file):
    client.force_login(ada)
    answer = client.get(address(name, finished, kind=kind))
    assert answer.status_code == 302
    target = urlsplit(answer.headers["Location"])
    query = parse_qs(target.query)
    assert target.netloc == "127.0.0.1:9000"
    [disposition] = query["response-content-disposition"]
    assert disposition.startswith(f'attachment; filename="fedportal-{finished.key}-{file}"')
    assert 0 < int(query["X-Amz-Expires"][0]) <= 3600
    expected = "global.safetensors" if kind == "weights" else kind
    assert target.path.endswith(f"/{expected}")
    assert not answer.content, "no weights pass through the portal"


@pytest.mark.parametrize("name", ["monitoring:download", "api-experiment-model-file"])
def test_a_stranger_gets_no_address(client, finished, name):
    client.force_login(factories.eve())
    answer = client.get(address(name, finished))
    assert answer.status_code == 404
    assert "Location" not in answer.headers


def test_an_address_is_not_kept_by_any_cache(client, finished, ada):
    client.force_login(ada)
    answer = client.get(address("monitoring:download", finished))
    assert "no-store" in answer.headers["Cache-Control"]


@pytest.mark.parametrize(("number", "kind"), [(3, "pickle"), (4, "weights"), (3, "WEIGHTS"), (0, "bundle")])
def test_there_is_nothing_else_to_download(client, finished, ada, number, kind):
    scenes.make_model(finished, 0)
    client.force_login(ada)
    assert client.get(address("monitoring:download", finished, number, kind)).status_code == 404


def test_the_models_page_shows_size_and_checksum_of_every_model(client, finished, ada):
    client.force_login(ada)
    text = client.get(reverse("monitoring:models", args=[finished.key])).content.decode()
    assert f"{3:064x}" in text
    assert "1.2 MB" in text
    assert address("monitoring:download", finished, kind="bundle") in text
