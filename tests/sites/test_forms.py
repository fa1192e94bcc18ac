import pytest

from fedportal.sites.forms import site_form
from fedportal.sites.models import Site
from tests.factories import ada, make_site, make_user, stella

pytestmark = pytest.mark.django_db
SiteForm = site_form("local")
GOOD = {
    "name": "Mainz",
    "slug": "mainz",
    "city": "Mainz",
    "contact": "it@mainz.example",
    "data_root": "/srv/mainz/data",
    "work_dir": "/srv/mainz/work",
    "threads": "2",
}


def test_a_good_form_registers_a_site():
    form = SiteForm({**GOOD, "stewards": [stella().pk]})
    assert form.is_valid(), form.errors
    site = form.store(by=make_user())
    assert site.config == {"data_root": "/srv/mainz/data", "work_dir": "/srv/mainz/work", "threads": 2}
    assert Site.objects.get().stewards.count() == 1


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("name", "", "required"),
        ("name", "x" * 121, "120"),
        ("slug", "", "required"),
        ("slug", "Mainz", "lower-case letters"),
        ("slug", "mainz-", "lower-case letters"),
        ("slug", "m" * 16, "15"),
        ("slug", "../etc", "lower-case letters"),
        ("slug", "register", "addresses"),
        ("city", "x" * 121, "120"),
        ("contact", "nobody", "email"),
        ("data_root", "", "required"),
        ("data_root", "data", "whole path"),
        ("data_root", "~/data", "whole path"),
        ("data_root", "/srv/../etc", "without"),
        ("data_root", "/", "root of the machine"),
        ("data_root", "/srv/\0data", "Null characters"),
        ("data_root", "/" + "x" * 4000, "4000"),
        ("work_dir", "", "required"),
        ("work_dir", "work", "whole path"),
        ("work_dir", "/srv/mainz/data", "outside of the data folder"),
        ("work_dir", "/srv/mainz/data/work", "outside of the data folder"),
        ("work_dir", "/srv/mainz/./data/work", "outside of the data folder"),
        ("threads", "0", "greater than or equal to 1"),
        ("threads", "257", "less than or equal to 256"),
        ("threads", "two", "whole number"),
        ("threads", "", "required"),
        ("stewards", ["99999"], "not one of the available choices"),
    ],
)
def test_a_refused_value_names_its_field_and_the_reason(field, value, reason):
    form = SiteForm({**GOOD, field: value})
    assert list(form.errors) == [field]
    assert reason in str(form.errors[field])
    assert not Site.objects.exists()


def test_only_stewards_can_be_named_stewards():
    form = SiteForm({**GOOD, "stewards": [ada().pk]})
    assert "stewards" in form.errors


def test_where_nobody_can_be_named_the_form_says_what_to_do():
    assert "There are no stewards yet." in SiteForm().fields["stewards"].help_text
    stella()
    assert "There are no stewards yet." not in SiteForm().fields["stewards"].help_text


def test_a_name_that_is_taken_is_refused():
    make_site("mainz", name="Mainz")
    assert set(SiteForm(GOOD).errors) == {"name", "slug"}


def test_paths_are_normalised():
    form = SiteForm({**GOOD, "data_root": " /srv//mainz/data/ "})
    assert form.is_valid()
    assert form.cleaned_data["data_root"] == "/srv/mainz/data"


def test_the_short_name_is_fixed_once_registered():
    site = make_site("mainz")
    form = SiteForm({**GOOD, "slug": "other"}, instance=site)
    assert form.is_valid(), form.errors
    form.store(by=make_user())
    assert Site.objects.get().slug == "mainz"


def test_settings_that_the_form_does_not_know_are_kept():
    site = make_site("mainz", config={"data_root": "/a", "work_dir": "/b", "threads": 1, "image": "trainer:1"})
    form = SiteForm(GOOD, instance=site)
    assert form.is_valid()
    assert form.store(by=make_user()).config["image"] == "trainer:1"


def test_a_former_steward_can_stay_named():
    site = make_site("mainz")
    person = make_user("former")
    site.stewards.add(person)
    form = SiteForm({**GOOD, "stewards": [person.pk]}, instance=site)
    assert form.is_valid(), form.errors
