"""What a network makes of a whole image, seen at once or through a window."""

import pytest
import torch
from torch import nn

from tests.trainer.conftest import changed
from trainer import networks
from trainer.inference import predict
from trainer.machine import Machine

MACHINE = Machine(torch.device("cpu"), threads=1, mixed=False)


class Pointwise(nn.Module):
    """Looks at no neighbours: whichever windows a voxel is seen in, its logits are the same."""

    def forward(self, image):
        return 2 * image[:, :3] + 1


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.9])
@pytest.mark.parametrize("shape", [(8, 8, 8), (16, 9, 8), (5, 8, 21)])
def test_windows_put_every_voxel_back_in_its_place_with_weights_of_one(plan, shape, overlap):
    image = torch.rand(4, *shape, generator=torch.Generator().manual_seed(1))
    plan = changed(plan, patch=(8, 8, 8), validation={"overlap": overlap})
    found = predict(Pointwise(), image, plan, machine=MACHINE)
    assert (found.dtype, found.shape) == (torch.float32, (3, *shape))
    torch.testing.assert_close(found, 2 * image[:3] + 1, rtol=1e-4, atol=1e-4)


def test_a_window_as_large_as_the_image_sees_what_the_whole_image_shows(plan):
    network = networks.build(plan.task, plan.network).eval()
    image = torch.rand(4, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        whole = predict(network, image, plan, machine=MACHINE)
        seen = predict(network, image, changed(plan, patch=(16, 16, 16)), machine=MACHINE)
    torch.testing.assert_close(seen, whole, rtol=1e-4, atol=1e-5)
