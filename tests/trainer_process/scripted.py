"""The real trainer process around a scripted work: the job's dataset is the name of what shall happen.

Started by tests in place of ``python -m trainer``. Everything but the training itself is the real thing.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from trainer.__main__ import main
from trainer.contract import Exit, MetricRecord, Phase
from trainer.exchange import Inputs
from trainer.job import Fault, Outcome


def work(inputs: Inputs) -> Outcome:
    inputs.report.say(f"scripted work: {inputs.spec.dataset}")
    inputs.report.metric(MetricRecord(Phase.TRAIN, "loss", 0.5, step=1, progress=0.5))
    sys.stdout.write("printed by a library\n")
    match inputs.spec.dataset:
        case "quick":
            pass
        case "pooled":
            for member in inputs.site.pool:
                inputs.report.say(f"member {member.site}: {member.dataset} in {member.data_root}")
        case "lasts":
            time.sleep(120)
        case "seconds":
            time.sleep(8)
        case "measures":  # while its update is on the way
            model = inputs.folder / "update.safetensors"
            model.write_bytes(inputs.model.read_bytes())
            inputs.deliver(model, None)
            time.sleep(120)
        case "computes":  # holds no bytecode boundary for a signal handler to run at
            import hashlib

            hashlib.pbkdf2_hmac("sha256", b"x", b"y", 500_000_000)
        case "has-children":
            if os.fork() == 0:
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
                time.sleep(120)
            time.sleep(120)
        case "fails":
            raise Fault(Exit.WRONG_LABEL, "Case BRATS_007.")
        case "crashes":
            raise RuntimeError(f"cannot reach {inputs.spec.model.url}")
        case "disk-full":
            raise OSError(errno.ENOSPC, "No space left on device")
        case "memory":
            raise MemoryError
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
    inputs.report.metric(MetricRecord(Phase.LOCAL, "dice", 0.8, region="WT", step=2, progress=1.0, cases=3))
    update = inputs.folder / "update.safetensors"
    update.write_bytes(inputs.model.read_bytes()[::-1])
    return Outcome(train_cases=8, validation_cases=3, steps=2, update=update, seconds={"train": 0.1})


if __name__ == "__main__":
    sys.exit(main(work=work, preload=(), patience=float(os.environ.get("SCRIPTED_PATIENCE", "20"))))
