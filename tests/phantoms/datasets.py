"""What the tests of the phantoms read of a generated dataset."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import nibabel
import numpy as np

SMALL = ["--size", "24", "--train", "2", "--validation", "1"]


def described(folder: Path) -> dict:
    return json.loads((folder / "dataset.json").read_text())


def cases(folder: Path) -> list[tuple[nibabel.Nifti1Image, nibabel.Nifti1Image]]:
    listed = described(folder)
    return [
        (nibabel.load(folder / case["image"]), nibabel.load(folder / case["label"]))
        for case in listed["training"] + listed["validation"]
    ]


def label_volumes(folder: Path) -> list[np.ndarray]:
    return [np.asarray(label.dataobj) for _, label in cases(folder)]


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
