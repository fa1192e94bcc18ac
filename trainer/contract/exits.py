"""Exit codes of the trainer, and the sentence for each."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of the trainer. ``docs/contract.md`` says what to do about each; :data:`EXPLANATIONS` the sentence."""

    OK = 0
    UNEXPECTED = 1
    BAD_JOB = 10
    BAD_SIGNATURE = 11
    TRANSFER_FAILED = 12
    MODEL_MISMATCH = 13
    NO_DATASET = 20
    MISSING_FILE = 21
    UNREADABLE_IMAGE = 22
    SHAPE_MISMATCH = 23
    WRONG_LABEL = 24
    NOT_FINITE = 25
    EMPTY_MASK = 26
    WRONG_CHANNELS = 27
    NO_CASES = 28
    LABELS_DIFFER = 29
    DISK_FULL = 30
    OUT_OF_MEMORY = 31
    DIVERGED = 32
    CANCELLED = 40


EXPLANATIONS: Mapping[Exit, str] = {
    Exit.OK: "Finished.",
    Exit.UNEXPECTED: "The trainer stopped for a reason it does not know. The log has the details.",
    Exit.BAD_JOB: "The site's trainer does not understand the job. Portal and trainer are probably of different versions.",
    Exit.BAD_SIGNATURE: "The job was changed on its way to the site, so it was not run.",
    Exit.TRANSFER_FAILED: "The site could not fetch the model or deliver its result. Check its connection to the object store.",
    Exit.MODEL_MISMATCH: "The global model does not fit the network of the plan.",
    Exit.NO_DATASET: "The dataset is not at the site, or its dataset.json cannot be used.",
    Exit.MISSING_FILE: "An image or a segmentation that dataset.json lists is missing.",
    Exit.UNREADABLE_IMAGE: "An image or a segmentation is damaged and cannot be read.",
    Exit.SHAPE_MISMATCH: "An image and its segmentation do not lie on the same grid.",
    Exit.WRONG_LABEL: "A segmentation contains a label number that dataset.json does not list.",
    Exit.NOT_FINITE: "An image contains values that are not numbers (NaN or infinity).",
    Exit.EMPTY_MASK: "None of the training cases has anything segmented, so there is nothing to learn.",
    Exit.WRONG_CHANNELS: "An image does not have the channels (contrasts) that the task expects.",
    Exit.NO_CASES: "The dataset lists too few cases.",
    Exit.LABELS_DIFFER: "The site's labels have other names or numbers than the experiment's task.",
    Exit.DISK_FULL: "The site's disk is full.",
    Exit.OUT_OF_MEMORY: "The work did not fit into memory. A smaller patch or batch size helps.",
    Exit.DIVERGED: "The loss became infinite or not a number. A lower learning rate helps.",
    Exit.CANCELLED: "The run was cancelled.",
}

PERMANENT = frozenset(
    {Exit.BAD_JOB, Exit.MODEL_MISMATCH, Exit.NO_DATASET, Exit.MISSING_FILE, Exit.UNREADABLE_IMAGE, Exit.SHAPE_MISMATCH,
     Exit.WRONG_LABEL, Exit.NOT_FINITE, Exit.EMPTY_MASK, Exit.WRONG_CHANNELS, Exit.NO_CASES, Exit.LABELS_DIFFER, Exit.DIVERGED}
)  # fmt: skip
"""Exit codes for which another attempt with the same job and data would fail in the same way."""
