"""Pack a global model as a MONAI bundle: a zip that loads and segments with MONAI alone, without fedportal.

The preprocessing in ``configs/inference.json`` is that of :mod:`trainer.images`, step by step; a test compares them.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from trainer import metrics, networks, weights
from trainer.contract import Exit, TrainingPlan, divisor, input_shape, plan_from_json
from trainer.failures import machine_faults
from trainer.images import AXES, AXIS_LABELS
from trainer.job import Fault

VERSION = "1.0.0"
SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
EPOCH = (1980, 1, 1, 0, 0, 0)
"""The zip's time stamps: the same model packs to the same bytes."""


def build(model: Path, recipe: Path, out: Path) -> None:
    """Write the bundle of ``model`` (safetensors) to ``out``.

    ``recipe``: see :func:`read_recipe`; what it says beside the plan (experiment, round, measured values) is kept in
    the bundle's metadata under ``fedportal``. Raises :class:`Fault` BAD_JOB for a recipe without a plan and
    MODEL_MISMATCH where model and plan do not fit.
    """
    document, plan = read_recipe(recipe)
    network = networks.build(plan.task, plan.network)
    weights.load_model(model, network)
    state = io.BytesIO()
    torch.save(network.state_dict(), state)
    files = {
        "configs/metadata.json": _json(metadata(plan, document)),
        "configs/inference.json": _json(inference(plan)),
        "docs/README.md": readme(plan).encode(),
        "models/model.pt": state.getvalue(),
    }
    folder = _folder_name(plan)
    with machine_faults(), weights.replacing(out) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(f"{folder}/{name}", date_time=EPOCH)
            entry.external_attr = 0o644 << 16
            # weights do not get smaller
            entry.compress_type = zipfile.ZIP_STORED if name.endswith(".pt") else zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)


def read_recipe(path: Path) -> tuple[Mapping[str, Any], TrainingPlan]:
    """Return document and plan of a recipe: a JSON file with a training plan, or with one under ``plan``.

    Raises :class:`Fault` BAD_JOB."""
    try:
        document = json.loads(path.read_bytes())
        return document, plan_from_json(document.get("plan", document))
    except OSError as error:
        raise Fault(Exit.BAD_JOB, f"{path.name} cannot be read ({error.strerror}).") from error
    except (ValueError, AttributeError) as error:
        raise Fault(Exit.BAD_JOB, f"{path.name} has no training plan: {error}") from error


def inference(plan: TrainingPlan) -> dict[str, Any]:
    """Return the bundle's inference configuration: NIfTI in, one mask per region out."""
    return {
        "imports": ["$import glob", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/eval'",
        "images": "$sorted(glob.glob(@dataset_dir + '/*.nii.gz') + glob.glob(@dataset_dir + '/*.nii'))",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "network_def": networks.definition(plan.task, plan.network),
        "weights": "$torch.load(@bundle_root + '/models/model.pt', map_location='cpu', weights_only=True)",
        "network": "$@network_def.to(@device).eval()",
        "preprocessing": {"_target_": "Compose", "transforms": _preprocessing(plan)},
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': path} for path in @images]",
            "transform": "@preprocessing",
        },
        "inferer": _inferer(plan),
        "predict": "$torch.no_grad()(lambda image: @inferer(image[None].to(@device), @network)[0].cpu())",
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "Activationsd", "keys": "pred", "sigmoid": True},
                {
                    "_target_": "Invertd",
                    "keys": "pred",
                    "transform": "@preprocessing",
                    "orig_keys": "image",
                    "nearest_interp": False,
                    "to_tensor": True,
                },
                {"_target_": "AsDiscreted", "keys": "pred", "threshold": metrics.THRESHOLD},
                {
                    "_target_": "SaveImaged",
                    "keys": "pred",
                    "output_dir": "@output_dir",
                    "output_postfix": "seg",
                    "output_dtype": "$torch.uint8",
                    "resample": False,
                    "separate_folder": False,
                },
            ],
        },
        "initialize": ["$@network.load_state_dict(@weights)"],
        "run": ["$[@postprocessing({**item, 'pred': @predict(item['image'])}) for item in @dataset]"],
    }


def metadata(plan: TrainingPlan, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the bundle's metadata in MONAI's schema, with the training plan under ``fedportal``."""
    task = plan.task
    step = divisor(plan.network)
    edge = f"{step}*n"
    shape: list[Any] = [edge, edge, edge] if plan.patch is None else list(input_shape(plan.network, plan.patch))
    regions = {str(i): region.name for i, region in enumerate(task.regions)}
    extra = {name: value for name, value in recipe.items() if name != "plan"} if "plan" in recipe else {}
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "changelog": {VERSION: "Global model of a federated training"},
        "monai_version": importlib.metadata.version("monai"),
        "pytorch_version": importlib.metadata.version("torch"),
        "numpy_version": importlib.metadata.version("numpy"),
        "required_packages_version": {
            name: importlib.metadata.version(name) for name in ("nibabel", "scipy", *_network_packages(plan))
        },
        "name": f"{task.name} segmentation",
        "task": f"Segmentation of {', '.join(regions.values())}",
        "description": f"{plan.network.name} trained by federated learning on {task.name}. {_local_note(plan)}".strip(),
        "authors": "The participants of the experiment",
        "copyright": "The participants of the experiment",
        "data_type": "nibabel",
        "image_classes": f"{len(task.channels)} channels: {', '.join(task.channels)}",
        "label_classes": ", ".join(f"{number} {name}" for number, name in sorted(task.labels.items())),
        "pred_classes": f"{len(regions)} channels, 0 or 1: {', '.join(regions.values())}",
        "intended_use": "Research only. Not a medical device.",
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "magnitude",
                    "modality": ", ".join(task.channels),
                    "num_channels": len(task.channels),
                    "spatial_shape": shape,
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": plan.patch is not None,
                    "channel_def": {str(i): channel for i, channel in enumerate(task.channels)},
                }
            },
            "outputs": {
                "pred": {
                    "type": "image",
                    "format": "segmentation",
                    "num_channels": len(regions),
                    "spatial_shape": shape,
                    "dtype": "float32",
                    "value_range": [0, 1],
                    "is_patch_data": plan.patch is not None,
                    "channel_def": regions,
                }
            },
        },
        "fedportal": {"plan": plan.to_json(), **extra},
    }


def readme(plan: TrainingPlan) -> str:
    """Return the bundle's description for people."""
    task = plan.task
    channels = "\n".join(f"{i}. {channel}" for i, channel in enumerate(task.channels))
    regions = "\n".join(
        f"{i}. {region.name}: {', '.join(task.labels[number] for number in region.labels)}"
        for i, region in enumerate(task.regions)
    )
    note = f"\n**Normalisation**: {_local_note(plan)}\n" if plan.local_layers != "none" else ""
    spacing = " × ".join(f"{mm:g}" for mm in plan.spacing) + " mm" if plan.spacing else "as stored"
    return f"""# {task.name}: {plan.network.name}

Global model of a federated training. Research only; not a medical device.

**Input**: one NIfTI file per patient, channels in the last axis, in this order:

{channels}

**Output**: one NIfTI file per patient, one channel of 0 and 1 per region, on the grid of the input:

{regions}

**Preprocessing** (done by the configuration): axes to {AXES}, spacing {spacing}, each channel to mean 0 and
deviation 1 over its voxels that are not zero.
{note}
## Segment a folder of images

In Python, with MONAI and the packages of `configs/metadata.json`, from this folder:

    import monai.bundle
    monai.bundle.run(config_file="configs/inference.json", meta_file="configs/metadata.json",
                     bundle_root=".", dataset_dir="/path/to/images", output_dir="/path/to/results")

With the package `fire` also as a command:

    python -m monai.bundle run --config_file configs/inference.json --meta_file configs/metadata.json \\
        --bundle_root . --dataset_dir /path/to/images --output_dir /path/to/results

Who may use these weights, and for what, is for the participants of the experiment to say.
"""


def _local_note(plan: TrainingPlan) -> str:
    """Say what a reader of the measured numbers has to know when sites kept layers of their own."""
    if plan.local_layers == "none":
        return ""
    return (
        "Each site kept normalisation layers of its own, and the scores were measured with them; the layers in "
        "these weights are the mean over the sites, so results elsewhere can be lower."
    )


def _preprocessing(plan: TrainingPlan) -> list[dict[str, Any]]:
    image = {"keys": "image"}
    steps: list[dict[str, Any]] = [
        {"_target_": "LoadImaged", **image, "ensure_channel_first": True, "image_only": True},
        {"_target_": "Orientationd", **image, "axcodes": AXES, "labels": [list(pair) for pair in AXIS_LABELS]},
    ]
    if plan.spacing is not None:
        steps.append({"_target_": "Spacingd", **image, "pixdim": list(plan.spacing), "mode": "bilinear"})
    steps.append({"_target_": "NormalizeIntensityd", **image, "nonzero": True, "channel_wise": True})
    if plan.patch is None:
        # in two steps what input_shape says in one
        step = divisor(plan.network)
        steps.append({"_target_": "SpatialPadd", **image, "spatial_size": [2 * step, -1, -1]})
        steps.append({"_target_": "DivisiblePadd", **image, "k": step})
    return steps


def _inferer(plan: TrainingPlan) -> dict[str, Any]:
    if plan.patch is None:
        return {"_target_": "SimpleInferer"}
    return {
        "_target_": "SlidingWindowInferer",
        "roi_size": list(input_shape(plan.network, plan.patch)),
        "sw_batch_size": plan.batch_size,
        "overlap": plan.validation.overlap,
        "mode": "gaussian",
    }


def _network_packages(plan: TrainingPlan) -> tuple[str, ...]:
    return ("einops",) if plan.network.name == "swin_unetr" else ()


def _folder_name(plan: TrainingPlan) -> str:
    words = f"{plan.task.name}_{plan.network.name}".lower()
    return "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in words)


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=2, ensure_ascii=False).encode()
