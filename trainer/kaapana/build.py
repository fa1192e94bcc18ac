"""Build the extension: ``python -m trainer.kaapana.build --kaapana CHECKOUT --out FOLDER``.

The DAG image stands on an image of Kaapana's own (``local-only/base-installer``), and the chart on a chart of its own
(``dag-installer-chart``); both come from a checkout of Kaapana, which must be of the site's version. The outcome is what
Kaapana's page of extensions takes: the chart as ``.tgz`` and two images as ``.tar``. Needs ``helm`` and ``docker`` or
``podman``; with ``--stage-only`` it lays out the folders and needs nothing.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parent
CHART = "fp-train-workflow"
INSTALLER_CHART = Path("services/utils/dag-installer-chart")
INSTALLER_IMAGE = "base-installer"
CHART_VERSION = "0.0.0"
"""Version of the chart, and so the tag of the DAG image that its job copies from."""

_LABEL = re.compile(r'^LABEL\s+IMAGE="?([^"\s]+)"?\s*$', re.MULTILINE)
_BASE = re.compile(r"^FROM\s+local-only/([^:\s]+)", re.MULTILINE)

Run = Callable[[Sequence[str]], None]


class Unbuildable(Exception):
    """Something needed is missing. The message says what, and where it was looked for."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trainer.kaapana.build", description=__doc__.splitlines()[0])
    parser.add_argument("--kaapana", type=Path, required=True, help="checkout of Kaapana, of the site's version")
    parser.add_argument("--out", type=Path, required=True, help="folder for chart and images")
    parser.add_argument("--registry", default="", help="registry that the site fetches from, as its DEFAULT_REGISTRY")
    parser.add_argument("--version", default="", help="the site's KAAPANA_BUILD_VERSION, the tag of its images")
    parser.add_argument("--pip-args", default="", help="further arguments for pip in the trainer's image")
    parser.add_argument("--stage-only", action="store_true", help="lay out the folders and build nothing")
    options = parser.parse_args(argv)
    try:
        stage(options.kaapana, options.out)
        if not options.stage_only:
            if not (options.registry and options.version):
                raise Unbuildable("--registry and --version say how the site calls the trainer's image; give both.")
            build(
                options.kaapana,
                options.out,
                registry=options.registry,
                version=options.version,
                pip_args=options.pip_args,
            )
    except Unbuildable as reason:
        sys.stderr.write(f"{reason}\n")
        return 1
    except subprocess.CalledProcessError as error:
        sys.stderr.write(f"{error.cmd[0]} {error.cmd[1]} failed ({error.returncode})\n")
        return 1
    return 0


def stage(kaapana: Path, out: Path) -> None:
    """Lay out what is built: ``out/fp-train`` as it would lie in the checkout, its chart with its dependency inside."""
    installer = kaapana / INSTALLER_CHART
    if not (installer / "Chart.yaml").is_file():
        raise Unbuildable(f"{kaapana} is no checkout of Kaapana: there is no {INSTALLER_CHART}/Chart.yaml in it.")
    images_of(kaapana)
    target = out / "fp-train"
    if target.exists():
        shutil.rmtree(target)
    unwanted = shutil.ignore_patterns("__pycache__", "*.pyc")
    for part in ("extension", "processing-containers"):
        shutil.copytree(HERE / part, target / part, ignore=unwanted)
    chart = target / "extension" / CHART
    shutil.copytree(installer, chart / "charts" / installer.name, ignore=unwanted)
    requirements = chart / "requirements.yaml"
    text = re.sub(r"file://\S+", f"file://{installer.resolve()}", requirements.read_text())
    requirements.write_text(text)
    files = target / "processing-containers" / "fp-trainer" / "files"
    shutil.copytree(
        PACKAGE,
        files / "trainer",
        ignore=lambda folder, names: {
            *unwanted(folder, names),
            *({"extension", "processing-containers"} if Path(folder) == HERE else ()),
            *({"dags", "phantoms"} if Path(folder) == PACKAGE else ()),
        },
    )
    lists = [PACKAGE / "requirements.txt", HERE / "requirements.txt"]
    (files / "requirements.txt").write_text("".join(path.read_text() for path in lists))


def build(
    kaapana: Path, out: Path, *, registry: str, version: str, pip_args: str = "", run: Run | None = None
) -> list[Path]:
    """Build chart and images from a staged folder and return their files."""
    run = run or _run
    helm, engine = _tool("helm"), _tool("docker", "podman")
    target = out / "fp-train"
    run([helm, "package", str(target / "extension" / CHART), "--destination", str(out)])
    for context in chain(images_of(kaapana), INSTALLER_IMAGE):
        run([engine, "build", "-t", f"local-only/{_label(context / 'Dockerfile')}:latest", str(context)])
    images = {
        f"{registry}/dag-fp-train:{CHART_VERSION}": target / "extension" / "docker",
        f"{registry}/fp-trainer:{version}": target / "processing-containers" / "fp-trainer",
    }
    made = [out / f"{CHART}-{CHART_VERSION}.tgz"]
    for name, context in images.items():
        arguments = ["--build-arg", f"PIP_ARGS={pip_args}"] if pip_args and "trainer" in name else []
        run([engine, "build", *arguments, "-t", name, str(context)])
        archive = out / f"{name.rsplit('/', 1)[1].replace(':', '-')}.tar"
        run([engine, "save", "-o", str(archive), name])
        made.append(archive)
    return made


def images_of(kaapana: Path) -> dict[str, Path]:
    """Return the folders of Kaapana's own images, by the name that their Dockerfile gives them."""
    found: dict[str, Path] = {}
    for part in ("services", "data-processing"):
        for path in sorted((kaapana / part).rglob("Dockerfile")):
            name = _label(path)
            if name:
                found.setdefault(name, path.parent)
    if INSTALLER_IMAGE not in found:
        raise Unbuildable(f"{kaapana} has no Dockerfile of the image {INSTALLER_IMAGE}.")
    return found


def chain(images: Mapping[str, Path], name: str) -> list[Path]:
    """Return the folders of an image and of the local ones below it, in the order of building."""
    order: list[Path] = []
    while name:
        if name not in images:
            raise Unbuildable(f"There is no Dockerfile of the image local-only/{name} in the checkout.")
        if images[name] in order:
            raise Unbuildable(f"The image local-only/{name} stands on itself.")
        order.append(images[name])
        base = _BASE.search((images[name] / "Dockerfile").read_text())
        name = base[1] if base else ""
    return order[::-1]


def _label(dockerfile: Path) -> str:
    label = _LABEL.search(dockerfile.read_text(errors="replace"))
    return label[1] if label else ""


def _tool(*names: str) -> str:
    for name in names:
        if found := shutil.which(name):
            return found
    raise Unbuildable(f"{' or '.join(names)} is not installed.")


def _run(command: Sequence[str]) -> None:
    sys.stdout.write(f"{' '.join(command)}\n")
    sys.stdout.flush()
    subprocess.run(command, check=True)


if __name__ == "__main__":
    sys.exit(main())
