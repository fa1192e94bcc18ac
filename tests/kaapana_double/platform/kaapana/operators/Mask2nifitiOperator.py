from kaapana.operators.KaapanaBaseOperator import FromPacs


class Mask2nifitiOperator(FromPacs):
    def __init__(self, dag, dicom_operator=None, **kwargs):
        super().__init__(dag=dag, name="mask2nifti", **kwargs)
        self.dicom_operator = dicom_operator
