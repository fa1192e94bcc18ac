from kaapana.operators.KaapanaBaseOperator import FromPacs


class GetRefSeriesOperator(FromPacs):
    def __init__(self, dag, search_policy="reference_uid", **kwargs):
        super().__init__(dag=dag, name="get-ref-series", **kwargs)
        self.search_policy = search_policy
