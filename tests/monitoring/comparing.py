"""The comparison of a family, as rows and as the page shows it."""

from django.urls import reverse

from fedportal.monitoring.comparison import MEASURES, Comparison, Scores
from fedportal.monitoring.families import family_of

DICE, HD95 = MEASURES


def compared(head, *, measure=DICE, region="mean", at=None):
    family = family_of(head)
    return Comparison(family, Scores(family, measure, at=at), measure=measure, region=region)


def page_of(client, head, **query):
    client.force_login(head.owner)
    answer = client.get(reverse("monitoring:compare", args=[head.key]), query)
    assert answer.status_code == 200
    return answer.content.decode()
