"""The trainer's command line, ``python -m trainer <command>``.

``run`` carries out one job (``FEDPORTAL_JOB`` in the environment), ``serve`` keeps a warm process that starts runs
without the seconds of importing torch, the others are small tools. Exit codes are :class:`trainer.contract.Exit`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from trainer.contract import EXPLANATIONS, ContractError, Exit, plan_from_json
from trainer.exchange import SITE_KEY, Work, job_from_json, train_or_evaluate, versions
from trainer.failures import is_disk_full
from trainer.job import Fault, Member
from trainer.run import begin, carry_out, claim, end_on_signal
from trainer.serve import PRELOAD, Server


def main(
    argv: Sequence[str] | None = None,
    *,
    work: Work = train_or_evaluate,
    preload: Sequence[str] = PRELOAD,
    patience: float = 900.0,
) -> int:
    """Run a command and return its exit code. ``work`` and ``preload`` are what tests replace."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["phantoms"]:
        from trainer.phantoms import main as phantoms

        return phantoms(arguments[1:]) or 0
    options = _parser().parse_args(arguments)
    if most := getattr(options, "memory_mb", 0) * 2**20:
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    try:
        match options.command:
            case "run":
                return _run(work, patience)
            case "serve":
                server = Server(
                    options.socket, command=lambda argv: main(argv, work=work), work=work, patience=patience,
                    preload=preload, idle=options.idle, label=options.label,
                )  # fmt: skip
                return server.serve()
            case "init":
                from trainer.initial import init

                init(_plan(options.plan), options.out)
            case "bundle":
                from trainer.bundle import build

                build(options.model, options.recipe, options.out)
            case "predict":
                return _predict(options)
            case "inspect":
                from trainer.inspect import inspect, inspect_pool

                try:
                    reports = [inspect_pool(options.pool)] if options.pool else inspect(options.data_root)
                except OSError as error:
                    raise Fault(Exit.NO_DATASET, f"The data folder cannot be read ({error.strerror}).") from error
                print(json.dumps(reports))
            case "version":
                print(json.dumps(versions()))
    except Fault as fault:
        print(fault.message, file=sys.stderr)
        return int(fault.exit)
    return int(Exit.OK)


def _run(work: Work, patience: float) -> int:
    document = os.environ.pop("FEDPORTAL_JOB", "")  # it holds the attempt's key: no child needs it
    lock_fd = os.environ.pop("FEDPORTAL_LOCK_FD", "")
    try:
        job = job_from_json(json.loads(document))
        os.environ.pop(SITE_KEY, None)
    except ValueError as error:
        raise Fault(Exit.BAD_JOB, "FEDPORTAL_JOB in the environment is not JSON.") from error
    try:
        lock = int(lock_fd) if lock_fd else claim(job.folder, again=True)
        if lock is None:
            print(f"{job.run} has run already, or is running", file=sys.stderr)
            return int(Exit.OK)
        begin(job.folder, lock)
    except OSError as error:
        code = Exit.DISK_FULL if is_disk_full(error) else Exit.UNEXPECTED
        raise Fault(code, f"The run's folder cannot be written ({error.strerror}).") from error
    if job.site.threads:
        # A site that shares its machine: torch's threads shall sleep, not spin, when they wait for each other.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        os.environ.setdefault("OMP_NUM_THREADS", str(job.site.threads))
    return int(carry_out(job, work=work, patience=patience))


def _predict(options: argparse.Namespace) -> int:
    end_on_signal(lambda: print(EXPLANATIONS[Exit.CANCELLED], file=sys.stderr))
    from trainer.predict import segment

    code, counts = segment(
        model=options.model,
        recipe=options.recipe,
        images=options.images,
        out=options.out,
        threads=options.threads,
        say=lambda message: print(message, file=sys.stderr, flush=True),
    )
    print(json.dumps(asdict(counts)))
    return int(code)


def _pool(text: str) -> tuple[Member, ...]:
    try:
        return tuple(Member.from_json(member) for member in json.loads(text))
    except (KeyError, TypeError) as error:
        raise argparse.ArgumentTypeError(f"not the members of a pool: {error}") from error


def _plan(path: Path):
    try:
        return plan_from_json(json.loads(path.read_bytes()))
    except (OSError, ValueError) as error:  # ContractError is a ValueError
        detail = str(error) if isinstance(error, ContractError) else f"{path.name} cannot be read."
        raise Fault(Exit.BAD_JOB, detail) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trainer", description="Train at a site of a federation.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run", help="carry out the job in FEDPORTAL_JOB")
    serve = commands.add_parser("serve", help="keep a warm process that starts runs")
    serve.add_argument("--socket", type=Path, required=True)
    serve.add_argument("--idle", type=int, default=4, help="processes that wait ready (default 4)")
    serve.add_argument("--label", default="", help="text that a ping gives back")
    init = commands.add_parser("init", help="make the initial global model of a plan")
    init.add_argument("--plan", type=Path, required=True)
    init.add_argument("--out", type=Path, required=True)
    bundle = commands.add_parser("bundle", help="pack a model as a MONAI bundle")
    bundle.add_argument("--model", type=Path, required=True)
    bundle.add_argument("--recipe", type=Path, required=True)
    bundle.add_argument("--out", type=Path, required=True)
    predict = commands.add_parser("predict", help="segment a folder of images with a model")
    predict.add_argument("--model", type=Path, required=True, help="model.safetensors of the portal")
    predict.add_argument("--recipe", type=Path, required=True, help="its recipe.json")
    predict.add_argument("--images", type=Path, required=True, help="folder of NIfTI files, or with a dataset.json")
    predict.add_argument("--out", type=Path, required=True, help="folder for the segmentations")
    predict.add_argument("--threads", type=int, default=0, help="CPU threads (default: all)")
    for command in (init, bundle):
        command.add_argument("--memory-mb", type=int, default=0, help="stop when it would take more; 0: no limit")
    inspect = commands.add_parser("inspect", help="list the datasets of a folder, as JSON")
    where = inspect.add_mutually_exclusive_group(required=True)
    where.add_argument("--data-root", type=Path)
    where.add_argument("--pool", type=_pool, help='members of a pool, as JSON: [{"site", "data_root", "dataset"}]')
    commands.add_parser("version", help="say what this trainer is made of, as JSON")
    commands.add_parser("phantoms", help="make demo data", add_help=False)
    return parser


if __name__ == "__main__":
    sys.exit(main())
