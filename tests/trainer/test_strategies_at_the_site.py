"""What strategies ask of a site: FedProx a term in the loss, FedBN layers of its own."""

import json
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from tests.trainer.conftest import BRAIN, changed, make_spec, write_dataset
from trainer import bundle, layers, losses, networks
from trainer.contract import Kind, Network, has_norm_entries
from trainer.initial import init

# --- FedProx ----------------------------------------------------------------------------------------


def test_the_proximal_term_is_half_mu_times_the_squared_distance():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    term = losses.ProximalTerm(model, 0.3)
    assert term() == 0
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters(), 1):
            parameter += 0.1 * number
        model[1].running_mean += 100  # a buffer is not trained and not pulled
    term().backward()
    distance = sum(((p - before[name]) ** 2).sum() for name, p in model.named_parameters())
    torch.testing.assert_close(term(), 0.15 * distance)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, 0.3 * (parameter - before[name]).detach())


@pytest.mark.parametrize("mu", [0.1, 5.0])
def test_fedprox_pulls_each_step_towards_the_global_model(plan, work, site, tmp_path: Path, mu):
    """Two steps of plain descent on one batch: w2 = w1 − η·(∇f(w1) + μ·(w1 − w0)); all but the last term is FedAvg's."""
    write_dataset(site.data_root / "One", train=1)
    still = changed(
        plan, augmentation="none", local_epochs=2, optimizer={"name": "sgd", "momentum": 0.0, "learning_rate": 0.5}
    )
    start = tmp_path / "start"
    init(still, start)
    w0 = load_file(start)
    runs = {
        "one step": changed(still, local_epochs=1),
        "plain": still,
        "pulled": changed(still, proximal_mu=mu),
    }
    w1, plain, pulled = (
        load_file(work(run, run=f"run-{i}", dataset="One", model=start)[0].update)
        for i, run in enumerate(runs.values())
    )
    for name, tensor in pulled.items():
        torch.testing.assert_close(tensor - plain[name], -0.5 * mu * (w1[name] - w0[name]), rtol=1e-3, atol=1e-6)
    assert any(not torch.equal(pulled[name], plain[name]) for name in pulled)


def test_the_loss_that_is_reported_is_the_plans_own(plan, work, report):
    work(changed(plan, local_epochs=1, batch_size=1, proximal_mu=10.0, optimizer={"learning_rate": 0.1}))
    assert len(report.values("train", "loss")) == 2
    assert max(report.values("train", "loss")) <= 1  # Dice; the term alone is larger


# --- FedBN ------------------------------------------------------------------------------------------


@pytest.fixture
def kept(plan):
    return changed(plan, network={"norm": "batch"}, local_layers="normalisation", local_epochs=1, rounds=9)


def test_layers_are_found_by_their_type_and_not_by_their_name(kept):
    class Oddly(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.Linear(2, 2)  # what a search for names would take
            self.inner = nn.Sequential(nn.Conv3d(1, 1, 1), nn.GroupNorm(1, 1))
            self.again = self.inner[1]  # tied: both of its names stay
            self.plain = nn.InstanceNorm3d(4)

    assert layers.local_names(Oddly(), kept) == ["inner.1.weight", "inner.1.bias", "again.weight", "again.bias"]
    assert layers.local_names(Oddly(), changed(kept, local_layers="none")) == []


@pytest.mark.parametrize("norm", ["instance", "batch", "group"])
@pytest.mark.parametrize("name", ["unet", "residual_unet", "segresnet", "dynunet", "attention_unet"])
def test_the_contract_knows_which_networks_have_something_to_keep(kept, name, norm):
    network = Network(name=name, channels=(4, 8, 8), strides=(2, 2), norm=norm)
    found = layers.local_names(networks.build(BRAIN, network), kept)
    assert bool(found) is has_norm_entries(network)


def test_a_site_goes_on_with_its_own_layers_and_everybody_elses_rest(kept, work, site, tmp_path: Path):
    first, _ = work(kept, round=1)
    mine = load_file(first.update)
    local = layers.local_names(networks.build(BRAIN, kept.network), kept)
    others = {name: tensor + 1 if tensor.is_floating_point() else tensor + 7 for name, tensor in mine.items()}
    average = tmp_path / "average"
    save_file(others, average)

    model = networks.build(BRAIN, kept.network)
    model.load_state_dict(others)
    spec = make_spec(kept, round=2)
    layers.restore(model, spec, site=site, report=None)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, mine[name] if name in local else others[name]), name


def test_what_others_have_in_their_layers_changes_nothing_here(kept, work, tmp_path: Path):
    first, _ = work(kept, round=1)
    mine = load_file(first.update)
    with safe_open(first.update, "pt") as file:
        note = json.loads(file.metadata()["fedportal"])
    foreign = {name: tensor + 1 if name in note["local"] else tensor for name, tensor in mine.items()}
    save_file(foreign, tmp_path / "foreign")
    usual, _ = work(kept, round=2, run="usual", model=first.update)
    (tmp_path / "work/state/abcd/layers-r2.safetensors").unlink()
    other, _ = work(kept, round=2, run="other", model=tmp_path / "foreign")
    assert load_file(usual.update).keys() == load_file(other.update).keys()
    assert all(torch.equal(tensor, load_file(other.update)[name]) for name, tensor in load_file(usual.update).items())


def test_models_name_the_layers_that_are_only_a_mean(kept, work, tmp_path: Path):
    outcome, _ = work(kept)
    (initial,) = tmp_path.glob("initial-*.safetensors")
    local = layers.local_names(networks.build(BRAIN, kept.network), kept)
    assert any(name.endswith("running_mean") for name in local)
    assert any(name.endswith("num_batches_tracked") for name in local)
    for path in (initial, outcome.update):
        with safe_open(path, "pt") as file:
            assert json.loads(file.metadata()["fedportal"])["local"] == local


def test_the_incoming_model_and_the_final_one_are_measured_with_the_sites_own_layers(
    kept, work, report, tmp_path: Path
):
    kept = changed(kept, local_epochs=30, optimizer={"learning_rate": 1e-2})
    first, _ = work(kept, round=1)
    good = report.values("local", "dice", "mean")[-1]
    spoilt = load_file(first.update)
    with safe_open(first.update, "pt") as file:
        for name in json.loads(file.metadata()["fedportal"])["local"]:
            spoilt[name] = spoilt[name] * 0
    save_file(spoilt, tmp_path / "spoilt")
    for kind in (Kind.EVALUATE, Kind.TRAIN):
        work(kept, round=2, run=f"again-{kind}", model=tmp_path / "spoilt", kind=kind)
        assert report.values("incoming", "dice", "mean")[-1] == pytest.approx(good)


def test_repeating_a_round_repeats_its_result_and_its_layers(kept, work, site):
    first, _ = work(kept, round=1)
    second, _ = work(kept, round=2, model=first.update)
    layers_then = layers.kept_path(site, "abcd", 2).read_bytes()
    again, _ = work(kept, round=2, attempt=2, model=first.update)
    assert again.update.read_bytes() == second.update.read_bytes()
    assert layers.kept_path(site, "abcd", 2).read_bytes() == layers_then


def test_a_site_that_missed_rounds_takes_its_last_layers(kept, work, report, site):
    first, _ = work(kept, round=1)
    late, _ = work(kept, round=5, model=first.update)
    again, _ = work(kept, round=5, attempt=2, model=first.update)
    assert again.update.read_bytes() == late.update.read_bytes(), "what it went on from is still there"
    assert report.said.count("No normalisation layers are kept here: starting with the mean over the sites.") == 0


def test_layers_of_the_last_three_rounds_are_kept(kept, work, site):
    for round in (1, 4, 5, 9):
        work(kept, round=round)
    assert sorted(path.name for path in site.state("abcd").iterdir()) == [
        f"layers-r{number}.safetensors" for number in (4, 5, 9)
    ]


def test_a_site_without_layers_of_its_own_takes_the_mean_and_says_so(kept, work, report):
    late, _ = work(kept, round=3)
    assert any("starting with the mean over the sites" in said for said in report.said)
    plain, _ = work(changed(kept, local_layers="none"), round=3, run="plain")
    assert all(torch.equal(t, load_file(plain.update)[name]) for name, t in load_file(late.update).items())


def test_kept_layers_that_do_not_fit_are_left_aside_and_said(kept, work, site, report):
    path = layers.kept_path(site, "abcd", 1)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not a model")
    work(kept, round=2)
    assert any("The kept normalisation layers do not fit" in said for said in report.said)


def test_the_bundle_says_that_its_layers_are_a_mean(kept, work, tmp_path: Path):
    outcome, _ = work(kept)
    for plan, is_said in ((kept, True), (changed(kept, local_layers="none"), False)):
        (tmp_path / "recipe.json").write_text(json.dumps({"plan": plan.to_json()}))
        bundle.build(outcome.update, tmp_path / "recipe.json", tmp_path / "out.zip")
        with zipfile.ZipFile(tmp_path / "out.zip") as archive:
            (readme,) = (archive.read(name).decode() for name in archive.namelist() if name.endswith("README.md"))
            (about,) = (json.loads(archive.read(n)) for n in archive.namelist() if n.endswith("metadata.json"))
        assert ("mean over the sites" in readme) is is_said
        assert ("mean over the sites" in about["description"]) is is_said
