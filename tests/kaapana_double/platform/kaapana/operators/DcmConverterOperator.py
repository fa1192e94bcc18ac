from kaapana.operators.KaapanaBaseOperator import FromPacs


class DcmConverterOperator(FromPacs):
    def __init__(self, dag, output_format="nrrd", **kwargs):
        super().__init__(dag=dag, name="dcm-converter", **kwargs)
        self.output_format = output_format
