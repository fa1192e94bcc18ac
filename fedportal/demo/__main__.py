"""``python -m fedportal.demo``: start or resume the demo. ``make demo`` calls it.

The order keeps the wait short: the object store, the warm trainer and the demo data take longest, so they start first
and in parallel; the portal answers as soon as its database exists.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from fedportal.connectors.errors import StoreError
from fedportal.connectors.local import LocalConnector
from fedportal.demo.airflow_server import USER, AirflowServer
from fedportal.demo.airflow_sites import AirflowSites, end_orphans
from fedportal.demo.processes import Processes
from fedportal.demo.state import HOST, DemoError, DemoState

ROOT = Path(__file__).resolve().parents[2]
STORE_TIMEOUT = 300.0
"""Seconds. Usually it takes two, but a minute or more on a busy machine."""
HOSPITALS = (
    ("linden", "Linden Hospital", "Lindenau"),
    ("seeblick", "Seeblick Clinic", "Seeblick"),
    ("altberg", "Altberg University Hospital", "Altberg"),
    ("birkenau", "Birkenau Hospital", "Birkenau"),
    ("nordhaven", "Nordhaven Clinic", "Nordhaven"),
    ("rosenfeld", "Rosenfeld Hospital", "Rosenfeld"),
    ("steinbach", "Steinbach Clinic", "Steinbach"),
    ("waldsee", "Waldsee University Hospital", "Waldsee"),
)


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo", description="Start or resume the demo.")
    parser.add_argument("--sites", type=int, default=3, help="number of demo hospitals, 2 to 8 (default 3)")
    parser.add_argument("--rounds", type=int, default=12, help="rounds of the reference experiment (default 12)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the training (default 0)")
    parser.add_argument("--port", type=int, help="port of the portal (default 8000 or the next free one)")
    parser.add_argument(
        "--airflow",
        action="store_true",
        help="use real Airflow servers, 2.11 and 3, as hospitals (run make airflow first)",
    )
    parser.add_argument("--headless", action="store_true", help="for scripts: print only the JSON summary to stdout")
    parser.add_argument(
        "--baselines", action="store_true", help="also wait for the baselines, and add the comparison to the summary"
    )
    parser.add_argument("--exit", action="store_true", help="stop everything when the experiment has ended")
    parser.add_argument("--remove", action="store_true", help="only remove everything that the demo created")
    parser.add_argument(
        "--state", type=Path, help="folder for everything that the demo creates (default .demo or .demo-airflow)"
    )
    options = parser.parse_args(argv)
    options.state = options.state or ROOT / (".demo-airflow" if options.airflow else ".demo")
    if not 2 <= options.sites <= len(HOSPITALS):
        parser.error(f"--sites must be 2 to {len(HOSPITALS)}")
    if not 1 <= options.rounds <= 10_000:
        parser.error("--rounds must be 1 to 10000")
    if not 0 <= options.seed < 2**31:
        parser.error("--seed must be 0 to 2147483647")
    return options


def main(argv: list[str]) -> int:
    options = arguments(argv)
    say = print_to_stderr if options.headless else print
    signal.signal(signal.SIGTERM, _interrupt)
    state = DemoState(options.state)
    processes = airflow = None
    try:
        state.lock()
        state.address_file.unlink(missing_ok=True)
        if options.remove:
            return remove(state)
        values = state.remember(port=options.port)
        environment = state.environment(values)
        processes = Processes(logs=state.folder / "logs", environment=environment, cwd=ROOT)
        if options.airflow:
            airflow = AirflowSites(state, HOSPITALS[: options.sites])
        return run(options, state, values, environment, processes, airflow, say)
    except DemoError as error:
        print_to_stderr(f"\n{error}")
        return 1
    except KeyboardInterrupt:
        say("\nStopping. Run `make demo` to continue where you left off.")
        return 130
    finally:
        if airflow is not None:
            airflow.stop()
        if processes is not None:
            processes.stop()
            state.trainer.stop_server()
            state.weed.kill()


def run(options, state, values, environment, processes, airflow, say) -> int:
    """Start everything and the reference experiment; return when told to stop."""
    python = sys.executable
    begun = time.monotonic()
    say(f"Preparing the demo in {state.folder} …")
    os.environ.update(environment)
    # The warm trainer outlives a killed demo, and the next one uses it again.
    state.trainer.start_server(wait=False)
    if airflow is not None:
        airflow.start()
    hospitals = HOSPITALS[: options.sites]
    phantoms = processes.run(
        "phantoms",
        [
            *(python, "-m", "trainer", "phantoms", "--out", str(state.hospitals), "--variant", "scanner"),
            *("--sites", str(options.sites), "--site-names", ",".join(slug for slug, _name, _city in hospitals)),
            *("--size", "40", "--train", "8", "--validation", "4"),
        ],
    )
    migrate = processes.run("migrate", [python, "manage.py", "migrate", "--no-input", "-v", "0"])
    try:
        state.weed.start(timeout=STORE_TIMEOUT)
    except StoreError as error:
        log = state.weed.folder / "weed.log"
        raise DemoError(f"The object store did not start. See {log}.\n{error}") from error
    processes.finish("migrate", migrate)
    port = values["port"]
    processes.start("portal", [python, "-m", "daphne", "-b", HOST, "-p", str(port), "fedportal.asgi:application"])
    processes.finish("phantoms", phantoms)
    processes.start("orchestrator", [python, "manage.py", "orchestrate"])

    from fedportal.demo import portal  # Django needs the environment set above

    portal.set_up()
    if airflow is not None:
        for slug, _name, _city in hospitals:
            airflow.install(slug, portal.site_key(slug))
        say("Waiting for the hospitals' Airflow servers …")
        airflow.wait()
    experiment = portal.prepare(
        hospitals=hospitals,
        connection=state.connection if airflow is None else airflow.connection,
        passwords=values["passwords"],
        rounds=options.rounds,
        seed=options.seed,
    )
    address = f"http://{HOST}:{port}"
    _wait_until_it_answers(f"{address}/ui/healthz/", processes)
    answers_at = time.time()
    portal.start(experiment)
    state.address_file.write_text(f"{address}/experiments/{experiment.key}/\n")
    if not options.headless:
        servers = airflow.servers if airflow is not None else {}
        greet(address, experiment.key, values["passwords"], time.monotonic() - begun, servers)
    return stay(options, state, portal, experiment, processes, airflow, say, answers_at)


def remove(state: DemoState) -> int:
    """Stop what outlives the demo, including trainings, and delete the folder."""
    for run in state.folder.glob("work/*/runs/*"):
        LocalConnector(data_root=state.hospitals, work_dir=run.parents[1]).cancel(run.name)
    end_orphans(state)
    state.trainer.stop_server()
    state.weed.kill()
    shutil.rmtree(state.folder)
    return 0


def stay(options, state, portal, experiment, processes, airflow, say, answers_at: float) -> int:
    """Keep the processes alive, and report when the experiment has ended; with ``--baselines``, when all its baselines
    have ended, too."""
    told = False
    has_ended = portal.family_has_ended if options.baselines else portal.has_ended
    while True:
        for name in [*processes.watch(), *(airflow.watch() if airflow else ())]:
            say(f"The {name} stopped and has been restarted.")
        if not told and has_ended(experiment):
            told = True
            summary = portal.summary(experiment, answers_at=answers_at)
            if options.baselines:
                summary |= portal.compared(experiment)
            if options.headless:
                sys.stdout.write(json.dumps(summary, indent=2) + "\n")
                sys.stdout.flush()
            else:
                say(ending(summary, experiment.family.count() - 1, state.address_file.read_text().strip()))
            if options.exit:
                states = {summary["state"], *summary.get("baselines", {}).values()}
                return 0 if states == {"completed"} else 1
        time.sleep(0.5)


def greet(
    address: str, key: str, passwords: dict[str, str], seconds: float, servers: Mapping[str, AirflowServer]
) -> None:
    width = max(len(name) for name in [*passwords, *servers])
    people = "\n".join(f"    {name:<{width}}   {password}" for name, password in passwords.items())
    if servers:
        pages = (f"    {slug:<{width}}   {server.url}   {server.password}" for slug, server in servers.items())
        people += f"\n\n  The hospitals' own Airflow pages (sign in as {USER})\n\n" + "\n".join(pages)
    print(
        f"""
  fedportal is running (ready after {seconds:.0f} s). Open

    {address}/experiments/{key}/

  and sign in with one of these names and passwords

{people}

  Ctrl-C stops the demo, `make demo` continues where it left off, and `make clean-demo` deletes it.
"""
    )


def ending(summary: dict, beside: int, address: str) -> str:
    """Return how the experiment ended, and where to look next."""
    dice = summary["final_dice"]
    said = f"The experiment has ended: {summary['state']}."
    if dice is not None:
        said += f" The global model has a mean Dice of {dice:.3f}."
    if beside and summary["state"] == "completed":
        said += f"\n  Its {beside} baselines and evaluations are now filling in the comparison: {address}compare/"
    return f"  {said}\n"


def print_to_stderr(text: str) -> None:
    sys.stderr.write(text + "\n")


def _wait_until_it_answers(url: str, processes: Processes, timeout: float = 60) -> None:
    end = time.monotonic() + timeout
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310  (our own loopback address)
                if answer.status == 200:
                    return
        except OSError:
            if time.monotonic() > end:
                raise DemoError(f"The portal is not answering:\n{processes.last_words('portal')}") from None
        processes.watch()
        time.sleep(0.1)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
