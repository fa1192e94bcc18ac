"""Print what a DAG file makes, as JSON. Run with Airflow's own Python and a stand-in for the package ``kaapana``."""

import importlib.util
import json
import sys

from airflow.models import DAG

spec = importlib.util.spec_from_file_location("dag_under_test", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
found = {}
for dag in {id(value): value for value in vars(module).values() if isinstance(value, DAG)}.values():
    found[dag.dag_id] = {
        "tags": sorted(dag.tags),
        "schedule": dag.schedule_interval,
        "max_active_runs": dag.max_active_runs,
        "default_args": {name: dag.default_args[name] for name in ("ui_forms", "ui_visible", "retries")},
        "order": [task.task_id for task in dag.topological_sort()],
        "tasks": {
            task.task_id: {
                "image": task.image,
                "arguments": task.arguments,
                "env": task.env_vars,
                "labels": task.labels,
                "gpu": task.gpu_mem_mb,
                "ram": task.ram_mem_mb,
                "ram_limit": task.ram_mem_mb_lmt,
                "proxy": task.enable_proxy,
                "secrets": [[s.deploy_target, s.secret, s.key] for s in task.secrets],
                "hours": task.execution_timeout.total_seconds() / 3600,
                "rule": str(task.trigger_rule),
                "upstream": sorted(task.upstream_task_ids),
                "out": task.operator_out_dir,
            }
            for task in dag.tasks
        },
    }
json.dump(found, sys.stdout)
