"""The command line of the phantoms."""

from __future__ import annotations

import argparse
import errno
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from trainer.contract import EXPLANATIONS, Exit
from trainer.phantoms.cohort import VARIANTS, cohort, default_names
from trainer.phantoms.dataset import NotOurs, generate
from trainer.phantoms.template import TemplateMissing

_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}\Z")


def main(argv: Sequence[str]) -> int:
    """Generate the sites' datasets; return an exit code of :class:`trainer.contract.Exit` (2: wrong usage)."""
    options = _options(argv)
    started = time.monotonic()
    profiles = cohort(
        options.variant,
        names=options.site_names,
        train=options.train,
        validation=options.validation,
        seed=options.seed,
    )
    if options.only is not None:
        profiles = [profile for profile in profiles if profile.name == options.only]
    try:
        for folder, fresh in generate(
            options.out, profiles, size=options.size, seed=options.seed, workers=options.workers
        ):
            sys.stdout.write(f"{folder}: {'generated' if fresh else 'already there'}\n")
    except (NotOurs, TemplateMissing) as error:
        sys.stderr.write(f"{error}\n")
        return Exit.NO_DATASET
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        sys.stderr.write(f"{EXPLANATIONS[Exit.DISK_FULL]} {error}\n" if full else f"{error}\n")
        return Exit.DISK_FULL if full else Exit.UNEXPECTED
    sys.stdout.write(f"{len(profiles)} sites in {time.monotonic() - started:.1f} s\n")
    return Exit.OK


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m trainer phantoms", description="Generate demo data.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the sites' folders")
    parser.add_argument("--sites", type=_between(1, 64), default=3, help="how many sites (default 3)")
    parser.add_argument("--site-names", help="comma-separated folder names, one per site (default a,b,c,…)")
    parser.add_argument("--only", metavar="NAME", help="write this site alone; it is the same as among all")
    parser.add_argument("--size", type=_between(16, 192), default=40, help="voxels per edge of 192 mm (default 40)")
    parser.add_argument("--train", type=_between(1, 400), default=8, help="training cases per site (default 8)")
    parser.add_argument("--validation", type=_between(0, 199), default=4, help="held-out cases per site (default 4)")
    parser.add_argument("--variant", choices=VARIANTS, default="scanner", help="how the sites differ")
    parser.add_argument("--seed", type=_between(0, 2**63 - 1), default=0)
    parser.add_argument("--workers", type=_between(0, 64), default=0, help="processes at once (default: one per CPU)")
    options = parser.parse_args(argv)
    names = options.site_names.split(",") if options.site_names is not None else default_names(options.sites)
    if len(names) != options.sites:
        parser.error(f"--site-names has {len(names)} names for {options.sites} sites")
    if len(set(names)) != len(names) or not all(_FOLDER.match(name) for name in names):
        parser.error("--site-names: different names of letters, digits, hyphens and underscores")
    if options.only is not None and options.only not in names:
        parser.error(f"--only {options.only}: no such site among {', '.join(names)}")
    options.site_names = names
    return options


def _between(low: int, high: int):
    def number(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{value} is not between {low} and {high}")
        return value

    number.__name__ = "number"
    return number
