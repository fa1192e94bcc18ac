"""When more rounds are no use: the best model has been the best for as many rounds as the researcher has patience."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedportal.experiments.models.scores import MEAN
from fedportal.orchestrator.outcomes import Score
from fedportal.orchestrator.snapshot import ModelView, Snapshot


@dataclass(frozen=True)
class Stop:
    """The best model when patience was lost."""

    round_number: int
    dice: float
    waited: int

    def text(self, s: Snapshot) -> str:
        measure = "mean Dice" if s.best_by == MEAN else f"Dice of {s.best_by}"
        of = f"round {self.round_number}" if self.round_number else "the start"
        rounds = f"{self.waited} round{'' if self.waited == 1 else 's'}"
        return (
            f"No model for {rounds} had a better {measure} than that of {of} with {self.dice:.3f}: the experiment "
            f"stops early. The model of round {s.round.number} is still measured."
        )


def early_stop(s: Snapshot, score: Score | None) -> Stop | None:
    """Return why the round at hand is the last one, or ``None``. Needs the models measured so far and the newest score.

    A model that could not be measured is neither better nor worse: it costs no patience.
    """
    if s.patience == 0:
        return None
    measured = measured_dice(s, score)
    if not measured:
        return None
    best, highest = max(measured, key=lambda entry: (entry[1], -entry[0]))
    waited = sum(number > best for number, _ in measured)
    return Stop(best, highest, waited) if waited >= s.patience else None


def measured_dice(s: Snapshot, score: Score | None) -> Sequence[tuple[int, float]]:
    """Return round number and Dice of every model that was measured, the newest score included."""
    models = {model.round_number: model for model in s.models}
    if score is not None:
        newest = ModelView(0, score.round_number, "", "", 0, dice=score.dice, scores=score.scores)
        models[score.round_number] = newest
    found = ((number, model.dice_of(s.best_by)) for number, model in sorted(models.items()))
    return [(number, dice) for number, dice in found if dice is not None]
