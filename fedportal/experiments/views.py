"""Pages of the experiments: the list, the composer, and the acts. Live curves are the business of ``monitoring``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from django.contrib import messages
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.views import View
from django.views.decorators.http import require_POST
from django.views.generic import ListView

from fedportal.accounts.models import User
from fedportal.experiments import baselines, bundles, services
from fedportal.experiments.forms import SECTIONS, BaselinesForm, FilterForm, SectionForm
from fedportal.experiments.models import CONTROLLERS_ONLY, Experiment, GlobalModel
from fedportal.experiments.plan import PRESETS, differences
from fedportal.experiments.proposal import propose
from fedportal.experiments.readiness import checklist
from fedportal.experiments.recipe import GROUPS, has_effect, of_section, value_of
from fedportal.experiments.review import sentence, step_table
from fedportal.experiments.size import demand
from fedportal.sites.models import Site
from fedportal.ui.permissions import ComposerRequiredMixin, composer_required, require

REVIEW = "review"
TITLES = {name: form.title for name, form in SECTIONS.items()} | {REVIEW: "Review"}
CLONES_OFFERED = 10


def visible(request: HttpRequest, key: str) -> Experiment:
    """Fetch an experiment that this person may see; a stranger's is not found."""
    return get_object_or_404(
        Experiment.objects.visible_to(request.user).select_related("owner", "cloned_from"), key=key
    )


def controlled(request: HttpRequest, key: str) -> Experiment:
    """Fetch an experiment that this person may change; one that they may only see is refused."""
    experiment = visible(request, key)
    require(experiment.can_be_controlled_by(request.user), CONTROLLERS_ONLY)
    return experiment


class ExperimentList(ListView):
    paginate_by = 25
    template_name = "experiments/experiment_list.html"

    def get_queryset(self) -> QuerySet[Experiment]:
        self.filter = FilterForm(self.request.GET)
        self.filter.is_valid()
        wanted = self.filter.cleaned_data
        rows = Experiment.objects.listed_for(self.request.user).with_progress().select_related("owner")
        return rows.matching(
            state=wanted.get("state", ""),
            owner=self.request.user if wanted.get("mine") else None,
            search=wanted.get("search", ""),
        )

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        asked = {name: value for name, value in self.request.GET.items() if name != "page" and value}
        query = f"{urlencode(asked)}&" if asked else ""
        context = super().get_context_data(filter=self.filter, is_filtered=bool(asked), query=query, **kwargs)
        for experiment in context["object_list"]:
            experiment.is_mine = experiment.can_be_controlled_by(self.request.user)
        return context


class NewExperiment(ComposerRequiredMixin, View):
    """Where an experiment begins: a preset, or a copy of one that is there."""

    def get(self, request: HttpRequest) -> HttpResponse:
        others = Experiment.objects.listed_for(request.user).with_progress().select_related("owner")[:CLONES_OFFERED]
        ready = sum(site.health == "healthy" for site in Site.objects.hospitals().with_last_check())
        context = {
            "presets": PRESETS.values(),
            "others": others,
            "ready_sites": ready,
            "proposal": propose(request.user),
        }
        return render(request, "experiments/new.html", context)

    def post(self, request: HttpRequest) -> HttpResponse:
        preset = request.POST.get("preset", "")
        if preset not in PRESETS:
            messages.error(request, "Choose one of the presets.")
            return redirect("experiments:create")
        experiment = services.create_draft(owner=request.user, preset=preset)
        return redirect("experiments:edit", key=experiment.key)


class Composer(View):
    """One section of a draft. Every button saves what was typed; ``go`` says where to go then.

    Who may only look at the draft gets its review.
    """

    def setup(self, request: HttpRequest, *args: Any, **kwargs: Any) -> None:
        super().setup(request, *args, **kwargs)
        self.section = kwargs.get("section", "question")

    def get(self, request: HttpRequest, key: str, section: str = "question") -> HttpResponse:
        experiment = self._draft(request, key, reads=True)
        if experiment is None:
            return redirect("monitoring:experiment", key=key)
        if section == REVIEW:
            return self._render(experiment, "experiments/review.html", **_review(experiment, request.user))
        form_class = self._form_class(section)
        if not experiment.can_be_controlled_by(request.user):
            return redirect("experiments:edit", key=key, section=REVIEW)
        return self._form_page(form_class(experiment=experiment))

    def post(self, request: HttpRequest, key: str, section: str = "question") -> HttpResponse:
        experiment = self._draft(request, key)
        if experiment is None:
            return redirect("monitoring:experiment", key=key)
        form = self._form_class(section)(request.POST, experiment=experiment)
        if not form.save(request.user):
            return self._form_page(form, status=422)
        target = request.POST.get("go", "")
        if target not in TITLES:
            messages.success(request, "Draft saved.")
            target = section
        return redirect("experiments:edit", key=key, section=target)

    def _draft(self, request: HttpRequest, key: str, *, reads: bool = False) -> Experiment | None:
        experiment = visible(request, key) if reads else controlled(request, key)
        if experiment.is_draft:
            return experiment
        messages.info(request, services.NotADraft().message)
        return None

    def _form_class(self, section: str) -> type[SectionForm]:
        if section not in SECTIONS:
            raise Http404
        return SECTIONS[section]

    def _form_page(self, form: SectionForm, status: int = 200) -> HttpResponse:
        order = list(TITLES)
        place = order.index(form.section)
        return self._render(
            form.experiment,
            f"experiments/section_{form.section}.html",
            status,
            form=form,
            refused=sum(bool(field.errors) for field in form),
            previous=order[place - 1] if place else "",
            following=order[place + 1],
            **form.context(self.request.user),
        )

    def _render(self, experiment: Experiment, template: str, status: int = 200, **context: Any) -> HttpResponse:
        checks = checklist(experiment)
        open_sections = {check.section for check in checks if not check.ok}
        sections = [(name, title, name not in open_sections) for name, title in TITLES.items() if name != REVIEW]
        sections.append((REVIEW, TITLES[REVIEW], not open_sections))
        context |= {
            "experiment": experiment,
            "may_control": experiment.can_be_controlled_by(self.request.user),
            "section": self.section,
            "section_title": TITLES[self.section],
            "titles": TITLES,
            "sections": sections,
            "checks": checks,
            "is_ready": not open_sections,
        }
        return render(self.request, template, context, status=status)


def _review(experiment: Experiment, user: User) -> dict[str, Any]:
    parts = list(experiment.participations.select_related("site", "dataset"))
    groups = []
    for section in dict.fromkeys(group.section for group in GROUPS):
        for group, settings in of_section(section):
            used = [setting for setting in settings if has_effect(experiment, setting)]
            rows = [(setting, setting.show(value_of(experiment, setting))) for setting in used]
            groups.append((group, rows))
    return {
        "sentence": sentence(experiment),
        "groups": groups,
        "steps": step_table(experiment, user),
        "size": demand(experiment.plan, [part.dataset for part in parts]),
        "participations": parts,
        "changed": differences(experiment.cloned_from, experiment) if experiment.cloned_from else [],
        "viewers": experiment.viewers.order_by("username"),
    }


# --- acts -------------------------------------------------------------------------------------------


def _act(service: Callable[..., None], done: str) -> Callable[..., HttpResponse]:
    @require_POST
    def view(request: HttpRequest, key: str) -> HttpResponse:
        experiment = controlled(request, key)
        service(experiment=experiment, by=request.user)
        messages.success(request, done)
        return redirect("monitoring:experiment", key=key)

    return view


start = _act(services.start, "The experiment has started.")
pause = _act(services.pause, "The experiment is paused.")
resume = _act(services.resume, "The experiment goes on.")
cancel = _act(services.cancel, "The experiment is being cancelled.")


@require_POST
@composer_required
def clone(request: HttpRequest, key: str) -> HttpResponse:
    twin = services.clone(experiment=visible(request, key), by=request.user)
    messages.success(request, "This is your copy. Change what you like.")
    return redirect("experiments:edit", key=twin.key)


@require_POST
def delete(request: HttpRequest, key: str) -> HttpResponse:
    experiment = controlled(request, key)
    services.delete_draft(experiment=experiment)
    messages.success(request, f"The draft “{experiment.title}” is deleted.")
    return redirect("experiments:list")


@require_POST
def retry(request: HttpRequest, key: str, slug: str) -> HttpResponse:
    experiment = controlled(request, key)
    site = get_object_or_404(Site, slug=slug, participations__experiment=experiment)
    services.retry_site(experiment=experiment, site=site, by=request.user)
    messages.success(request, f"{site} tries again.")
    return redirect("monitoring:experiment", key=key)


@require_POST
def add_baselines(request: HttpRequest, key: str) -> HttpResponse:
    experiment = controlled(request, key)
    form = BaselinesForm(request.POST, experiment=experiment)
    if form.is_valid():
        made = baselines.add(experiment=experiment, kinds=form.cleaned_data["baselines"], by=request.user)
        text = (
            f"{len(made)} run{'s are' if len(made) != 1 else ' is'} added." if made else "All of it is there already."
        )
        messages.success(request, text)
    else:
        messages.error(request, " ".join(form.errors["baselines"]))
    return redirect("monitoring:experiment", key=key)


@require_POST
def share(request: HttpRequest, key: str) -> HttpResponse:
    experiment = controlled(request, key)
    username = request.POST.get("username", "").strip()
    user = User.objects.filter(username=username, is_active=True).first()
    if user is None:
        messages.error(request, f"There is nobody with the user name “{username[:150]}”.")
    else:
        services.share(experiment=experiment, user=user, by=request.user)
        messages.success(request, f"{user} can see the experiment now.")
    return _people_of(experiment)


@require_POST
def unshare(request: HttpRequest, key: str) -> HttpResponse:
    experiment = controlled(request, key)
    user = experiment.viewers.filter(username=request.POST.get("username", "")).first()
    if user is not None:  # else somebody else was faster
        services.unshare(experiment=experiment, user=user, by=request.user)
        messages.success(request, f"The experiment is no longer shared with {user}.")
    return _people_of(experiment)


def _people_of(experiment: Experiment) -> HttpResponse:
    """Go back to where a page says who sees an experiment."""
    if experiment.is_draft:
        return redirect(f"{reverse('experiments:edit', args=[experiment.key, REVIEW])}#people")
    return redirect(f"{reverse('monitoring:experiment', args=[experiment.key])}#people")


@require_POST
def make_bundle(request: HttpRequest, key: str, number: int) -> HttpResponse:
    """Whoever may download a model may have it packed as a bundle."""
    models = GlobalModel.objects.filter(experiment=visible(request, key)).select_related("experiment")
    bundles.ask_for_bundle(model=get_object_or_404(models, round_number=number), by=request.user)
    page = request.POST.get("page", "")
    query = f"?page={int(page)}" if page.isdecimal() and page.isascii() and len(page) < 6 else ""
    return redirect(f"{reverse('monitoring:models', args=[key])}{query}#round-{number}")
