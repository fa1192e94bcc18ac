from kaapana.operators.KaapanaBaseOperator import FromPacs


class GetInputOperator(FromPacs):
    def __init__(self, dag, **kwargs):
        super().__init__(dag=dag, name="get-input", **kwargs)
