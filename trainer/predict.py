"""Apply a global model to images that have no segmentation: ``python -m trainer predict`` and the duty of ``fp-predict``.

The segmentations stay where they are written. All that is said on the way are counts: which image was at fault, and
why, stands in ``report.json`` beside the segmentations, for whoever may see the images.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from torch import Tensor, nn

from trainer import layers, networks, weights
from trainer.bundle import read_recipe
from trainer.cases import case_name, check_task, read_dataset, read_unlabelled
from trainer.contract import EXPLANATIONS, Exit, Task, TrainingPlan, canonical_json
from trainer.failures import machine_faults
from trainer.headers import UNREADABLE
from trainer.images import Recipe, read_scan
from trainer.inference import predict
from trainer.job import Fault
from trainer.machine import Machine, settle

REPORT = "report.json"
PLACE = ("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
         "srow_x", "srow_y", "srow_z", "xyzt_units")  # fmt: skip
"""What a header says of where its voxels lie, beside their size."""
MARK = "fedportal"
"""First word of a segmentation's description: what has another one is not ours and stays."""
FARTHEST = 1e-6
"""Probabilities are kept so far from 0 and 1 that their logarithm is a number."""


@dataclass
class Counts:
    """``kept``: lay there already, made by the same model from the same image."""

    images: int = 0
    segmented: int = 0
    kept: int = 0
    failed: int = 0


def segment(
    *, model: Path, recipe: Path, images: Path, out: Path, threads: int = 0, say: Callable[..., None]
) -> tuple[Exit, Counts]:
    """Write ``<out>/<image's name>.nii.gz`` for each image: label numbers uint8 on the image's own grid.

    ``model``: safetensors; ``recipe``: see :func:`~trainer.bundle.read_recipe`; ``images``: see :func:`find`. One image
    at fault does not keep the others from being segmented: the first fault's exit code is returned. May be repeated:
    what lies there already is kept. Raises :class:`Fault` for what concerns all images.
    """
    document, plan = read_recipe(recipe)
    with machine_faults():
        paths, order = find(images, plan.task)
        if out.resolve() in {folder for path in paths for folder in (path.parent.resolve(), path.resolve().parent)}:
            raise Fault(Exit.BAD_JOB, "The segmentations would take the images' place: name another folder.")
        machine = settle(plan, allowed=threads, seed=plan.seed, say=say)
        network = networks.build(plan.task, plan.network)
        weights.load_model(model, network)
        if layers.local_names(network, plan):
            say("Each site kept normalisation layers of its own; this model has their mean over the sites.")
        with model.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        work = _Work(plan, network.to(machine.device).eval(), machine, order, sha256, out)
        with _alone_in(out, say):
            work.spare_what_is_not_ours(paths)
            code, counts, entries = work.through(paths, say)
            made_by = {"model_sha256": sha256, "round": document.get("round"), "labels": dict(plan.task.labels)}
            text = json.dumps({**made_by, **asdict(counts), "entries": entries}, indent=1, ensure_ascii=False)
            with weights.replacing(out / REPORT) as temporary:
                temporary.write_text(text)
    if counts.failed:
        say(f"{counts.failed} of {counts.images} images were not segmented; {REPORT} beside the others says which.")
        say(EXPLANATIONS[code])
    return code, counts


def find(folder: Path, task: Task) -> tuple[tuple[Path, ...], tuple[int, ...]]:
    """Return the images to segment, and where each of the task's channels lies in them.

    Of a folder with a ``dataset.json`` those that it lists under ``test``; of any other all NIfTI files in it, with their
    channels in the task's order. Raises :class:`Fault` NO_CASES where there is none.
    """
    if (folder / "dataset.json").is_file():
        order = check_task(read_dataset(folder.parent, folder.name), task)
        paths = read_unlabelled(folder.parent, folder.name)
        where = "List images under test in dataset.json."
    else:
        order = tuple(range(len(task.channels)))
        paths = tuple(sorted(path for path in folder.glob("*.nii*") if path.name.endswith((".nii", ".nii.gz"))))
        where = "The folder must hold files *.nii.gz or *.nii."
    if not paths:
        raise Fault(Exit.NO_CASES, f"There is no image to segment. {where}")
    if len({case_name(path) for path in paths}) != len(paths):
        raise Fault(Exit.BAD_JOB, "Two images have the same name; their segmentations would, too.")
    return paths, order


def labels_of(probabilities: Tensor, task: Task) -> Tensor:
    """Return label numbers uint8 [x, y, z] for probabilities [region, x, y, z].

    Regions may overlap (a tumour and its core): a voxel gets the label whose regions are together the most likely. Of
    labels that no region tells apart the first one stands for all.
    """
    clear = probabilities.clamp(FARTHEST, 1 - FARTHEST)
    odds = (clear / (1 - clear)).log()
    numbers = sorted(task.labels)
    best = torch.zeros(odds.shape[1:])
    found = torch.zeros(odds.shape[1:], dtype=torch.uint8)
    for number in numbers:
        mine = [index for index, region in enumerate(task.regions) if number in region.labels]
        if not mine:
            continue
        score = odds[mine].sum(0)
        better = score > best
        best = torch.where(better, score, best)
        found[better] = number
    return found


@dataclass(frozen=True)
class _Work:
    plan: TrainingPlan
    network: nn.Module
    machine: Machine
    order: tuple[int, ...]
    model_sha256: str
    out: Path

    def through(self, paths: Sequence[Path], say: Callable[..., None]) -> tuple[Exit, Counts, list[dict[str, Any]]]:
        code, counts, entries = Exit.OK, Counts(images=len(paths)), []
        for number, path in enumerate(paths, start=1):
            target = self._target(path)
            try:
                mark = self._mark(path)
                if _mark_of(target) == mark:
                    counts.kept += 1
                else:
                    self._write(path, target, mark)
                    counts.segmented += 1
                    say(f"image {number} of {len(paths)} is segmented")
                entries.append({"image": path.name, "segmentation": target.name})
            except Fault as fault:
                target.unlink(missing_ok=True)  # of an image that was whole once
                counts.failed += 1
                code = code or fault.exit
                entries.append({"image": path.name, "problem": fault.message})
        return code, counts, entries

    def spare_what_is_not_ours(self, paths: Sequence[Path]) -> None:
        targets = [self._target(path) for path in paths]
        if any(target.exists() and not _mark_of(target).startswith(MARK) for target in targets):
            raise Fault(
                Exit.BAD_JOB, "Files with the names of the segmentations are there already: name another folder."
            )

    def _target(self, path: Path) -> Path:
        return self.out / f"{case_name(path)}.nii.gz"

    def _mark(self, path: Path) -> str:
        """Return a text that changes with everything that the segmentation of an image is made from."""
        try:
            with path.open("rb") as file:
                image = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise Fault(Exit.MISSING_FILE, f"Case {case_name(path)}: {path.name}.") from error
        made_from = canonical_json([self.model_sha256, self.plan.to_json(), list(self.order), image])
        return f"{MARK} {hashlib.sha256(made_from).hexdigest()[:32]}"

    def _write(self, path: Path, target: Path, mark: str) -> None:
        labels = tuple(sorted(self.plan.task.labels))
        scan = read_scan(path, Recipe(order=self.order, labels=labels, spacing=self.plan.spacing))
        with torch.inference_mode():
            logits = predict(self.network, scan.voxels, self.plan, machine=self.machine).cpu()
            # Back on the image's grid before anything is decided, as the bundle does it.
            segmentation = labels_of(scan.on_its_grid(logits.sigmoid()), self.plan.task)
        file = nibabel.Nifti1Image(segmentation.numpy(), None, _header(scan.header, mark))
        with weights.replacing(target) as temporary:
            temporary.write_bytes(gzip.compress(file.to_bytes(), mtime=0))


def _header(source: nibabel.Nifti1Header, mark: str) -> nibabel.Nifti1Header:
    """Return the header of a segmentation: it lies where its image lies, and says what it was made from."""
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(source.get_data_shape()[:3])
    header["pixdim"][:4] = source["pixdim"][:4]
    for name in PLACE:
        header[name] = source[name]
    header["descrip"] = mark.encode()
    return header


def _mark_of(path: Path) -> str:
    """Return what a segmentation says it was made from; empty where there is none."""
    try:
        return bytes(nibabel.load(path).header["descrip"].item()).decode()
    except (FileNotFoundError, *UNREADABLE):
        return ""


@contextmanager
def _alone_in(folder: Path, say: Callable[..., None]) -> Iterator[None]:
    """Keep out others that write the same: a scheduler may start its task again while the first still works."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o750)
    with (folder / ".lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process writes into the same folder; waiting for its end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink()
        yield
