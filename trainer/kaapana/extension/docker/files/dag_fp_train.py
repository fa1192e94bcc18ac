"""The workflows of a site that takes part in a federation.

``fp-train``   one part of one round, started by the portal: train, or evaluate the final model
``fp-check``   what this site's trainer is, started by the portal
``fp-offer``   prepare a dataset for the federation, started here, in the page "Workflow Execution", by whoever answers for the data

Ids are short: Kaapana names a pod after run and task and cuts the name at 62 characters. The id that it gives a run is
the DAG's and 19 more characters, so DAG and task together have 42.
"""

from datetime import datetime, timedelta

from airflow.models import DAG
from fp_train.FpTrainOperator import FpTrainOperator
from kaapana.operators.DcmConverterOperator import DcmConverterOperator
from kaapana.operators.GetInputOperator import GetInputOperator
from kaapana.operators.GetRefSeriesOperator import GetRefSeriesOperator
from kaapana.operators.LocalWorkflowCleanerOperator import LocalWorkflowCleanerOperator
from kaapana.operators.Mask2nifitiOperator import Mask2nifitiOperator

VERSION = "fp-1"
"""Tag by which the portal sees whether these DAGs are those that it knows. Raised with every change that it must know."""

BY_THE_PORTAL = {
    "workflow_form": {
        "type": "object",
        "properties": {
            "started_by": {
                "title": "Started by",
                "description": "The portal of the federation starts this workflow. By hand it ends at once.",
                "type": "string",
                "default": "portal",
                "readOnly": True,
            }
        },
    },
    # An empty form: no dataset is asked for.
    "data_form": {},
}
OFFER = {
    "workflow_form": {
        "type": "object",
        "properties": {
            "channel": {
                "title": "Contrast",
                "description": "What the images show, as the experiments of the federation call it: CT, T2w, … Several, "
                "where the dataset lists the images, too, in the federation's order: FLAIR=*flair*, T1w=*t1*pre* "
                "(name=pattern of the series' description).",
                "type": "string",
                "default": "CT",
                "required": True,
            },
            "labels": {
                "title": "Labels",
                "description": "Names of the segmentations, in the order of the federation, separated by commas.",
                "type": "string",
                "default": "",
                "required": True,
            },
            "confirmation": {
                "title": "I answer for these data, and they may be used for federated training.",
                "type": "boolean",
                "default": False,
                "required": True,
            },
            "single_execution": {
                "title": "One run per series",
                "type": "boolean",
                "default": False,
                "readOnly": True,
            },
        },
    },
}


def workflow(dag_id, ui_forms, *, at_once):
    """Return a DAG. ``at_once``: how many of its runs may go on at the same time."""
    return DAG(
        dag_id=dag_id,
        default_args={
            "ui_visible": True,
            "ui_forms": ui_forms,
            "owner": "fedportal",
            "start_date": datetime(2024, 1, 1),
            "retries": 0,
            "retry_delay": timedelta(seconds=30),
        },
        tags=["fedportal", VERSION],
        schedule_interval=None,
        catchup=False,
        max_active_runs=at_once,
    )


def prepared(dag, *, before=None):
    """Add the tasks that fetch a dataset's series and convert them, and return the last of them with their folders.

    The dataset lists segmentations (SEG or RTSTRUCT); the image of each is found by its reference. Where it lists images,
    too, these are the contrasts of the case: "gather" puts them beside their segmentation; else it is skipped, and
    their converter with it.
    """
    get_input = GetInputOperator(dag=dag)
    if before is not None:
        before >> get_input
    dicom = {"FEDPORTAL_DICOM": get_input.operator_out_dir}
    gather = FpTrainOperator(dag=dag, step="gather", name="gather", input_operator=get_input, env_vars=dicom)
    images = GetRefSeriesOperator(
        dag=dag,
        input_operator=get_input,
        search_policy="reference_uid",
        parallel_id="ct",
        trigger_rule="none_failed_min_one_success",
    )
    to_contrasts = DcmConverterOperator(dag=dag, input_operator=gather, output_format="nii.gz", parallel_id="contrasts")
    to_images = DcmConverterOperator(dag=dag, input_operator=images, output_format="nii.gz")
    to_masks = Mask2nifitiOperator(dag=dag, input_operator=get_input, dicom_operator=images)
    get_input >> gather >> [images, to_contrasts]
    get_input >> images >> [to_images, to_masks]
    folders = {
        **dicom,
        "FEDPORTAL_GATHERED": gather.operator_out_dir,
        "FEDPORTAL_CONTRASTS": to_contrasts.operator_out_dir,
        "FEDPORTAL_IMAGES": to_images.operator_out_dir,
        "FEDPORTAL_MASKS": to_masks.operator_out_dir,
    }
    return [to_images, to_masks, to_contrasts], folders


fp_train = workflow("fp-train", BY_THE_PORTAL, at_once=4)
# Conversion is done once: where the dataset lies ready, "look" is skipped (exit code 126), all that follows
# it with it, and "train" goes on because nothing has failed.
look = FpTrainOperator(dag=fp_train, step="look", name="look")
converted, folders = prepared(fp_train, before=look)
train = FpTrainOperator(
    dag=fp_train, step="train", name="train", computes=True, speaks=True, trigger_rule="none_failed", env_vars=folders
)
look >> train
converted >> train >> LocalWorkflowCleanerOperator(dag=fp_train, clean_workflow_dir=True)

fp_check = workflow("fp-check", BY_THE_PORTAL, at_once=1)
check = FpTrainOperator(dag=fp_check, step="check", name="check", speaks=True)
check >> LocalWorkflowCleanerOperator(dag=fp_check, clean_workflow_dir=True)

fp_offer = workflow("fp-offer", OFFER, at_once=1)
converted, folders = prepared(fp_offer)
offer = FpTrainOperator(dag=fp_offer, step="offer", name="offer", trigger_rule="none_failed", env_vars=folders)
converted >> offer >> LocalWorkflowCleanerOperator(dag=fp_offer, clean_workflow_dir=True)
