"""Which regions a dataset's labels form: what the compose form offers."""

from __future__ import annotations

from collections.abc import Mapping

from trainer.contract.checks import MAX_REGION_NAME
from trainer.contract.plan import Region

_BRAIN_TUMOUR = ("edema", "non-enhancing tumor", "enhancing tumor")


def regions_for(labels: Mapping[int, str]) -> tuple[Region, ...]:
    """Return the regions to segment for labels as in ``dataset.json``.

    Brain tumours labelled as in Task01_BrainTumour (edema, non-enhancing tumour, enhancing tumour, whatever their
    numbers) get the BraTS regions: whole tumour WT, tumour core TC, enhancing tumour ET. All other labels but 0 are
    a region each.
    """
    numbers = {" ".join(name.casefold().replace("tumour", "tumor").split()): number for number, name in labels.items()}
    if numbers.keys() - {"background"} == set(_BRAIN_TUMOUR):
        edema, core, enhancing = (numbers[name] for name in _BRAIN_TUMOUR)
        return (
            Region("WT", tuple(sorted((edema, core, enhancing)))),
            Region("TC", tuple(sorted((core, enhancing)))),
            Region("ET", (enhancing,)),
        )
    return tuple(Region(name[:MAX_REGION_NAME], (number,)) for number, name in sorted(labels.items()) if number != 0)
