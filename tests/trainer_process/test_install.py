"""The installation at a site: what it lays where, that it may be repeated, and that the key stays where it belongs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fedportal.connectors.trainer_process import ROOT
from trainer.contract import CONTRACT_VERSION
from trainer.contract.code import code_digest
from trainer.install import PASSED_ON, main

KEY = "ab" * 32


@pytest.fixture(autouse=True)
def no_key_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDPORTAL_SITE_KEY", raising=False)


def install(folder: Path, *more: str, key: str = KEY) -> int:
    (folder / "key").write_text(key + "\n")
    return main(
        [
            *("--dags", str(folder / "dags"), "--home", str(folder / "home"), "--data-root", str(folder / "data")),
            *("--python", sys.executable, "--key-file", str(folder / "key"), *more),
        ]
    )


def test_it_lays_down_code_site_file_and_dags(tmp_path: Path) -> None:
    assert install(tmp_path, "--pool", "gpu", "--hours", "6") == 0
    settings = json.loads((tmp_path / "dags/fedportal/fedportal.json").read_text())
    assert (settings["contract"], settings["code"], settings["pool"]) == (
        CONTRACT_VERSION,
        code_digest(dags=True),
        "gpu",
    )
    assert (tmp_path / "dags/fedportal/fedportal_dags.py").exists()
    site = json.loads(Path(settings["site"]).read_text())
    assert (site["key"], site["data_root"]) == (KEY, str(tmp_path / "data"))
    assert (tmp_path / "home/site.json").stat().st_mode & 0o777 == 0o600
    done = subprocess.run(
        [settings["python"], "-c", "import trainer.task; print(trainer.task.__file__)"],
        cwd="/",
        env={"PYTHONPATH": settings["lib"]},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip().startswith(settings["lib"])


def test_tasks_and_service_get_the_settings_of_the_installing_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in PASSED_ON:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@proxy:3128")
    monkeypatch.setenv("NO_PROXY", "localhost, .hospital.example")
    install(tmp_path)
    service = tmp_path / "home/environment"
    given = dict(line.split("=", 1) for line in service.read_text().splitlines())
    assert given == {"HTTPS_PROXY": "http://me:secret@proxy:3128", "NO_PROXY": "localhost, .hospital.example"}
    assert service.stat().st_mode & 0o777 == 0o600
    assert json.loads((tmp_path / "dags/fedportal/fedportal.json").read_text())["environment"] == given


def test_the_key_is_in_the_site_file_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(tmp_path)
    (tmp_path / "key").unlink()
    holding = [path.name for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert holding == ["site.json"]
    assert KEY not in "".join(capsys.readouterr())


def test_an_update_keeps_the_key_and_replaces_the_code(tmp_path: Path) -> None:
    install(tmp_path)
    stale = tmp_path / "home/lib/trainer/stale.py"
    stale.touch()
    options = ["--dags", str(tmp_path / "dags"), "--home", str(tmp_path / "home"), "--data-root", str(tmp_path)]
    assert main([*options, "--python", sys.executable]) == 0
    assert json.loads((tmp_path / "home/site.json").read_text())["key"] == KEY
    assert not stale.exists()
    assert sorted(path.name for path in (tmp_path / "home/lib").iterdir()) == ["trainer"]


@pytest.mark.parametrize("key", ["", "short", "zz" * 32, "ab" * 31])
def test_what_is_no_key_is_refused(tmp_path: Path, key: str) -> None:
    assert install(tmp_path, key=key) == 2
    assert not (tmp_path / "dags").exists()


def test_it_needs_the_standard_library_only() -> None:
    code = (
        "import sys, trainer.install; print([m for m in ('numpy', 'requests', 'torch', 'nibabel') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
