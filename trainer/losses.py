"""The losses of a plan, on sigmoid region channels (regions overlap, so no softmax)."""

from __future__ import annotations

import torch
from monai.losses import DiceFocalLoss, DiceLoss, GeneralizedDiceLoss
from torch import Tensor, nn

from trainer.contract import Exit
from trainer.job import Fault


class DiceCrossEntropy(nn.Module):
    """Dice plus binary cross-entropy of each region. MONAI's DiceCELoss takes a softmax over the channels as soon as there
    are two, which cannot hold for regions that overlap."""

    def __init__(self, dice: nn.Module) -> None:
        super().__init__()
        self.dice = dice
        self.cross_entropy = nn.BCEWithLogitsLoss()

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return self.dice(logits, target) + self.cross_entropy(logits, target)


class ProximalTerm:
    """μ/2 · ‖w − w_global‖² over the trained parameters, from where the model stands now: what FedProx adds to the loss
    (Li et al. 2020, arXiv:1812.06127)."""

    def __init__(self, model: nn.Module, mu: float) -> None:
        self.mu = mu
        self.pairs = [(p, p.detach().clone()) for p in model.parameters() if p.requires_grad]

    def __call__(self) -> Tensor:
        squares = [(now - start).square().sum() for now, start in self.pairs]
        return self.mu / 2 * torch.stack(squares).sum()


def build(name: str) -> nn.Module:
    """Return ``loss(logits, target)`` for float tensors [batch, region, x, y, z].

    Dice is taken over the whole batch: a region that one patient lacks (Task01's ET) then costs
    no more than its false voxels, and with no smoothing in the numerator an empty batch has loss 1, not 0.
    """
    dice = {"sigmoid": True, "squared_pred": True, "batch": True, "smooth_nr": 0.0, "smooth_dr": 1e-5}
    match name:
        case "dice":
            return DiceLoss(**dice)
        case "dice_ce":
            return DiceCrossEntropy(DiceLoss(**dice))
        case "dice_focal":
            return DiceFocalLoss(**dice)
        case "generalised_dice":
            # its weights fall with the square of a region's size; it has no squared prediction
            return GeneralizedDiceLoss(sigmoid=True, batch=True)
        case _:
            raise Fault(Exit.BAD_JOB, f"There is no loss {name}.")
