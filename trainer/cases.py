"""Read a dataset in Medical Segmentation Decathlon layout: what ``dataset.json`` lists, by name. No torch here.

A dataset is a folder ``<data_root>/<name>/`` with ``dataset.json``. Its values count, not their order:
``modality`` names the input channels, ``labels`` the label numbers, ``training`` lists ``{"image", "label"}``
pairs. Held-out cases stand under ``validation`` (same shape); where that key is missing a fifth of the
training cases is held out, the same ones at every time and on every machine. ``test`` lists images without a
segmentation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainer.contract import Exit, Task
from trainer.job import Fault, Member, Site


@dataclass(frozen=True)
class Case:
    """One patient's image and segmentation; ``name`` is the image's file name without its ending."""

    name: str
    image: Path
    label: Path


@dataclass(frozen=True)
class Dataset:
    """What a folder offers. ``channels`` and ``labels`` are as ``dataset.json`` has them. ``home``: what messages call
    the place where it lies."""

    name: str
    title: str
    channels: tuple[str, ...]
    labels: Mapping[int, str]
    training: tuple[Case, ...]
    validation: tuple[Case, ...]
    home: str = "Site"


def case_name(image: Path) -> str:
    """Return an image's file name without its ending."""
    return image.name.removesuffix(".gz").removesuffix(".nii")


def read_dataset(data_root: Path, name: str) -> Dataset:
    """Read ``<data_root>/<name>/dataset.json``; whether the images exist is looked at when they are read.

    Raises :class:`Fault` NO_DATASET where there is no such folder, where its description cannot be read, or where
    a path leads out of ``data_root``: a job names the dataset, and no job may name another folder of the hospital.
    """
    root = data_root.resolve()
    folder = folder_of(data_root, name)
    document = _document(folder)
    try:
        training = _cases(document["training"], folder=folder, root=root)
        if "validation" in document:
            validation = _cases(document["validation"], folder=folder, root=root)
        else:
            training, validation = hold_out(training)
        return Dataset(
            name=name,
            title=str(document.get("name") or name),
            channels=_channels(document),
            labels=_labels(document),
            training=training,
            validation=validation,
        )
    except KeyError as error:
        raise Fault(
            Exit.NO_DATASET, f"{name}/dataset.json has no {error}, which the Decathlon layout asks for."
        ) from error
    except ValueError as error:
        raise Fault(Exit.NO_DATASET, f"{name}/dataset.json does not follow the Decathlon layout: {error}.") from error


def read_datasets(site: Site, name: str) -> tuple[Dataset, ...]:
    """Return what a job's dataset is made of: the folder of that name, or the members of the site's pool.

    A member is read as at its own hospital, with the same cases held out; its cases are named ``<site>/<case>``. Raises
    :class:`Fault` as :func:`read_dataset` for any of them.
    """
    return tuple(map(read_member, site.pool)) or (read_dataset(site.data_root, name),)


def read_member(member: Member) -> Dataset:
    """Read a dataset of a pool. Raises :class:`Fault` NO_DATASET that names its hospital."""
    try:
        dataset = read_dataset(member.data_root, member.dataset)
    except Fault as fault:
        raise Fault(fault.exit, f"{member.site}: {fault.detail}") from fault
    training, validation = (
        tuple(replace(case, name=f"{member.site}/{case.name}") for case in cases)
        for cases in (dataset.training, dataset.validation)
    )
    return replace(dataset, training=training, validation=validation, home=member.site)


def read_unlabelled(data_root: Path, name: str) -> tuple[Path, ...]:
    """Return the images that ``dataset.json`` lists under ``test``. Raises :class:`Fault` as :func:`read_dataset`."""
    folder = folder_of(data_root, name)
    try:
        # The Decathlon lists them as plain texts, others as it lists the pairs.
        entries = [entry["image"] if isinstance(entry, dict) else str(entry) for entry in _document(folder)["test"]]
    except (KeyError, TypeError):
        return ()
    for entry in entries:
        _inside(folder / entry, data_root.resolve())
    return tuple(folder / entry for entry in entries)  # links as they are called here, not what they lead to


def folder_of(root: Path, name: str) -> Path:
    """Return the folder ``name`` below ``root``. Raises :class:`Fault` NO_DATASET where the name leads elsewhere."""
    root = root.resolve()
    folder = (root / name).resolve()
    if not name or folder == root or not folder.is_relative_to(root):
        raise Fault(Exit.NO_DATASET, "The name of the dataset leads out of the site's data folder.")
    return folder


def _document(folder: Path) -> dict[str, Any]:
    try:
        document = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise Fault(Exit.NO_DATASET, f"Looked for {folder.name}/dataset.json.") from error
    except (ValueError, RecursionError) as error:
        raise Fault(Exit.NO_DATASET, f"{folder.name}/dataset.json is not valid JSON.") from error
    if not isinstance(document, dict):
        raise Fault(Exit.NO_DATASET, f"{folder.name}/dataset.json is a list or a single value.")
    return document


def hold_out(cases: tuple[Case, ...]) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """Split into (training, validation): a fifth, at least one case, is held out, chosen by a hash of the case's name.

    The choice does not depend on the order of the list, nor on a seed."""
    by_hash = sorted(cases, key=lambda case: hashlib.sha256(case.name.encode()).digest())
    held_out = {case.name for case in by_hash[: max(1, round(len(cases) / 5))]}
    return (
        tuple(case for case in cases if case.name not in held_out),
        tuple(case for case in cases if case.name in held_out),
    )


def check_task(dataset: Dataset, task: Task) -> tuple[int, ...]:
    """Return where each of the task's channels lies in the site's images (sites may order them differently).

    Raises :class:`Fault` LABELS_DIFFER or WRONG_CHANNELS where dataset and task do not speak of the same things.
    """
    if {number: _folded(name) for number, name in dataset.labels.items()} != {
        number: _folded(name) for number, name in task.labels.items()
    }:
        raise Fault(Exit.LABELS_DIFFER, f"{dataset.home}: {_list(dataset.labels)}. Task: {_list(task.labels)}.")
    site, wanted = [_folded(c) for c in dataset.channels], [_folded(c) for c in task.channels]
    if site == wanted:
        return tuple(range(len(wanted)))
    if sorted(site) != sorted(wanted) or len(set(site)) != len(site):
        raise Fault(
            Exit.WRONG_CHANNELS,
            f"{dataset.home}: {', '.join(dataset.channels)}. Task: {', '.join(task.channels)}.",
        )
    return tuple(site.index(channel) for channel in wanted)


def _cases(entries: Any, *, folder: Path, root: Path) -> tuple[Case, ...]:
    try:
        cases = tuple(
            Case(
                name=case_name(Path(entry["image"])),
                image=_inside(folder / entry["image"], root),
                label=_inside(folder / entry["label"], root),
            )
            for entry in entries
        )
    except TypeError as error:
        raise ValueError('its cases are not pairs like {"image": "a.nii.gz", "label": "b.nii.gz"}') from error
    if len({case.image for case in cases}) != len(cases):
        raise ValueError("an image is listed twice")
    return cases


def _inside(path: Path, root: Path) -> Path:
    resolved = path.resolve()
    if not resolved.is_relative_to(root):
        raise Fault(Exit.NO_DATASET, f"dataset.json lists {path.name} outside the site's data folder.")
    return resolved


def _channels(document: Mapping[str, Any]) -> tuple[str, ...]:
    modality = _numbered(document, "modality")
    if sorted(modality) != list(range(len(modality))) or not modality:
        raise ValueError("modality does not number its channels 0, 1, 2, …")
    return tuple(modality[number] for number in sorted(modality))


def _labels(document: Mapping[str, Any]) -> dict[int, str]:
    labels = _numbered(document, "labels")
    if not labels or any(not 0 <= number <= 255 for number in labels):
        raise ValueError("label numbers are not between 0 and 255")
    return dict(sorted(labels.items()))


def _numbered(document: Mapping[str, Any], what: str) -> dict[int, str]:
    """Return what has numbers as keys and names as values. Raises ``KeyError`` or ``ValueError``."""
    try:
        return {int(number): str(name) for number, name in document[what].items()}
    except (ValueError, AttributeError) as error:
        raise ValueError(f'{what} does not give names to numbers, as in {{"0": "a name"}}') from error


def _folded(name: str) -> str:
    return " ".join(name.casefold().split())


def _list(labels: Mapping[int, str]) -> str:
    return ", ".join(f"{number} {name}" for number, name in sorted(labels.items()))
