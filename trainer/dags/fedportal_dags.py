"""The DAGs of a hospital that takes part in federated trainings.

``fp-train``, ``fp-evaluate`` and ``fp-check`` are started by the portal, ``fp-predict`` by people at the hospital.

One file for Airflow 2.11 and 3. ``python -m trainer.install`` puts it into the DAG folder, with ``fedportal.json`` beside
it. Parsing it reads that file and imports nothing of the trainer, which has an environment of its own.

What the portal sends (``dag_run.conf``) reaches the trainer as JSON in its environment and never becomes part of a
command or of a template. It holds no key: the site's file does, which only the trainer reads.
"""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from subprocess import TimeoutExpired

try:  # Airflow 3
    from airflow.sdk import DAG, BaseOperator, Param
except ImportError:
    from airflow import DAG
    from airflow.models import BaseOperator
    from airflow.models.param import Param
try:
    from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowTaskTimeout
except ImportError:
    from airflow.exceptions import AirflowException, AirflowFailException, AirflowTaskTimeout
try:
    from airflow.providers.standard.hooks.subprocess import SubprocessHook
except ImportError:
    from airflow.hooks.subprocess import SubprocessHook

SETTINGS = json.loads(Path(__file__).with_name("fedportal.json").read_text())
NO_VERDICT = 75
"""Exit code of a trainer that ended without a word: worth another try. Every other failure is the portal's to judge."""
KILL_PATIENCE = 10
"""Seconds that the trainer may take for its end; it needs less than one, and kills what needs more than three."""


class TrainerOperator(BaseOperator):
    """Have the site's trainer do one duty, in its own environment; its last line of output is the task's result.

    SIGTERM (a cancelled run, the execution time-out) is passed on to the trainer, which ends at once.
    """

    ui_color = "#e8f1f2"
    command = (SETTINGS["python"], "-m", "trainer.task")

    def __init__(self, *, duty: str, **options) -> None:
        super().__init__(**options)
        self.duty = duty
        self._hook = None

    def execute(self, context):
        environment = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "PYTHONPATH": SETTINGS["lib"],
            "PYTHONUNBUFFERED": "1",
            **SETTINGS["environment"],
            "FEDPORTAL_SITE": SETTINGS["site"],
            "FEDPORTAL_RUN": context["dag_run"].run_id,
            "FEDPORTAL_CONF": json.dumps({**context["params"], **(context["dag_run"].conf or {})}),
        }
        self._hook = SubprocessHook()
        try:
            result = self._hook.run_command([*self.command, self.duty], env=environment, cwd=SETTINGS["lib"])
        except AirflowTaskTimeout as error:
            self.on_kill()
            # not tried again: it would take as long
            raise AirflowFailException("The run's time is up.") from error
        if result.exit_code == NO_VERDICT:
            raise AirflowException(result.output)
        if result.exit_code != 0:
            raise AirflowFailException(f"The trainer ended with exit code {result.exit_code}.")
        return result.output

    def on_kill(self) -> None:
        process = getattr(self._hook, "sub_process", None)
        if process is None:
            # Airflow 3 goes on with the task after this: without it the trainer would be started now
            raise AirflowFailException("The run was ended before the trainer was started.")
        self._hook.send_sigterm()
        # Airflow reads its output no more; the portal waits for the word that the processes are gone.
        with suppress(TimeoutExpired):
            code = process.wait(timeout=KILL_PATIENCE)
            self.log.info(json.dumps({"message": "the run's processes have ended", "exit_code": code}))


def trainer_dag(duty: str, description: str, *, timeout: timedelta, retries: int, pool: str, params=None) -> DAG:
    """Return a DAG of one task: a chain costs seconds of scheduling in every round (docs/decisions/0030).

    ``params``: what Airflow asks people for who start it by hand.
    """
    with DAG(
        f"fp-{duty}",
        description=description,
        schedule=None,
        start_date=datetime(2024, 1, 1, tzinfo=UTC),
        catchup=False,
        is_paused_upon_creation=False,
        max_active_runs=16,
        params=params,
        tags=["fedportal", f"contract-{SETTINGS['contract']}", f"code-{SETTINGS['code']}"],
    ) as dag:
        TrainerOperator(
            task_id=duty,
            duty=duty,
            pool=pool,
            retries=retries,
            retry_delay=timedelta(seconds=5),
            execution_timeout=timeout,
        )
    return dag


FOLDER = "^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
HOURS = timedelta(hours=SETTINGS["hours"])
train = trainer_dag("train", "One round of training", timeout=HOURS, retries=1, pool=SETTINGS["pool"])
evaluate = trainer_dag("evaluate", "Measure a model", timeout=HOURS, retries=1, pool=SETTINGS["pool"])
predict = trainer_dag(
    "predict",
    "Segment images of this hospital with a global model; the segmentations stay here",
    timeout=HOURS,
    retries=1,
    pool=SETTINGS["pool"],
    params={
        "model": Param(
            type="string",
            title="Model",
            description="Folder with a model and its recipe, in models/ of the trainer's working folder.",
            pattern=FOLDER,
        ),
        "dataset": Param(
            type="string",
            title="Dataset",
            description="Folder of the data folder: its images *.nii.gz, or those that its dataset.json lists under test.",
            pattern=FOLDER,
        ),
    },
)
check = trainer_dag(
    "check", "Tell the portal how this site is", timeout=timedelta(minutes=10), retries=0, pool="default_pool"
)
