import shutil

from kaapana.operators.KaapanaBaseOperator import KaapanaBaseOperator


class LocalWorkflowCleanerOperator(KaapanaBaseOperator):
    def __init__(self, dag, clean_workflow_dir=True, **kwargs):
        super().__init__(dag=dag, name="workflow-cleaner", **kwargs)
        self.clean_workflow_dir = clean_workflow_dir

    def run_pod(self, folder, run):
        if self.clean_workflow_dir:
            shutil.rmtree(folder)
        return 0
