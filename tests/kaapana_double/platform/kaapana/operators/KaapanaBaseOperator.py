"""Kaapana's operator as a DAG file and a container see it, with a process in place of a pod.

Arguments, folders, environment, conf.json, exit code 126 and the limits of names are Kaapana's. Pods without the egress
label get a proxy that leads nowhere, pods whose Secret is missing do not start.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

from airflow.exceptions import AirflowException, AirflowSkipException
from airflow.models import BaseOperator

SKIPPED = 126
LONGEST_POD_NAME = 62
EGRESS = "network-access-external-ips"
NOWHERE = "http://127.0.0.1:9"


class KaapanaBaseOperator(BaseOperator):
    def __init__(
        self,
        dag,
        name,
        image=None,
        input_operator=None,
        operator_out_dir=None,
        task_id=None,
        parallel_id=None,
        trigger_rule="all_success",
        ram_mem_mb=500,
        ram_mem_mb_lmt=None,
        gpu_mem_mb=None,
        retries=1,
        execution_timeout=timedelta(minutes=90),
        enable_proxy=False,
        arguments=None,
        env_vars=None,
        image_pull_secrets=None,
        labels=None,
        secrets=None,
        **kwargs,
    ):
        if parallel_id is None and input_operator is not None:
            parallel_id = getattr(input_operator, "parallel_id", None)
        self.parallel_id = parallel_id
        self.name = name if parallel_id is None else f"{name}-{parallel_id}"
        self.operator_in_dir = input_operator.operator_out_dir if input_operator is not None else None
        self.operator_out_dir = operator_out_dir or self.name
        self.image, self.arguments = image, arguments or []
        self.env_vars, self.secrets = dict(env_vars or {}), list(secrets or [])
        self.labels = {**(labels or {}), "pod-type": "processing-container"}
        self.ram_mem_mb, self.ram_mem_mb_lmt, self.gpu_mem_mb = ram_mem_mb, ram_mem_mb_lmt, gpu_mem_mb
        self.image_pull_secrets, self.enable_proxy = image_pull_secrets, enable_proxy
        self._pod = None
        super().__init__(
            dag=dag,
            task_id=task_id or self.name,
            trigger_rule=trigger_rule,
            retries=retries,
            execution_timeout=execution_timeout,
            **kwargs,
        )

    def execute(self, context):
        run = context["dag_run"]
        # The first thing that Kaapana's own operators do with a conf, without a look whether it is there.
        namespace = run.conf["project_form"]["kubernetes_namespace"]
        if len(f"{run.run_id}-{self.task_id}") > LONGEST_POD_NAME:
            raise AirflowException("the pod's name would be cut, and two tasks could have the same")
        self.log.info("pod in namespace %s with image %s", namespace, self.image)
        folder = Path(os.environ["DOUBLE_DATA"]) / run.run_id
        (folder / "conf").mkdir(parents=True, exist_ok=True)
        (folder / "conf" / "conf.json").write_text(json.dumps(run.conf))
        code = self.run_pod(folder, run)
        if code == SKIPPED:
            raise AirflowSkipException("Pod has been skipped!")
        if code:
            raise AirflowException("Pod returned a failure!")

    def run_pod(self, folder, run):
        environment = self._environment(folder, run)
        command = [*json.loads(os.environ["DOUBLE_POD"]), *self.arguments]
        self._pod = subprocess.Popen(
            command,
            env=environment,
            cwd=os.environ["DOUBLE_ROOT"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        for line in self._pod.stdout:
            self.log.info(line.decode(errors="replace").rstrip("\n"))
        return self._pod.wait()

    def on_kill(self):
        if self._pod is not None and self._pod.poll() is None:
            os.killpg(self._pod.pid, signal.SIGTERM)
            self._pod.wait(10)

    def _environment(self, folder, run):
        form = run.conf.get("workflow_form") or {}
        environment = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "OMP_NUM_THREADS": "1",
            "WORKFLOW_DIR": str(folder),
            "BATCH_NAME": "batch",
            "RUN_ID": run.run_id,
            "DAG_ID": run.dag_id,
            "TASK_ID": self.task_id,
            "OPERATOR_IN_DIR": str(self.operator_in_dir),
            "OPERATOR_OUT_DIR": self.operator_out_dir,
            **{key.upper(): str(value) for key, value in form.items()},
            **self.env_vars,
        }
        if self.labels.get(EGRESS) != "true":
            environment.update(http_proxy=NOWHERE, https_proxy=NOWHERE)
        stored = json.loads(Path(os.environ["DOUBLE_SECRETS"]).read_text())
        for secret in self.secrets:
            try:
                environment[secret.deploy_target] = stored[secret.secret][secret.key]
            except KeyError as error:
                raise AirflowException(f"CreateContainerConfigError: no Secret {error}") from error
        return environment


class FromPacs(KaapanaBaseOperator):
    """An operator of Kaapana whose result the double takes from a folder, for each series of the run's dataset."""

    def run_pod(self, folder, run):
        source = Path(os.environ["DOUBLE_PACS"])
        for uid in run.conf["data_form"]["identifiers"]:
            wanted = source / uid / self.operator_out_dir
            if not wanted.is_dir():
                sys.stderr.write(f"no {self.operator_out_dir} for a series\n")
                return 1
            shutil.copytree(wanted, folder / "batch" / uid / self.operator_out_dir, dirs_exist_ok=True)
        return 0
