"""The pages: list, start page, composer and acts, as a browser without scripts sees them."""

from __future__ import annotations

from html import unescape

import pytest
from django.test import Client

from fedportal.experiments import services
from fedportal.experiments.models import Experiment, GlobalModel, Round
from fedportal.experiments.states import ExperimentState
from tests.experiments.test_forms import RIGHT
from tests.factories import ada, eve, make_dataset, make_experiment, make_site, otto

pytestmark = pytest.mark.django_db


@pytest.fixture
def owner():
    return ada()


@pytest.fixture
def browser(owner) -> Client:
    client = Client()
    client.force_login(owner)
    return client


@pytest.fixture
def draft(owner) -> Experiment:
    return make_experiment(owner)


def edit(experiment: Experiment, section: str = "") -> str:
    return f"/experiments/{experiment.key}/edit/{section}{'/' if section else ''}"


def text_of(answer) -> str:
    return unescape(answer.content.decode())


def said(answer) -> str:
    return " ".join(str(message) for message in answer.context["messages"])


# --- beginning --------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["laptop", "original", "blank"])
def test_a_preset_becomes_a_draft_in_one_click(browser, owner, preset):
    make_dataset(make_site())
    answer = browser.post("/experiments/new/", {"preset": preset})
    experiment = Experiment.objects.get()
    assert (answer.status_code, answer.url) == (302, edit(experiment))
    assert (experiment.owner, experiment.status) == (owner, ExperimentState.DRAFT)


@pytest.mark.parametrize("preset", ["", "huge"])
def test_an_unknown_preset_makes_nothing(browser, preset):
    answer = browser.post("/experiments/new/", {"preset": preset}, follow=True)
    assert "Choose one of the presets." in said(answer)
    assert not Experiment.objects.exists()


def test_the_start_page_warns_when_no_site_is_ready(browser):
    assert "No site is ready at the moment." in text_of(browser.get("/experiments/new/"))
    make_site()
    assert "No site is ready" not in text_of(browser.get("/experiments/new/"))


def test_what_one_may_see_can_be_cloned(browser, owner):
    make_experiment(eve(), title="Hidden")
    shared = make_experiment(otto(), title="Shown")
    shared.viewers.add(owner)
    page = text_of(browser.get("/experiments/new/"))
    assert "Shown" in page
    assert "Hidden" not in page
    answer = browser.post(f"/experiments/{shared.key}/clone/", follow=True)
    assert "This is your copy." in said(answer)
    assert owner.experiments.get().cloned_from == shared


# --- composing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("section", ["question", "sites", "recipe", "rounds", "review"])
@pytest.mark.parametrize("preset", ["laptop", "original", "blank"])
def test_every_section_of_every_preset_is_shown(browser, owner, section, preset):
    make_dataset(make_site())
    answer = browser.get(edit(services.create_draft(owner=owner, preset=preset), section))
    assert answer.status_code == 200


def test_the_whole_way_from_preset_to_start_without_scripts(browser):
    datasets = [make_dataset(make_site()) for _ in range(3)]
    browser.post("/experiments/new/", {"preset": "blank"})
    experiment = Experiment.objects.get()
    recipe = RIGHT["recipe"] | {"regions": "WT: 1, 2, 3\nET: 3"}
    for section, values, following in (
        ("question", {"name": "By hand", "question": "Does it work?"}, "sites"),
        ("sites", {"datasets": [dataset.pk for dataset in datasets]}, "recipe"),
        ("recipe", recipe, "rounds"),
        ("rounds", RIGHT["rounds"] | {"rounds": "4"}, "review"),
    ):
        assert f'value="{following}"' in text_of(browser.get(edit(experiment, section)))
        answer = browser.post(edit(experiment, section), values | {"go": following})
        assert (answer.status_code, answer.url) == (302, edit(experiment, following))
    review = browser.get(edit(experiment, "review"))
    assert "Train a U-Net on BRATS (WT and ET from FLAIR, T1w, t1gd and T2w) at 3 sites" in text_of(review)
    assert review.context["is_ready"]
    answer = browser.post(f"/experiments/{experiment.key}/start/")
    assert answer.url == f"/experiments/{experiment.key}/"
    experiment.refresh_from_db()
    assert (experiment.status, experiment.title, experiment.rounds_planned) == ("running", "By hand", 4)


@pytest.mark.parametrize(("go", "lands"), [("", "question"), ("elsewhere", "question"), ("rounds", "rounds")])
def test_every_button_saves_before_it_goes_anywhere(browser, draft, go, lands):
    answer = browser.post(edit(draft, "question"), {"name": "Saved", "question": "", "go": go})
    draft.refresh_from_db()
    assert (answer.url, draft.title) == (edit(draft, lands), "Saved")


def test_a_refused_value_stays_on_the_page_beside_its_remedy(browser, draft):
    typed = RIGHT["recipe"] | {"optimizer_learning_rate": "quick", "optimizer_momentum": "7", "batch_size": "4"}
    answer = browser.post(edit(draft, "recipe"), typed | {"go": "rounds"})
    page = text_of(answer)
    assert answer.status_code == 422
    assert 'value="quick"' in page
    assert "Write a number with a decimal point, like 0.001." in page
    assert "2 entries need your attention" in page
    assert "Everything else in this section is saved." in page
    # the group whose advanced setting is refused is open
    assert page.count('<details class="disclosure advanced" open>') == 1
    draft.refresh_from_db()
    assert draft.plan["batch_size"] == 4


def test_sites_that_cannot_take_part_say_why(browser, draft):
    site = make_site("sick", healthy=False)
    make_dataset(site)
    page = text_of(browser.get(edit(draft, "sites")))
    assert "Hospital sick was not checked yet. Ask its steward or an operator for a check." in page


def test_many_sites_can_be_searched_and_few_need_no_search(browser, draft):
    assert "data-choose-sites" not in text_of(browser.get(edit(draft, "sites")))
    for _ in range(4):
        make_dataset(make_site())
    assert "data-choose-sites" in text_of(browser.get(edit(draft, "sites")))


def test_the_recipe_of_a_draft_without_sites_points_to_the_sites(browser, owner):
    page = text_of(browser.get(edit(services.create_draft(owner=owner, preset="blank"), "recipe")))
    assert "Choose the sites first" in page
    assert 'name="regions"' not in page


def test_the_review_blocks_a_start_and_says_why(browser, owner):
    experiment = services.create_draft(owner=owner, preset="blank", title="")
    page = text_of(browser.get(edit(experiment, "review")))
    assert "Not ready yet" in page
    assert "Give the experiment a name." in page
    assert "Choose at least one site with a dataset." in page
    assert 'type="submit" disabled' in page


def test_a_start_that_slips_past_the_review_is_refused_on_the_page(browser, owner):
    experiment = services.create_draft(owner=owner, preset="blank")
    back = f"http://testserver{edit(experiment, 'review')}"
    answer = browser.post(f"/experiments/{experiment.key}/start/", headers={"Referer": back}, follow=True)
    assert answer.redirect_chain[-1][0].endswith(edit(experiment, "review"))
    assert "Choose at least one site with a dataset." in said(answer)
    assert not Round.objects.exists()


def test_the_review_of_a_clone_shows_what_was_changed(browser, draft):
    browser.post(f"/experiments/{draft.key}/clone/")
    twin = draft.clones.get()
    assert "Nothing differs" in text_of(browser.get(edit(twin, "review")))
    services.update_draft(experiment=twin, by=twin.owner, plan={"rounds": 9})
    page = text_of(browser.get(edit(twin, "review")))
    assert "What differs from" in page
    assert "9 rounds" in page


def test_a_started_experiment_is_not_composed_any_more(browser, draft):
    services.start(experiment=draft, by=draft.owner)
    for answer in (browser.get(edit(draft)), browser.post(edit(draft, "question"), {"name": "New"})):
        assert (answer.status_code, answer.url) == (302, f"/experiments/{draft.key}/")
    draft.refresh_from_db()
    assert draft.title != "New"


def test_names_are_shown_and_not_run(browser, owner):
    experiment = make_experiment(owner, title="<script>alert(1)</script>", question='"><img src=x onerror=alert(1)>')
    for address in ("/experiments/", "/experiments/new/", edit(experiment), edit(experiment, "review")):
        page = browser.get(address).content.decode()
        assert "<script>alert" not in page
        assert "<img src=x" not in page


def test_no_page_has_a_script_or_a_style_of_its_own(browser, draft):
    for address in ("/experiments/", "/experiments/new/", *(edit(draft, s) for s in ("question", "sites", "review"))):
        page = browser.get(address).content.decode()
        assert "<style" not in page
        assert " style=" not in page
        assert " onclick" not in page
        assert page.count("<script") == page.count('<script type="module" src="')


# --- list -------------------------------------------------------------------------------------------


def test_the_list_shows_state_round_sites_dice_and_owner(browser, owner):
    experiment = make_experiment(owner, title="Brain tumours", rounds=7)
    services.start(experiment=experiment, by=owner)
    GlobalModel.objects.create(experiment=experiment, round_number=1, key="k", sha256="0" * 64, size=1, dice=0.71234)
    page = text_of(browser.get("/experiments/"))
    for text in ("Brain tumours", "Running", "1 of 7", "0.712", "Ada"):
        assert text in page


@pytest.mark.parametrize(
    ("number", "ended", "says"), [(8, False, "final evaluation"), (8, True, "all 7"), (7, False, "7 of 7")]
)
def test_the_list_speaks_of_the_final_evaluation_by_name(browser, owner, number, ended, says):
    experiment = make_experiment(owner, rounds=7)
    Round.objects.create(experiment=experiment, number=number)
    Experiment.objects.update(
        state="completed" if ended else "running", ended_at=experiment.created_at if ended else None
    )
    assert says in text_of(browser.get("/experiments/"))


def test_a_draft_leads_to_the_composer_for_its_owner_only(browser, draft):
    other = make_experiment(otto())
    other.viewers.add(draft.owner)
    page = text_of(browser.get("/experiments/"))
    assert f'href="{edit(draft)}"' in page
    assert f'href="{edit(other)}"' not in page
    assert f'href="/experiments/{other.key}/"' in page


@pytest.mark.parametrize(
    ("query", "titles"),
    [
        ("", {"Brain", "Spleen", "Others"}),
        ("state=running", {"Spleen"}),
        ("mine=on", {"Brain", "Spleen"}),
        ("search=bra", {"Brain"}),
        ("search=bra&state=running", set()),
        ("state=nonsense", {"Brain", "Spleen", "Others"}),
    ],
)
def test_the_list_is_filtered(browser, owner, query, titles):
    make_experiment(owner, title="Brain")
    make_experiment(owner, title="Spleen", state=ExperimentState.RUNNING)
    make_experiment(otto(), title="Others").viewers.add(owner)
    answer = browser.get(f"/experiments/?{query}")
    assert {experiment.title for experiment in answer.context["object_list"]} == titles


def test_the_pages_of_the_list_keep_the_filter(browser, owner):
    for _ in range(26):
        make_experiment(owner, sites=0)
    page = text_of(browser.get("/experiments/?mine=on&search=experiment"))
    assert "?mine=on&search=experiment&page=2" in page
    assert len(browser.get("/experiments/?mine=on&page=2").context["object_list"]) == 1
    assert browser.get("/experiments/?page=99").status_code == 404


def test_the_list_costs_the_same_for_one_and_for_many(browser, owner, django_assert_max_num_queries):
    for count in (1, 10):
        for _ in range(count):
            make_experiment(owner, sites=1)
        with django_assert_max_num_queries(5):
            browser.get("/experiments/")


def test_the_composer_costs_the_same_for_three_sites_and_for_twelve(browser, owner, django_assert_max_num_queries):
    for sites in (3, 12):
        experiment = make_experiment(owner, sites=sites)
        for section, most in (
            ("question", 8),
            ("sites", 12),
            ("recipe", 8),
            ("rounds", 9),
            ("comparison", 13),
            ("review", 12),
        ):
            with django_assert_max_num_queries(most):
                browser.get(edit(experiment, section))


# --- acts -------------------------------------------------------------------------------------------


def test_an_experiment_is_paused_resumed_and_cancelled_by_buttons(browser, draft):
    for act, state in (("start", "running"), ("pause", "paused"), ("resume", "running"), ("cancel", "cancelling")):
        answer = browser.post(f"/experiments/{draft.key}/{act}/")
        draft.refresh_from_db()
        assert (answer.url, draft.state) == (f"/experiments/{draft.key}/", state)


def test_an_act_that_comes_too_late_says_so(browser, draft):
    answer = browser.post(f"/experiments/{draft.key}/pause/", headers={"Referer": "http://testserver/experiments/"})
    assert answer.url == "http://testserver/experiments/"
    assert "is “Draft” and cannot become “Paused”" in said(browser.get("/experiments/"))


def test_a_draft_is_deleted_by_its_button(browser, draft):
    answer = browser.post(f"/experiments/{draft.key}/delete/", follow=True)
    assert f"The draft “{draft.title}” is deleted." in said(answer)
    assert not Experiment.objects.exists()


def test_sharing_with_nobody_says_so(browser, draft):
    friend = eve()
    answer = browser.post(f"/experiments/{draft.key}/share/", {"username": " eve "})
    assert answer.headers["Location"] == edit(draft, "review") + "#people"
    assert list(draft.viewers.all()) == [friend]
    answer = browser.post(f"/experiments/{draft.key}/share/", {"username": "nobody"})
    assert answer.status_code == 302
    assert "nobody with the user name “nobody”" in said(browser.get("/experiments/"))


def test_who_sees_an_experiment_is_on_its_page_and_can_be_taken_back(browser, draft):
    services.start(experiment=draft, by=draft.owner)
    services.share(experiment=draft, user=(friend := eve()), by=draft.owner)
    page, button = f"/experiments/{draft.key}/", f'action="/experiments/{draft.key}/unshare/"'
    assert button in browser.get(page).content.decode()
    theirs = Client()
    theirs.force_login(friend)
    seen = theirs.get(page).content.decode()
    assert "Who sees this" in seen
    assert button not in seen
    for _ in range(2):
        browser.post(f"/experiments/{draft.key}/unshare/", {"username": "eve"})
    assert theirs.get(page).status_code == 404


def test_a_draft_is_shared_on_its_review_and_shown_there_to_who_may_only_look(browser, draft):
    review = edit(draft, "review")
    assert f'action="/experiments/{draft.key}/share/"' in text_of(browser.get(review))
    theirs = Client()
    theirs.force_login(eve())
    assert theirs.get(review).status_code == 404
    browser.post(f"/experiments/{draft.key}/share/", {"username": "eve"})
    answer = theirs.get(f"/experiments/{draft.key}/", follow=True)
    assert answer.redirect_chain[-1][0] == review
    seen = text_of(answer)
    assert "is still composing it" in seen
    assert f'action="/experiments/{draft.key}/clone/"' in seen
    for act in ("start", "delete", "share", "unshare"):
        assert f'action="/experiments/{draft.key}/{act}/"' not in seen
    assert theirs.post(edit(draft, "question"), {"title": "Mine"}).status_code == 403
