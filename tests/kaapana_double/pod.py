"""The entry of the trainer's image around the scripted work of the other trainer tests; phantoms are really trained on."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.trainer_process.scripted import work
from trainer.exchange import Inputs, train_or_evaluate
from trainer.job import Outcome
from trainer.kaapana.__main__ import main

PHANTOMS = "Task01_BrainTumour"


def scripted_or_real(inputs: Inputs) -> Outcome:
    return train_or_evaluate(inputs) if inputs.spec.dataset == PHANTOMS else work(inputs)


if __name__ == "__main__":
    sys.exit(main(work=scripted_or_real))
