"""What is installed at a site: the DAGs, the chart, the images, and the command that builds them."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from helm_python.chart import Chart, lint, package

from fedportal.connectors.kaapana_check import DAGS, VERSION
from tests.kaapana_double.double import EXTENSION, HERE, ROOT
from trainer.kaapana.build import CHART, Unbuildable, build, main, stage
from trainer.kaapana.build import chain as build_order

AIRFLOW = ROOT / ".venv-airflow-2" / "bin" / "python"
EGRESS = {"network-access-external-ips": "true"}
SERVER_MADE = len("-yymmddHHMMSSffffff")
LONGEST_POD_NAME = 62


@pytest.fixture(scope="session")
def dags(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if not AIRFLOW.exists():
        pytest.fail("Airflow 2 is not installed: run `make airflow`.")
    home = tmp_path_factory.mktemp("airflow-home")
    environment = {
        "PATH": os.environ["PATH"],
        "AIRFLOW_HOME": str(home),
        "PYTHONPATH": f"{HERE / 'platform'}:{EXTENSION}",
        "PYTHONWARNINGS": "ignore",
    }
    script = Path(__file__).with_name("describe_dags.py")
    done = subprocess.run(
        [str(AIRFLOW), str(script), str(EXTENSION / "dag_fp_train.py")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(done.stdout))


# --- DAGs ---------------------------------------------------------------------------------------------


def test_the_dag_file_makes_the_workflows_that_the_portal_looks_for(dags: dict[str, Any]) -> None:
    assert set(dags) == {"fp-train", "fp-check", "fp-offer"} > set(DAGS)
    for dag in dags.values():
        assert VERSION in dag["tags"]
        assert dag["schedule"] is None
        assert dag["max_active_runs"] >= 1


def test_no_two_pods_of_a_run_can_have_the_same_name(dags: dict[str, Any]) -> None:
    for dag_id, dag in dags.items():
        assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", dag_id)
        for task_id in dag["tasks"]:
            assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", task_id)
            assert len(f"{dag_id}-{task_id}") + SERVER_MADE <= LONGEST_POD_NAME


def test_only_steps_that_fetch_or_deliver_reach_the_outside_and_know_the_key(dags: dict[str, Any]) -> None:
    speaks = {(dag_id, task) for dag_id, dag in dags.items() for task in dag["tasks"] if task in ("train", "check")}
    assert len(speaks) == 2
    for dag_id, dag in dags.items():
        for task_id, task in dag["tasks"].items():
            inside = (dag_id, task_id) not in speaks
            assert (EGRESS.items() <= task["labels"].items()) is not inside
            assert task["proxy"] is not inside
            assert task["secrets"] == ([] if inside else [["FEDPORTAL_SITE_KEY", "fedportal", "site-key"]])


def test_the_training_has_a_gpu_memory_and_time(dags: dict[str, Any]) -> None:
    train = dags["fp-train"]["tasks"]["train"]
    assert train["gpu"] >= 1000
    assert train["ram_limit"] >= train["ram"] >= 4000
    assert train["hours"] >= 24
    assert train["image"].endswith("/fp-trainer:0.6.0")
    others = [task for dag in dags.values() for name, task in dag["tasks"].items() if name != "train"]
    assert not any(task["gpu"] for task in others)


def test_a_dataset_that_lies_ready_is_not_converted_again(dags: dict[str, Any]) -> None:
    tasks, order = dags["fp-train"]["tasks"], dags["fp-train"]["order"]
    assert order[0] == "look"
    assert order[-1] == "workflow-cleaner"
    assert tasks["get-input"]["upstream"] == ["look"]
    assert tasks["train"]["rule"] == "none_failed"
    assert tasks["train"]["upstream"] == ["dcm-converter-contrasts", "dcm-converter-ct", "look", "mask2nifti"]


def test_the_trainer_is_told_where_the_converters_write(dags: dict[str, Any]) -> None:
    for dag_id, task_id in (("fp-train", "train"), ("fp-offer", "offer")):
        tasks = dags[dag_id]["tasks"]
        folders = {task["out"] for task in tasks.values()}
        env = tasks[task_id]["env"]
        assert {env["FEDPORTAL_DICOM"], env["FEDPORTAL_IMAGES"], env["FEDPORTAL_MASKS"]} <= folders


def test_forms_are_those_that_kaapana_draws(dags: dict[str, Any]) -> None:
    for dag in dags.values():
        assert dag["default_args"]["ui_visible"] is True
        for name, form in dag["default_args"]["ui_forms"].items():
            assert name in ("workflow_form", "data_form")
            for field in form.get("properties", {}).values():
                assert field["title"]
                assert field["type"] in ("string", "boolean", "integer", "number")
                assert isinstance(field.get("required", False), bool)  # the old dialect: on the field itself
    # A dataset is chosen where a person starts the workflow, and there only.
    assert "data_form" not in dags["fp-offer"]["default_args"]["ui_forms"]
    assert dags["fp-train"]["default_args"]["ui_forms"]["data_form"] == {}
    assert dags["fp-offer"]["default_args"]["ui_forms"]["workflow_form"]["properties"]["confirmation"]["required"]


def test_the_operator_lies_where_kaapanas_installer_looks() -> None:
    source = (EXTENSION / "fp_train" / "FpTrainOperator.py").read_text()
    assert re.search(r"image=f\"\{DEFAULT_REGISTRY\}/[a-z-]+:\{KAAPANA_BUILD_VERSION\}\"", source)
    ast.parse(source, feature_version=(3, 12))
    dockerfile = (EXTENSION.parent / "Dockerfile").read_text()
    assert dockerfile.splitlines()[1].startswith("FROM local-only/base-installer:latest")
    for line in ("COPY files/dag_fp_train.py /kaapana/tmp/dags/", "COPY files/fp_train/ /kaapana/tmp/dags/fp_train/"):
        assert line in dockerfile


# --- chart --------------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the build needs of a checkout of Kaapana, in its layout."""
    root = tmp_path / "kaapana"
    chart = root / "services" / "utils" / "dag-installer-chart"
    (chart / "templates").mkdir(parents=True)
    (chart / "Chart.yaml").write_text('apiVersion: v1\nname: dag-installer-chart\nversion: "0.0.0"\n')
    (chart / "values.yaml").write_text("global:\n  image: x\n")
    (chart / "templates" / "job.yaml").write_text(
        "apiVersion: batch/v1\nkind: Job\nmetadata:\n  name: {{ .Values.global.image }}\n  namespace: services\n"
        "spec:\n  backoffLimit: 0\n  template:\n    spec:\n      restartPolicy: Never\n      containers:\n"
        "        - name: copy\n          image: {{ .Values.global.image }}\n          env:\n"
        "            - name: ACTION\n              value: {{ .Values.global.action }}\n"
    )
    for name, base in (("base-python-cpu", "ubuntu:24.04"), ("base-installer", "local-only/base-python-cpu:latest")):
        folder = root / ("services/utils" if name == "base-installer" else "data-processing/base-images") / name
        folder.mkdir(parents=True)
        (folder / "Dockerfile").write_text(f'FROM {base}\n\nLABEL IMAGE="{name}"\nLABEL VERSION="latest"\n')
    return root


@pytest.fixture
def staged(checkout: Path, tmp_path: Path) -> Path:
    stage(checkout, tmp_path / "out")
    return tmp_path / "out" / "fp-train"


def rendered(chart: Path, **values: str) -> list[dict[str, Any]]:
    """Return what Helm makes of the chart, each manifest judged by Kubernetes' own schema."""
    with Chart.load(chart) as loaded:
        texts = loaded.render(values={"global": values}, name=CHART, namespace="default")
    manifests = [m for text in texts.values() for m in yaml.safe_load_all(text) if m]
    for manifest in manifests:
        kubernetes_validate.validate(manifest, "1.32", strict=True)
    return manifests


def test_the_chart_passes_helms_own_judgement(staged: Path) -> None:
    report = lint(staged / "extension" / CHART, with_subcharts=True)
    # An icon is a recommendation; Kaapana shows none.
    problems = [m for m in report["messages"] if m["severity"] >= 2 and "requirements.yaml" not in m["error"]]
    assert problems == []


def test_the_chart_copies_the_dags_and_makes_no_secret_without_a_key(staged: Path) -> None:
    manifests = rendered(staged / "extension" / CHART)
    assert [m["kind"] for m in manifests] == ["Job"]
    container = manifests[0]["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "dag-fp-train"
    assert container["env"] == [{"name": "ACTION", "value": "copy"}]


def test_a_site_key_becomes_a_secret_of_the_project(staged: Path) -> None:
    values = {"fedportal_site_key": "ab" * 32, "fedportal_project": "lung"}
    secret = next(m for m in rendered(staged / "extension" / CHART, **values) if m["kind"] == "Secret")
    assert secret["metadata"]["namespace"] == "project-lung"
    assert secret["metadata"]["name"] == "fedportal"
    assert secret["stringData"] == {"site-key": "ab" * 32}


def test_a_site_key_without_a_project_is_refused(staged: Path) -> None:
    with pytest.raises(Exception, match="which project"):
        rendered(staged / "extension" / CHART, fedportal_site_key="ab")


def test_every_parameter_of_the_extension_is_explained(staged: Path) -> None:
    values = yaml.safe_load((staged / "extension" / CHART / "values.yaml").read_text())
    used = set(
        re.findall(
            r"\.Values\.global\.(fedportal_\w+)", (staged / f"extension/{CHART}/templates/site-key.yaml").read_text()
        )
    )
    assert used <= set(values["extension_params"])
    for parameter in values["extension_params"].values():
        assert set(parameter) == {"default", "definition", "type", "value"}
        assert parameter["definition"]


def test_the_packed_chart_holds_its_dependency(staged: Path, tmp_path: Path) -> None:
    archive = Path(package(staged / "extension" / CHART, destination=tmp_path))
    assert archive.name == f"{CHART}-0.0.0.tgz"
    with Chart.load(archive) as chart:
        assert "kaapanaworkflow" in chart.metadata["keywords"]
        assert any(m.startswith(f"{CHART}/charts/dag-installer-chart/") for m in chart.render(name="x"))


# --- images and build ---------------------------------------------------------------------------------


def test_the_trainers_image_gets_the_trainer_and_all_that_it_needs(staged: Path) -> None:
    image = staged / "processing-containers" / "fp-trainer"
    wanted = (image / "files" / "requirements.txt").read_text()
    assert all(f"{name}==" in wanted for name in ("torch", "monai", "pydicom", "nibabel"))
    assert (image / "files" / "trainer" / "kaapana" / "__main__.py").is_file()
    assert not (image / "files" / "trainer" / "kaapana" / "extension").exists()
    # It runs from there, without the portal: nothing of it is in the image.
    done = subprocess.run(
        [sys.executable, "-P", "-m", "trainer.kaapana", "look"],
        cwd=image / "files",
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(image / "files")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert json.loads(done.stdout)["exit_code"] == done.returncode == 10
    dockerfile = (image / "Dockerfile").read_text()
    assert 'ENTRYPOINT ["python", "-u", "-m", "trainer.kaapana"]' in dockerfile


def test_the_build_makes_what_kaapanas_page_of_extensions_takes(
    checkout: Path, staged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name in ("helm", "podman") else None)
    commands: list[list[str]] = []
    out = staged.parent
    made = build(checkout, out, registry="reg.example/kp", version="0.6.0", run=lambda c: commands.append(list(c)))
    assert [path.name for path in made] == [f"{CHART}-0.0.0.tgz", "dag-fp-train-0.0.0.tar", "fp-trainer-0.6.0.tar"]
    assert [(Path(c[0]).name, c[1]) for c in commands] == [
        ("helm", "package"), ("podman", "build"), ("podman", "build"), ("podman", "build"), ("podman", "save"),
        ("podman", "build"), ("podman", "save"),
    ]  # fmt: skip
    tags = [c[c.index("-t") + 1] for c in commands if "-t" in c]
    assert tags == [
        "local-only/base-python-cpu:latest", "local-only/base-installer:latest",
        "reg.example/kp/dag-fp-train:0.0.0", "reg.example/kp/fp-trainer:0.6.0",
    ]  # fmt: skip


def test_a_folder_that_is_no_checkout_is_refused_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--kaapana", str(tmp_path), "--out", str(tmp_path / "out"), "--stage-only"]) == 1
    assert "no checkout of Kaapana" in capsys.readouterr().err


def test_an_image_whose_base_is_missing_is_refused(checkout: Path) -> None:
    base = checkout / "data-processing" / "base-images" / "base-python-cpu"
    with pytest.raises(Unbuildable, match="base-python-cpu"):
        build_order({"base-installer": checkout / "services" / "utils" / "base-installer"}, "base-installer")
    (base / "Dockerfile").write_text('FROM local-only/base-python-cpu:latest\nLABEL IMAGE="base-python-cpu"\n')
    with pytest.raises(Unbuildable, match="stands on itself"):
        build_order({"base-python-cpu": base}, "base-python-cpu")


def test_staging_needs_no_tool(checkout: Path, tmp_path: Path) -> None:
    assert main(["--kaapana", str(checkout), "--out", str(tmp_path / "out"), "--stage-only"]) == 0
    assert (tmp_path / "out" / "fp-train" / "extension" / CHART / "charts" / "dag-installer-chart").is_dir()
