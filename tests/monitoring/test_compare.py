import pytest
from django.urls import reverse

from tests import factories
from tests.monitoring import families

pytestmark = pytest.mark.django_db


def test_the_page_says_what_came_out(client):
    head = families.make_family(factories.ada())
    client.force_login(head.owner)
    text = client.get(reverse("monitoring:compare", args=[head.key])).content.decode()
    assert "Federated reached 9" in text
    assert "above the best local-only model" in text
