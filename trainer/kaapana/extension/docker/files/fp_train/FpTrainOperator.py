"""One pod of the trainer's image."""

import os
from datetime import timedelta

from kaapana.blueprints.kaapana_global_variables import DEFAULT_REGISTRY, KAAPANA_BUILD_VERSION
from kaapana.kubetools.secret import Secret
from kaapana.operators.KaapanaBaseOperator import KaapanaBaseOperator

SECRET = "fedportal"  # noqa: S105  the name of a Kubernetes Secret, made by the chart or by hand
SECRET_KEY = "site-key"  # noqa: S105  its entry


def _number(name, default):
    """Return a number that the site's administrator may set in the environment of Airflow's scheduler."""
    return int(os.environ.get(name, default))


class FpTrainOperator(KaapanaBaseOperator):
    """Carries out one step of the trainer (``python -m trainer.kaapana <step>``).

    ``computes``: the step trains, so it gets a GPU and the memory for it. ``speaks``: the step fetches and delivers, so
    its pod carries the label that opens the project's network policy to the outside, goes through the platform's proxy,
    and gets the site's key. All other steps can reach nothing and know no secret.
    """

    def __init__(self, *, dag, step, name, computes=False, speaks=False, env_vars=None, **kwargs):
        gpu = _number("FEDPORTAL_GPU_MEM_MB", 8000) if computes else 0
        memory = _number("FEDPORTAL_RAM_MEM_MB", 16000) if computes else 2000
        super().__init__(
            dag=dag,
            name=name,
            image=f"{DEFAULT_REGISTRY}/fp-trainer:{KAAPANA_BUILD_VERSION}",
            image_pull_secrets=["registry-secret"],
            arguments=[step],
            env_vars={
                "FEDPORTAL_HOME": os.environ.get("FEDPORTAL_HOME", "/kaapana/mounted/data/fedportal"),
                # the portal's address where pods reach no object store: files go through the portal
                **({"FEDPORTAL_RELAY": os.environ["FEDPORTAL_RELAY"]} if os.environ.get("FEDPORTAL_RELAY") else {}),
                **(env_vars or {}),
            },
            gpu_mem_mb=gpu or None,
            ram_mem_mb=memory,
            ram_mem_mb_lmt=_number("FEDPORTAL_RAM_LIMIT_MB", 32000) if computes else memory,
            execution_timeout=timedelta(hours=_number("FEDPORTAL_MAX_HOURS", 48) if computes else 2),
            # A repeat is a new attempt, and that is the portal's to decide.
            retries=0,
            labels={"network-access-external-ips": "true"} if speaks else {},
            enable_proxy=speaks,
            secrets=[_site_key()] if speaks else [],
            **kwargs,
        )


def _site_key():
    return Secret(deploy_type="env", deploy_target="FEDPORTAL_SITE_KEY", secret=SECRET, key=SECRET_KEY)
