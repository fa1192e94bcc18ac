"""What a network makes of a whole image."""

from __future__ import annotations

from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from trainer.contract import TrainingPlan, input_shape
from trainer.data import pad, unpad
from trainer.machine import Machine


def predict(network: nn.Module, image: Tensor, plan: TrainingPlan, *, machine: Machine) -> Tensor:
    """Return logits float32 [region, x, y, z] for an image float32 [channel, x, y, z] of any size.

    With a patch in the plan a window slides over the volume; else the whole volume is seen at once, padded.
    """
    shape = image.shape[-3:]
    inputs = image[None].to(machine.device)
    with machine.autocast():
        if plan.patch is None:
            logits = unpad(network(pad(inputs, input_shape(plan.network, shape))), shape)
        else:
            logits = sliding_window_inference(
                inputs,
                roi_size=input_shape(plan.network, plan.patch),
                sw_batch_size=plan.batch_size,
                predictor=network,
                overlap=plan.validation.overlap,
                mode="gaussian",
            )
    return logits[0].float()
