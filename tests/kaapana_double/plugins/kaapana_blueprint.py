"""Kaapana's workflow interface as an Airflow plugin: paths, answers and habits of release 0.6.

No login of its own (the front door has passed the caller), run ids made by the server, errors as text with status 400,
an abort that raises when no task has run, a list of runs that begins with the oldest.
"""

from datetime import datetime

from airflow.api.common.trigger_dag import trigger_dag
from airflow.exceptions import AirflowException
from airflow.models import DagBag, DagModel, DagRun, TaskInstance
from airflow.plugins_manager import AirflowPlugin
from airflow.utils.session import create_session
from airflow.utils.state import DagRunState, TaskInstanceState
from airflow.utils.timezone import utcnow
from airflow.www.app import csrf
from flask import Blueprint, Response, jsonify, request

door = Blueprint("kaapana", __name__, url_prefix="/kaapana")
csrf.exempt(door)
OVER = (TaskInstanceState.SUCCESS, TaskInstanceState.FAILED)


@door.route("/api/trigger/<dag_id>", methods=["POST"])
def trigger(dag_id):
    data = request.get_json(force=True)
    conf = data.get("conf", data)
    conf["x_auth_token"] = data.get("x_auth_token", request.headers.get("X-Auth-Token"))
    if "workflow_form" in conf:
        conf["form_data"] = conf["workflow_form"]
    run_id = f"{dag_id}-{datetime.now().strftime('%y%m%d%H%M%S%f')}"
    print("conf of a triggered run:", conf, flush=True)  # noqa: T201  as Kaapana does: a test reads this log
    try:
        run = trigger_dag(dag_id, run_id, conf, None, replace_microseconds=False)
    except AirflowException as error:
        return jsonify(error=str(error)), error.status_code
    return jsonify(message=[f"{run.dag_id} created!", {"dag_id": run.dag_id, "run_id": run.run_id}])


@door.route("/api/dagdetails/<dag_id>/<run_id>")
def dag_details(dag_id, run_id):
    with create_session() as session:
        if not session.query(DagModel).filter(DagModel.dag_id == dag_id).count():
            return Response(f"Dag {dag_id} does not exist", 400)
        run = session.query(DagRun).filter(DagRun.dag_id == dag_id, DagRun.run_id == run_id).one_or_none()
        if run is None:
            return Response(f"RunId {run_id} does not exist for Dag {dag_id}", 400)
        date = run.execution_date.strftime("%Y-%m-%dT%H:%M:%S")
        return jsonify(dag_id=dag_id, run_id=run_id, state=run.state, execution_date=date)


@door.route("/api/get_dagrun_tasks/<dag_id>/<run_id>", methods=["POST"])
def tasks(dag_id, run_id):
    with create_session() as session:
        rows = session.query(TaskInstance).filter(TaskInstance.dag_id == dag_id, TaskInstance.run_id == run_id).all()
        return jsonify(
            {
                row.task_id: {
                    "state": str(row.state),
                    "execution_date": str(row.execution_date),
                    "duration": str(row.duration),
                    "start_date": str(row.start_date),
                }
                for row in rows
            }
        )


@door.route("/api/abort/<dag_id>/<run_id>", methods=["POST"])
def abort(dag_id, run_id):
    with create_session() as session:
        run = session.query(DagRun).filter(DagRun.dag_id == dag_id, DagRun.run_id == run_id).one()
        run.state, run.end_date = DagRunState.FAILED, utcnow()
        rows = session.query(TaskInstance).filter(TaskInstance.dag_id == dag_id, TaskInstance.run_id == run_id).all()
        for row in rows:
            if row.state == TaskInstanceState.RUNNING:
                row.set_state(TaskInstanceState.FAILED, session=session)
            elif row.state not in OVER:
                row.set_state(TaskInstanceState.SKIPPED, session=session)
        session.commit()
        if not any(row.state == TaskInstanceState.FAILED for row in rows):
            succeeded = [row for row in rows if row.state == TaskInstanceState.SUCCESS]
            succeeded[-1].set_state(TaskInstanceState.FAILED, session=session)  # IndexError, as there: none has run
        return jsonify(message=["Result of Job abortion"])


@door.route("/api/getdagruns", methods=["POST"])
def runs():
    wanted = request.get_json(force=True)
    with create_session() as session:
        query = session.query(DagRun)
        for name in ("dag_id", "run_id", "state"):
            if wanted.get(name) is not None:
                query = query.filter(getattr(DagRun, name) == wanted[name])
        rows = query.order_by(DagRun.execution_date).all()
        if wanted.get("limit") is not None:
            rows = rows[: int(wanted["limit"])]
        if wanted.get("count") is not None:
            return jsonify(len(rows))
        return jsonify(
            [
                {"dag_id": r.dag_id, "run_id": r.run_id, "state": r.state, "execution_time": r.execution_date}
                for r in rows
            ]
        )


@door.route("/api/dagids/<dag_id>")
def run_ids(dag_id):
    with create_session() as session:
        if not session.query(DagModel).filter(DagModel.dag_id == dag_id).count():
            return Response(f"Dag {dag_id} does not exist", 400)
        rows = session.query(DagRun).filter(DagRun.dag_id == dag_id).order_by(DagRun.execution_date)
        return jsonify(dag_id=dag_id, run_ids=[row.run_id for row in rows])


@door.route("/api/getdags")
def dags():
    parsed = DagBag().dags
    with create_session() as session:
        found = {}
        for row in session.query(DagModel).all():
            if request.args.get("active_only") is not None and not row.is_active:
                continue
            facts = {"dag_id": row.dag_id, "is_active": row.is_active, "is_paused": row.is_paused}
            dag = parsed.get(row.dag_id)
            if dag is not None:
                facts["tags"] = sorted(dag.tags)
                facts.update({k: v for k, v in dag.default_args.items() if k.startswith("ui_")})
            found[row.dag_id] = facts
        return jsonify(found)


class KaapanaBlueprint(AirflowPlugin):
    name = "kaapana_blueprint"
    flask_blueprints = [door]
