"""What runs in a pod of Kaapana, ``python -m trainer.kaapana <step>``.

=========  ==========================================================================================
``look``   exit code 126 (Kaapana: skip what follows) when the dataset lies ready, 0 when it must be converted
``gather`` put the contrasts of a case beside its segmentation; exit code 126 where the dataset lists no images
``train``  convert what the pods before have fetched, if they have, then carry out the run of the conf
``offer``  convert a dataset that somebody at the site has chosen, and keep it for the federation
``check``  say what this trainer is and which datasets lie ready, as one line of JSON
=========  ==========================================================================================

The conf is read from ``$WORKFLOW_DIR/conf/conf.json``; the environment has its values only as Python prints them.
Datasets and working files lie below ``$FEDPORTAL_HOME``, on the platform's volume, so that rounds share them.
"""

from __future__ import annotations

import argparse
import html
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainer.__main__ import main as trainer
from trainer.check import hand_in, report
from trainer.contract import Exit, attempt_key
from trainer.exchange import Inputs, Work, train_or_evaluate
from trainer.job import Fault, Outcome
from trainer.kaapana.batch import Folders, build, channels_of, is_prepared, labels_of, read_batch
from trainer.kaapana.gather import gather
from trainer.site_file import SiteFile

SKIP = 126
"""Kaapana marks a task whose pod ends with it as skipped."""


def main(argv: Sequence[str] | None = None, *, work: Work = train_or_evaluate) -> int:
    """Carry out a step and return its exit code. ``work`` is what tests replace."""
    parser = argparse.ArgumentParser(prog="python -m trainer.kaapana", description="Steps of the pods at a Kaapana.")
    parser.add_argument("step", choices=("look", "gather", "train", "offer", "check"))
    step = parser.parse_args(argv).step
    try:
        pod = Pod(os.environ)
        match step:
            case "look":
                return SKIP if pod.is_prepared() else 0
            case "gather":
                return pod.gather()
            case "train":
                return pod.train(work)
            case "offer":
                pod.offer()
            case "check":
                pod.check()
    except Fault as fault:
        _say(fault.message, level="error", exit_code=int(fault.exit))
        return int(fault.exit)
    return 0


class NoKey(Fault):
    """The job is well; what the site's administrator had to give is missing."""

    def __init__(self) -> None:
        super().__init__(Exit.BAD_JOB)
        self.message = "The project's Secret “fedportal” holds no site key of hexadecimal digits."


class Pod:
    """What a pod is told: the run's conf, the batch, and where the site keeps its datasets."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        try:
            self.run_folder = Path(environment["WORKFLOW_DIR"])
            self.home = Path(environment["FEDPORTAL_HOME"])
            self.conf = json.loads((self.run_folder / "conf" / "conf.json").read_bytes())
        except KeyError as error:
            raise Fault(Exit.BAD_JOB, f"{error} is not in the environment.") from error
        except (OSError, ValueError) as error:
            raise Fault(Exit.BAD_JOB, "conf.json of the run cannot be read.") from error
        self._batch = self.run_folder / environment.get("BATCH_NAME", "batch")
        self._folders = Folders(
            dicom=environment.get("FEDPORTAL_DICOM", "get-input"),
            images=environment.get("FEDPORTAL_IMAGES", "dcm-converter"),
            masks=environment.get("FEDPORTAL_MASKS", "mask2nifti"),
            gathered=environment.get("FEDPORTAL_GATHERED", "gather"),
            contrasts=environment.get("FEDPORTAL_CONTRASTS", "dcm-converter-contrasts"),
        )

    @property
    def data_root(self) -> Path:
        return self.home / "datasets"

    @property
    def dataset(self) -> str:
        name = str(self._form("fedportal").get("dataset") or self._form("data_form").get("dataset_name") or "")
        if not name or "/" in name or name.startswith("."):
            raise Fault(Exit.NO_DATASET, "Its name is not that of a folder.")
        return name

    @property
    def identifiers(self) -> list[str]:
        return [str(uid) for uid in self._form("data_form").get("identifiers") or ()]

    def is_prepared(self) -> bool:
        """Say whether there is nothing to convert. Without series there is not: the run itself says what is missing."""
        return not self.identifiers or is_prepared(self.data_root / self.dataset, self.identifiers)

    def gather(self) -> int:
        gathered, lonely = gather(self._batch, dicom=self._folders.dicom, out=self._folders.gathered)
        if gathered or lonely:
            _say(f"{gathered} image series lie beside their segmentations; {lonely} belong to none and are left out.")
        return 0 if gathered else SKIP  # the converter that follows fails where it finds nothing

    def train(self, work: Work) -> int:
        job = self._form("fedportal")
        if not job.get("run") or not job.get("spec_url"):
            raise Fault(Exit.BAD_JOB, "This workflow is started by the portal of the federation, not by hand.")
        os.environ["FEDPORTAL_JOB"] = json.dumps(
            {
                "run": job["run"],
                "key": attempt_key(_site_key(), str(job["run"])),
                # Where the site has polled for it, Kaapana has escaped the address as if it were HTML.
                "spec_url": html.unescape(str(job["spec_url"])),
                "data_root": str(self.data_root),
                "work_dir": str(self.home / "work"),
            }
        )

        def converted_first(inputs: Inputs) -> Outcome:
            seconds = self._convert(inputs)
            outcome = work(inputs)
            return replace(outcome, seconds={**outcome.seconds, "convert": seconds}) if seconds else outcome

        return trainer(["run"], work=converted_first)

    def offer(self) -> None:
        form = self._form("workflow_form")
        elements = read_batch(self._batch, self._folders)
        labels = labels_of(elements, str(form.get("labels") or "").split(","))
        train, validation = build(
            elements,
            self.data_root / self.dataset,
            title=self.dataset,
            channels=channels_of(str(form.get("channel") or "CT")),
            labels=labels,
            identifiers=self.identifiers,
        )
        _say(f"{self.dataset} lies ready: {train} cases to train on, {validation} to validate with.")

    def check(self) -> None:
        key = _site_key()
        self.data_root.mkdir(parents=True, exist_ok=True)
        conf = dict(self._form("fedportal"))
        document = report(SiteFile(self.data_root, self.home / "work", key.hex()), conf)
        _say("check", report=document)
        hand_in(document, conf, key)

    def _convert(self, inputs: Inputs) -> float:
        """Make the dataset that the job names of the batch, if the pods before have fetched one; return the seconds."""
        if not any(self._batch.glob("*")):
            if not self.is_prepared():
                # A step of Kaapana's that finds nothing to do exits with 126, and all that follow it are skipped.
                raise Fault(Exit.NO_CASES, "Kaapana found no image with a segmentation among its series.")
            return 0.0
        start = time.monotonic()
        task = inputs.spec.plan.task
        build(
            read_batch(self._batch, self._folders),
            self.data_root / inputs.spec.dataset,
            title=inputs.spec.dataset,
            channels=channels_of(",".join(task.channels)),
            labels=task.labels,
            identifiers=self.identifiers,
        )
        return time.monotonic() - start

    def _form(self, name: str) -> Mapping[str, Any]:
        form = self.conf.get(name) if isinstance(self.conf, dict) else None
        return form if isinstance(form, dict) else {}


def _site_key() -> bytes:
    """Return the site's key. It leaves the environment, which every child inherits."""
    try:
        key = bytes.fromhex(os.environ.pop("FEDPORTAL_SITE_KEY", ""))
    except ValueError:
        key = b""
    if not key:
        raise NoKey
    return key


def _say(message: str, *, level: str = "info", **facts: Any) -> None:
    """Write a line as the trainer's own log has them."""
    entry = {"at": round(time.time(), 3), "level": level, "message": message, **facts}
    sys.stdout.write(json.dumps(entry, ensure_ascii=False) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
