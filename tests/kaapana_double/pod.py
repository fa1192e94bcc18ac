"""The entry of the trainer's image around the scripted work of the other trainer tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.trainer_process.scripted import work
from trainer.kaapana.__main__ import main

if __name__ == "__main__":
    sys.exit(main(work=work))
