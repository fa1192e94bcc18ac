"""Install the trainer at a site: its code, its environment, the site's file, the DAGs (``python -m trainer.install``).

May be repeated at any time, for an update or for other settings. Standard library only: it runs before anything else
is there.

=====================  =====================================================================================
``<home>/lib``         the trainer's code
``<home>/venv``        its Python environment, made unless ``--python`` names one
``<home>/site.json``   folders and key of this site, readable by its user only
``<home>/environment`` proxy, certificates, devices: what the warm trainer's service is given (``EnvironmentFile``)
``<dags>/fedportal``   the DAG file, and ``fedportal.json``: where the above lies, without any secret
=====================  =====================================================================================
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

from trainer.contract import CONTRACT_VERSION
from trainer.contract.code import code_digest

SOURCE = Path(__file__).resolve().parent
PASSED_ON = ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH",
             "FEDPORTAL_RELAY")  # fmt: skip
"""Settings of the machine that the trainer needs and that neither a task nor a service inherits."""


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trainer.install", description=__doc__.split("\n")[0])
    parser.add_argument("--dags", type=Path, required=True, help="Airflow's DAG folder")
    parser.add_argument("--home", type=Path, required=True, help="folder for the trainer, e.g. /opt/fedportal")
    parser.add_argument("--data-root", type=Path, required=True, help="folder of the datasets, one folder each")
    parser.add_argument("--work-dir", type=Path, help="folder for runs and cache (default <home>/work)")
    parser.add_argument("--key-file", type=Path, help="file with the site's key; without it the key is asked for")
    parser.add_argument("--python", type=Path, help="Python of an environment that has trainer/requirements.txt")
    parser.add_argument("--socket", type=Path, help="socket of the warm trainer (default <home>/trainer.sock)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of a run (default: all)")
    parser.add_argument("--pool", default="default_pool", help="Airflow pool that trainings take a slot of, e.g. gpu")
    parser.add_argument("--hours", type=float, default=24, help="hours after which a run is ended (default 24)")
    parser.add_argument("--keep-days", type=float, default=14, help="days that logs of runs are kept (default 14)")
    return parser


def main(argv: list[str]) -> int:
    options = arguments().parse_args(argv)
    home = options.home.absolute()
    home.mkdir(parents=True, exist_ok=True)
    key = _key(options.key_file, home / "site.json")
    if not key:
        sys.stderr.write("The site's key is 64 hexadecimal digits; the portal shows it on the page of the site.\n")
        return 2
    _replace_folder(SOURCE, home / "lib" / "trainer")
    python = options.python.absolute() if options.python else _environment(home / "venv")
    socket = (options.socket or home / "trainer.sock").absolute()
    work_dir = (options.work_dir or home / "work").absolute()
    work_dir.mkdir(parents=True, exist_ok=True, mode=0o750)
    _write_json(
        home / "site.json",
        {
            "data_root": str(options.data_root.absolute()),
            "work_dir": str(work_dir),
            "key": key,
            "threads": options.threads,
            "socket": str(socket),
            "keep_days": options.keep_days,
        },
        mode=0o600,
    )
    environment = {name: os.environ[name] for name in PASSED_ON if os.environ.get(name)}
    _write(home / "environment", "".join(f"{name}={value}\n" for name, value in environment.items()), mode=0o600)
    dags = options.dags.absolute() / "fedportal"
    dags.mkdir(parents=True, exist_ok=True)
    _write_json(
        dags / "fedportal.json",
        {
            "python": str(python),
            "lib": str(home / "lib"),
            "site": str(home / "site.json"),
            "environment": environment,
            "contract": CONTRACT_VERSION,
            "code": code_digest(dags=True),
            "pool": options.pool,
            "hours": options.hours,
        },
        mode=0o644,
    )
    shutil.copyfile(SOURCE / "dags" / "fedportal_dags.py", dags / "fedportal_dags.py.new")
    (dags / "fedportal_dags.py.new").replace(dags / "fedportal_dags.py")
    sys.stdout.write(
        f"Installed trainer {code_digest(dags=True)} (contract {CONTRACT_VERSION}) in {home}, DAGs in {dags}.\n"
        f"Faster rounds: keep a warm trainer running, as the user that runs Airflow's tasks:\n"
        f"  cd {home / 'lib'} && {python} -m trainer serve --socket {socket}\n"
    )
    return 0


def _key(file: Path | None, site_file: Path) -> str:
    """Return the site's key from its file, from the installation before, or from whoever sits there."""
    text = ""
    if file is not None:
        text = file.read_text()
    elif os.environ.get("FEDPORTAL_SITE_KEY"):
        text = os.environ["FEDPORTAL_SITE_KEY"]
    elif site_file.exists():
        text = str(json.loads(site_file.read_text()).get("key") or "")
    elif sys.stdin.isatty():
        import getpass

        text = getpass.getpass("Key of this site: ")
    text = text.strip().lower()
    try:
        return text if len(bytes.fromhex(text)) == 32 else ""
    except ValueError:
        return ""


def _environment(folder: Path) -> Path:
    """Make the trainer's environment, or bring it up to date; return its Python."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, "-r", str(SOURCE / "requirements.txt")], check=True)
    return python


def _replace_folder(source: Path, target: Path) -> None:
    """Copy a folder so that a run that starts meanwhile sees the old or the new one, not half of each."""
    if source == target:
        return
    new, old = target.with_name(".new"), target.with_name(".old")
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, new, ignore=shutil.ignore_patterns("__pycache__"))
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _write_json(path: Path, values: dict[str, Any], *, mode: int) -> None:
    _write(path, json.dumps(values, indent=2) + "\n", mode=mode)


def _write(path: Path, text: str, *, mode: int) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.unlink(missing_ok=True)
    temporary.touch(mode=mode)
    temporary.write_text(text)
    temporary.chmod(mode)
    temporary.replace(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
