"""Say what datasets a site has, from ``dataset.json`` and the images' headers. No torch: a check must be quick."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from trainer.cases import Case, Dataset, check_task, read_dataset, read_member
from trainer.contract import EXPLANATIONS, POOL_DATASET, Exit, Task
from trainer.headers import CONTRADICT, UNREADABLE, contradict, read_header
from trainer.job import Fault, Member

TITLE_OF_POOL = "Pooled data"
MAX_PROBLEMS = 20
"""A report names so many problems and counts the others."""


def inspect(data_root: Path) -> list[dict[str, Any]]:
    """Return a report for every folder of ``data_root`` that has a ``dataset.json``, sorted by name.

    A report has JSON values: name, title, train_cases, validation_cases, channels, labels (number as text → name),
    spacing (mm) and shape (voxels), both the median over cases, and problems: sentences, empty when all is well.
    Only headers are read: values, e.g. a label that does not belong, are found when a run reads them. Hidden folders are
    passed over: a dataset in the making lies in one. Raises ``OSError`` where ``data_root`` cannot be read.
    """
    next(data_root.iterdir(), None)  # glob() finds nothing in a folder that it cannot read, and says nothing
    folders = sorted(path.parent for path in data_root.glob("[!.]*/dataset.json"))
    return [inspect_dataset(data_root, folder.name) for folder in folders]


def inspect_pool(pool: Iterable[Member]) -> dict[str, Any]:
    """Return one report for the members of a pool together."""
    datasets: list[Dataset] = []
    problems: list[str] = []
    for member in pool:
        try:
            dataset = read_member(member)
            if datasets:
                first = datasets[0]
                check_task(dataset, Task(first.title, first.channels, first.labels, regions=()))
            datasets.append(dataset)
        except Fault as fault:
            problems.append(fault.message)
    if not datasets:
        return _report(name=POOL_DATASET, title=TITLE_OF_POOL, problems=problems)
    return _inspected(datasets, name=POOL_DATASET, title=TITLE_OF_POOL, problems=problems)


def inspect_dataset(data_root: Path, name: str) -> dict[str, Any]:
    try:
        dataset = read_dataset(data_root, name)
    except Fault as fault:
        return _report(name=name, title=name, problems=[fault.message])
    return _inspected([dataset], name=name, title=dataset.title, problems=[])


def _inspected(datasets: Sequence[Dataset], *, name: str, title: str, problems: list[str]) -> dict[str, Any]:
    shapes, spacings = [], []
    train_cases = sum(len(dataset.training) for dataset in datasets)
    validation_cases = sum(len(dataset.validation) for dataset in datasets)
    problems = [*problems, *_counts(train_cases, validation_cases)]
    for dataset in datasets:
        for case in dataset.training + dataset.validation:
            try:
                shape, spacing = _look(case, channels=len(dataset.channels))
            except Fault as fault:
                problems.append(fault.message)
            else:
                shapes.append(shape)
                spacings.append(spacing)
    if len(problems) > MAX_PROBLEMS:
        problems = [*problems[:MAX_PROBLEMS], f"{len(problems) - MAX_PROBLEMS} more problems of this kind."]
    return _report(
        name=name,
        title=title,
        train_cases=train_cases,
        validation_cases=validation_cases,
        channels=list(datasets[0].channels),
        labels={str(number): label for number, label in datasets[0].labels.items()},
        spacing=[round(median(column), 3) for column in zip(*spacings, strict=True)],
        shape=[int(median(column)) for column in zip(*shapes, strict=True)],
        problems=problems,
    )


def _report(**values: Any) -> dict[str, Any]:
    empty = {"train_cases": 0, "validation_cases": 0, "channels": [], "labels": {}, "spacing": [], "shape": []}
    return {**empty, **values}


def _counts(train_cases: int, validation_cases: int) -> Iterator[str]:
    if not train_cases:
        yield f"{EXPLANATIONS[Exit.NO_CASES]} There is no case to train on."
    if not validation_cases:
        yield f"{EXPLANATIONS[Exit.NO_CASES]} There is no case to validate with."


def _look(case: Case, *, channels: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return the image's shape in space and its spacing. Raises :class:`Fault` for what the headers tell."""
    found = []
    for what, path in (("image", case.image), ("segmentation", case.label)):
        try:
            found.append(read_header(path))
        except FileNotFoundError as error:
            raise Fault(Exit.MISSING_FILE, f"Case {case.name}: {what} {path.name}.") from error
        except UNREADABLE as error:
            raise Fault(Exit.UNREADABLE_IMAGE, f"Case {case.name}: {what} {path.name}.") from error
    (shape, spacing, affine), (label_shape, _, label_affine) = found
    in_file = shape[3] if len(shape) == 4 else 1
    if len(shape) not in (3, 4) or in_file != channels:
        raise Fault(Exit.WRONG_CHANNELS, f"Case {case.name}: found {in_file}, expected {channels}.")
    # sorted: the axes of the pair may be stored in different orders
    if sorted(shape[:3]) != sorted(label_shape[:3]):
        raise Fault(Exit.SHAPE_MISMATCH, f"Case {case.name}.")
    if contradict(affine, shape, label_affine, label_shape):
        raise Fault(Exit.SHAPE_MISMATCH, f"Case {case.name}: {CONTRADICT}.")
    return shape[:3], spacing
