"""Say what datasets a site has, from ``dataset.json`` and the images' headers. No torch: a check must be quick."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from trainer.cases import Case, Dataset, read_dataset
from trainer.contract import EXPLANATIONS, Exit
from trainer.headers import UNREADABLE, read_header
from trainer.job import Fault

MAX_PROBLEMS = 20
"""A report names so many problems and counts the others."""


def inspect(data_root: Path) -> list[dict[str, Any]]:
    """Return a report for every folder of ``data_root`` that has a ``dataset.json``, sorted by name.

    A report has JSON values: name, title, train_cases, validation_cases, channels, labels (number as text → name),
    spacing (mm) and shape (voxels), both the median over cases, and problems: sentences, empty when all is well.
    Only headers are read: values, e.g. a label that does not belong, are found when a run reads them.
    """
    folders = sorted(path.parent for path in data_root.glob("*/dataset.json"))
    return [inspect_dataset(data_root, folder.name) for folder in folders]


def inspect_dataset(data_root: Path, name: str) -> dict[str, Any]:
    try:
        dataset = read_dataset(data_root, name)
    except Fault as fault:
        return _report(name=name, title=name, problems=[fault.message])
    problems: list[str] = []
    shapes, spacings = [], []
    for case in dataset.training + dataset.validation:
        try:
            shape, spacing = _look(case, channels=len(dataset.channels))
        except Fault as fault:
            problems.append(fault.message)
        else:
            shapes.append(shape)
            spacings.append(spacing)
    problems = [*_counts(dataset), *problems]
    if len(problems) > MAX_PROBLEMS:
        problems = [*problems[:MAX_PROBLEMS], f"{len(problems) - MAX_PROBLEMS} more problems of this kind."]
    return _report(
        name=name,
        title=dataset.title,
        train_cases=len(dataset.training),
        validation_cases=len(dataset.validation),
        channels=list(dataset.channels),
        labels={str(number): label for number, label in dataset.labels.items()},
        spacing=[round(median(column), 3) for column in zip(*spacings, strict=True)],
        shape=[int(median(column)) for column in zip(*shapes, strict=True)],
        problems=problems,
    )


def _report(**values: Any) -> dict[str, Any]:
    empty = {"train_cases": 0, "validation_cases": 0, "channels": [], "labels": {}, "spacing": [], "shape": []}
    return {**empty, **values}


def _counts(dataset: Dataset) -> Iterator[str]:
    if not dataset.training:
        yield f"{EXPLANATIONS[Exit.NO_CASES]} There is no case to train on."
    if not dataset.validation:
        yield f"{EXPLANATIONS[Exit.NO_CASES]} There is no case to validate with."


def _look(case: Case, *, channels: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return the image's shape in space and its spacing. Raises :class:`Fault` for what the headers tell."""
    found = []
    for path in (case.image, case.label):
        try:
            found.append(read_header(path))
        except FileNotFoundError as error:
            raise Fault(Exit.MISSING_FILE, f"Case {case.name}: {path.name}.") from error
        except UNREADABLE as error:
            raise Fault(Exit.UNREADABLE_IMAGE, f"Case {case.name}: {path.name}.") from error
    (shape, spacing), (label_shape, _) = found
    in_file = shape[3] if len(shape) == 4 else 1
    if len(shape) not in (3, 4) or in_file != channels:
        raise Fault(Exit.WRONG_CHANNELS, f"Case {case.name}: found {in_file}, expected {channels}.")
    # sorted: the axes of the pair may be stored in different orders
    if sorted(shape[:3]) != sorted(label_shape[:3]):
        raise Fault(Exit.SHAPE_MISMATCH, f"Case {case.name}.")
    return shape[:3], spacing
