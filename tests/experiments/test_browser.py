"""The composer in a real browser: only the chosen strategy's options are in sight, the gradient steps follow the ticks,
and there is nothing for axe to find."""

import pytest
from django.conf import settings
from django.test import Client
from playwright.sync_api import expect

from fedportal.experiments.models import GlobalModel
from fedportal.experiments.recipe import STRATEGY_SETTINGS
from tests.factories import ada, make_dataset, make_experiment, make_site
from tests.fixtures_browser import violations

pytestmark = [pytest.mark.browser, pytest.mark.slow]
WIDTHS = {"desk": 1280, "phone": 390}


@pytest.fixture
def draft(live_server, transactional_db):
    experiment = make_experiment(ada())
    source = make_experiment(experiment.owner, sites=0, title="Before")
    GlobalModel.objects.create(experiment=source, round_number=1, key="k", sha256="0" * 64, size=1, dice=0.7)
    return experiment


@pytest.fixture
def session(draft) -> str:
    client = Client()
    client.force_login(draft.owner)
    return client.cookies[settings.SESSION_COOKIE_NAME].value


def in_sight(page) -> set[str]:
    return {s.field for s in STRATEGY_SETTINGS if page.locator(f"[name={s.field}]").is_visible()}


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_axe_finds_nothing_and_nothing_scrolls_sideways(open_page, draft, theme, width):
    page = open_page(f"/experiments/{draft.key}/edit/rounds/", theme=theme, width=WIDTHS[width])
    page.get_by_label("Strategy").select_option("fedadam")
    page.get_by_text("What the strategies do").click()
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[width]
    page.goto(f"/experiments/{draft.key}/edit/recipe/")
    for summary in page.get_by_text("Advanced").all():
        summary.click()
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[width]
    page.goto(f"/experiments/{draft.key}/edit/comparison/")
    page.get_by_text("Cyclic weight transfer").first.click()
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[width]
    assert page.complaints == []


def test_only_the_options_of_the_chosen_strategy_are_in_sight(open_page, draft):
    page = open_page(f"/experiments/{draft.key}/edit/rounds/")
    assert in_sight(page) == set()
    assert page.get_by_label("Weight of a site").is_visible()
    page.get_by_label("Strategy").select_option("trimmed_mean")
    assert in_sight(page) == {"trimmed_mean_trim"}
    assert not page.get_by_label("Weight of a site").is_visible()
    page.get_by_label("Strategy").select_option("fedavgm")
    assert in_sight(page) == {"fedavgm_learning_rate", "fedavgm_momentum"}
    page.get_by_label("FedAvgM: server momentum").fill("0.7")
    page.get_by_label("Stop early after").fill("3")
    page.get_by_role("button", name="Continue").click()
    page.wait_for_url("**/comparison/")
    page.goto(f"/experiments/{draft.key}/edit/review/")
    assert page.get_by_text("combine the updates by FedAvgM (server learning rate 1, server momentum 0.7)").is_visible()
    draft.refresh_from_db()
    assert (draft.strategy, draft.patience) == ("fedavgm", 3)


def test_without_scripts_every_strategy_can_be_chosen(open_page, draft):
    page = open_page(f"/experiments/{draft.key}/edit/rounds/", java_script_enabled=False)
    assert in_sight(page) == {setting.field for setting in STRATEGY_SETTINGS}
    page.get_by_label("Strategy").select_option("fedprox")
    page.get_by_label("FedProx: proximal term μ").fill("0.1")
    page.get_by_role("button", name="Save draft").click()
    draft.refresh_from_db()
    assert (draft.strategy, draft.plan["proximal_mu"]) == ("fedprox", 0.1)


def test_a_refusal_stands_at_the_strategy_with_its_reason(open_page, draft):
    page = open_page(f"/experiments/{draft.key}/edit/rounds/")
    page.get_by_label("Strategy").select_option("median")
    page.get_by_role("button", name="Continue").click()
    page.locator("[role=alert]:focus").get_by_text("needs at least 3 sites in every round, not 2").wait_for()
    page.get_by_label("Quorum").fill("3")
    page.get_by_role("button", name="Continue").click()
    page.wait_for_url("**/comparison/")


def test_an_experiment_can_start_from_anothers_model(open_page, draft):
    page = open_page(f"/experiments/{draft.key}/edit/recipe/")
    page.get_by_text("Advanced").first.click()
    page.get_by_label("Start from").select_option(
        label=f"Before ({GlobalModel.objects.get().experiment.key}), round 1, Dice 0.700"
    )
    page.get_by_role("button", name="Continue").click()
    page.goto(f"/experiments/{draft.key}/edit/review/")
    assert page.get_by_text("model of round 1 of “Before”").first.is_visible()


def test_the_gradient_steps_follow_the_ticks_and_the_ensemble_brings_the_local_only_models(open_page, draft):
    page = open_page(f"/experiments/{draft.key}/edit/comparison/")
    alone, together = page.get_by_role("checkbox", name="Local only", exact=True), page.locator("[data-together]")
    assert together.text_content() == "24"  # 2 rounds of 4 steps at 3 sites
    page.get_by_role("checkbox", name="Ensemble of the local-only models", exact=True).focus()
    page.keyboard.press("Space")
    assert alone.is_checked()
    assert together.text_content() == "48"
    page.get_by_label("Number of seeds").fill("3")
    assert together.text_content() == "144"
    assert page.get_by_text("with 3 seeds").is_visible()
    alone.uncheck()
    assert not page.get_by_role("checkbox", name="Ensemble of the local-only models", exact=True).is_checked()
    page.get_by_role("checkbox", name="Pooled", exact=True).check()
    page.get_by_role("button", name="Continue").click()
    page.wait_for_url("**/review/")
    assert page.get_by_text(
        "compared with pooled training of the same 24 gradient steps; all of it with 3 seeds."
    ).is_visible()
    draft.refresh_from_db()
    assert (draft.baselines, draft.repeats) == (["pooled"], 3)


def test_without_scripts_the_ensemble_alone_is_refused_at_its_ticks(open_page, draft):
    page = open_page(f"/experiments/{draft.key}/edit/comparison/", java_script_enabled=False)
    page.get_by_role("checkbox", name="Ensemble of the local-only models", exact=True).check()
    page.get_by_role("button", name="Save draft").click()
    assert page.get_by_text("tick “Local only”, too").first.is_visible()
    page.get_by_role("checkbox", name="Local only", exact=True).check()
    page.get_by_role("button", name="Save draft").click()
    draft.refresh_from_db()
    assert draft.baselines == ["local_only", "ensemble"]


def test_among_many_sites_one_is_found_and_the_chosen_ones_stay_in_sight(open_page, draft):
    for name in ("Zürich", "Ulm", "Graz", "Kiel"):
        make_dataset(make_site(name=f"Hospital {name}"))
    page = open_page(f"/experiments/{draft.key}/edit/sites/")
    search, said = page.get_by_label("Find a site or a dataset"), page.get_by_role("status")
    expect(said).to_have_text("3 of 7 sites chosen.")
    search.fill("zurich")
    expect(said).to_have_text("3 of 7 sites chosen. The search finds 1.")
    page.keyboard.press("Enter")  # stays, and does not save the draft
    page.get_by_role("checkbox").locator("visible=true").check()
    expect(said).to_have_text("4 of 7 sites chosen. The search finds 1.")
    assert violations(page) == []
    page.get_by_role("button", name="Choose none").click()
    expect(said).to_have_text("0 of 7 sites chosen. The search finds 1.")
    page.get_by_role("checkbox").locator("visible=true").check()
    search.fill("")
    page.get_by_role("checkbox", name="Task01_BrainTumour Hospital Ulm").check()
    page.get_by_role("button", name="Take Hospital Zürich out").press("Enter")
    expect(said).to_have_text("1 of 7 sites chosen.")
    page.get_by_role("button", name="Save draft").locator("visible=true").click()
    expect(page.get_by_text("Draft saved.")).to_be_visible()
    assert draft.participations.count() == 1
    assert page.complaints == []
