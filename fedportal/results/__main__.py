"""``python -m fedportal.results``: run the declared experiments and write ``docs/results.md``. ``make results`` calls it.

A study that was stopped goes on where it stopped: what is computed lies in the state folder.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from fedportal.demo import portal
from fedportal.demo.processes import Processes
from fedportal.demo.state import HOST, DemoError, DemoState
from fedportal.results.plans import FULL, QUICK, Setting, Study
from fedportal.results.sessions import Sessions

ROOT = Path(__file__).resolve().parents[2]
TELL_EVERY = 30.0
"""Seconds between two lines of progress."""


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make results", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the whole way with next to no training, for tests")
    parser.add_argument("--write-only", action="store_true", help="compute nothing, write down what is there")
    parser.add_argument("--parallel", type=int, help="experiments at once (default: one more than there are cores)")
    parser.add_argument("--state", type=Path, help="folder of the computations (.results, .results-quick)")
    parser.add_argument("--out", type=Path, help="folder to write into (docs; with --quick the state folder's docs)")
    options = parser.parse_args(argv)
    options.state = options.state or ROOT / (".results-quick" if options.quick else ".results")
    options.out = options.out or (options.state / "docs" if options.quick else ROOT / "docs")
    options.parallel = options.parallel or len(os.sched_getaffinity(0)) + 1
    if options.parallel < 1:
        parser.error("--parallel: 1 or more")
    return options


def main(argv: list[str]) -> int:
    options = arguments(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    state = DemoState(options.state)
    processes = None
    try:
        state.lock()
        sessions = Sessions(state.folder / "sessions.json")
        values = state.remember(port=None)
        environment = state.environment(values)
        os.environ.update(environment)
        study = QUICK if options.quick else FULL
        if options.write_only:
            if not sessions.past:
                raise DemoError(
                    f"Nothing is computed in {state.folder} yet: run the command without --write-only first."
                )
            portal.set_up()
        else:
            processes = Processes(logs=state.folder / "logs", environment=environment, cwd=ROOT)
            bring_up(study, state, values, processes)
        trials = declared(study, state, values)
        if processes is not None:
            run(trials, options.parallel, processes, sessions)
        return write(study, trials, sessions, options)
    except DemoError as error:
        say(f"\n{error}")
        return 1
    except KeyboardInterrupt:
        say("\nStopped. The same command goes on from here.")
        return 130
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one shall not keep the services from ending
        if processes is not None:
            processes.stop()
            state.trainer.stop_server()
            state.weed.kill()


def bring_up(study: Study, state: DemoState, values: dict[str, Any], processes: Processes) -> None:
    """Generate the data, start the services; Django is loaded when this returns."""
    python = sys.executable
    say(f"Preparing {state.folder} …")
    state.trainer.start_server(wait=False)
    generating = [
        (setting.name, processes.run(setting.name, _phantoms(study, setting, state))) for setting in study.settings
    ]
    processes.finish("migrate", processes.run("migrate", [python, "manage.py", "migrate", "--no-input", "-v", "0"]))
    state.weed.start()
    port = str(values["port"])
    processes.start("portal", [python, "-m", "daphne", "-b", HOST, "-p", port, "fedportal.asgi:application"])
    for name, process in generating:
        processes.finish(name, process)
    processes.start("orchestrator", [python, "manage.py", "orchestrate"])
    portal.set_up()


def _phantoms(study: Study, setting: Setting, state: DemoState) -> list[str]:
    slugs = [hospital.slug for hospital in setting.hospitals]
    return [
        *(sys.executable, "-m", "trainer", "phantoms", "--out", str(state.hospitals), "--variant", setting.variant),
        *("--sites", str(len(slugs)), "--site-names", ",".join(slugs), "--size", str(study.size)),
        *("--train", str(setting.train), "--validation", str(setting.validation), "--seed", str(study.patients)),
    ]


def declared(study: Study, state: DemoState, values: dict[str, Any]) -> list[Any]:
    """Return a trial for every declared experiment, the hospitals registered and their data found."""
    from fedportal.results.runs import trial_of

    people = portal.ensure_people(values["passwords"])
    trials = []
    for setting in study.settings:
        sites = [
            portal.ensure_hospital((one.slug, one.name, one.patients), state.connection, people["steward"])
            for one in setting.hospitals
        ]
        datasets = [portal.wait_for_dataset(site) for site in sites]
        trials += [
            trial_of(setting, entry, repeats=study.repeats, owner=people["researcher"], datasets=datasets)
            for entry in setting.entries
        ]
    return trials


def run(trials: Sequence[Any], parallel: int, processes: Processes, sessions: Sessions) -> None:
    """Bring every trial to its end, some at a time. Raises :class:`DemoError` where one has failed."""
    waiting = [trial for trial in trials if trial.head.is_draft or not trial.is_over or trial.failures]
    running: list[Any] = []
    planned, at_first, told = sum(trial.steps_planned for trial in trials), _done(trials), 0.0
    while waiting or running:
        for trial in [trial for trial in running if trial.is_over]:
            running.remove(trial)
            say(f"{_clock(sessions.seconds)}  {trial.progress}")
        while waiting and len(running) < parallel:
            running.append(waiting.pop(0))
            running[-1].start()
        for name in processes.watch():
            say(f"The {name} had stopped and was started again.")
        if time.monotonic() - told >= TELL_EVERY:
            told = time.monotonic()
            sessions.note()
            _tell(running, planned, at_first, _done(trials), sessions.seconds)
        time.sleep(0.5)
    sessions.note()
    if failures := [failure for trial in trials for failure in trial.failures]:
        raise DemoError(
            "\n".join([*failures, "Run the same command again to try these once more, or with --write-only."])
        )


def _done(trials: Sequence[Any]) -> int:
    return sum(trial.steps_done for trial in trials)


def _tell(running: Sequence[Any], planned: int, at_first: int, done: int, seconds: float) -> None:
    left = ""
    if done > at_first:
        left = f", about {seconds * (planned - done) / (done - at_first) / 60:.0f} min left"
    say(f"{_clock(seconds)}  {100 * done / planned:.0f} % of the gradient steps{left}")
    for trial in running:
        say(f"         {trial.progress}")


def write(study: Study, trials: Sequence[Any], sessions: Sessions, options: argparse.Namespace) -> int:
    """Write the numbers, the figures and the document."""
    from fedportal.results.figures import draw
    from fedportal.results.numbers import collect
    from fedportal.results.report import report

    results = collect(study, trials, sessions.past)
    folder = options.out / "results"
    draw(results, folder)
    (folder / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    command = 'make results ARGS="--quick"' if options.quick else "make results"
    (options.out / "results.md").write_text(report(results, command=command))
    say(f"Written: {options.out / 'results.md'}")
    return 0


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60:3d}:{int(seconds) % 60:02d}"


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
