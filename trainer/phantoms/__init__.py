"""Generated demo data: brains with tumours that are nobody's, in the layout of Task01_BrainTumour.

    python -m trainer phantoms --out DIR --sites 3 --size 40 --train 8 --validation 4 --variant scanner --seed 0

From the MNI152 template and its tissue maps: one deformation per patient (``anatomy``), a tumour
(``lesion``), four MR contrasts and a scanner's look (``scanner``), one profile per site (``cohort``),
written as Medical Segmentation Decathlon folders (``dataset``). ``docs/data.md`` has the recipe in prose.
"""

from trainer.phantoms.command import main

__all__ = ["main"]
