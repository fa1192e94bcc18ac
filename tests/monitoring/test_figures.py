from datetime import UTC, datetime, timedelta

import pytest

from fedportal.monitoring.figures import (
    CHARTS,
    Row,
    as_json,
    collect,
    figure,
    page_data,
    position,
    regions_of,
    sparkline,
    styles,
)
from tests.factories import make_plan

START = datetime(2026, 1, 1, tzinfo=UTC)


def row(**fields):
    values = {
        "id": 1, "site": "mainz", "attempt": 1, "round": 1, "phase": "train", "name": "loss", "region": "", "step": 1,
        "progress": 0.1, "value": 0.5, "at": START + timedelta(seconds=3),
    }  # fmt: skip
    return Row(**{**values, **fields})


@pytest.mark.parametrize(
    ("phase", "progress", "where"),
    [("incoming", 0.0, 4), ("global", 0.0, 4), ("train", 0.25, 4.25), ("train", 1.0, 5), ("local", 1.0, 5)],
)
def test_a_number_stands_where_its_model_belongs(phase, progress, where):
    assert position(row(round=5, phase=phase, progress=progress)) == where


def test_rows_become_series_in_the_order_of_their_steps():
    rows = [row(step=2, progress=0.2, value=0.4), row(step=1), row(round=2, step=1), row(site="ulm")]
    series = collect(rows, start=START)
    assert [(s["site"], [(p[1], p[2]) for p in s["points"]]) for s in series] == [
        ("mainz", [(1, 1), (1, 2), (2, 1)]),
        ("ulm", [(1, 1)]),
    ]
    assert series[0]["points"][0] == [1, 1, 1, 0.1, 3.0, 0.5]


@pytest.mark.parametrize("turned", [False, True])
def test_a_retry_replaces_what_the_older_attempt_measured_in_that_round_only(turned):
    rows = [row(step=1), row(step=2), row(attempt=2, step=1, value=0.9), row(round=2, step=1), row(site="ulm", step=5)]
    series = collect(reversed(rows) if turned else rows, start=START)
    points = {s["site"]: s["points"] for s in series}
    assert [(p[0], p[1], p[2], p[5]) for p in points["mainz"]] == [(2, 1, 1, 0.9), (1, 2, 1, 0.5)]
    assert len(points["ulm"]) == 1


def test_a_retry_also_replaces_the_measurements_of_other_phases():
    rows = [row(phase="incoming", name="dice", region="mean", step=0), row(attempt=2)]
    assert [s["phase"] for s in collect(rows, start=START)] == ["train"]


def test_an_undefined_value_stays_undefined_and_not_zero():
    assert collect([row(value=None)], start=START)[0]["points"][0][5] is None


def test_fifty_sites_look_different_and_each_of_the_first_seven_has_its_own_dash():
    looks = styles((f"s{i}", f"Site {i}") for i in range(50))
    assert len({(look.hue, look.dash) for look in looks}) == 50
    assert len({look.strokes for look in looks[:7]}) == 7
    assert {look.hue for look in looks} <= set(range(1, 9))


def test_a_figure_has_the_global_model_as_a_thick_solid_line_and_hides_what_is_not_the_mean():
    rows = [
        row(name="dice", phase="incoming", region="mean", step=0),
        row(name="dice", phase="incoming", region="WT", step=0),
        row(name="dice", phase="global", region="mean", site="", attempt=0, step=0),
        row(),
    ]
    drawn = figure(CHARTS[0], collect(rows, start=START), styles([("mainz", "Mainz")]), title="An experiment")
    lines = {trace["name"]: trace for trace in drawn["data"]}
    assert len(lines) == 3
    whole = next(trace for name, trace in lines.items() if name.startswith("Global model"))
    assert whole["line"]["dash"] == "solid"
    assert (
        whole["line"]["width"] > 2 * lines["Mainz · mean · global model on the site's held-out cases"]["line"]["width"]
    )
    assert lines["Mainz · WT · global model on the site's held-out cases"]["visible"] == "legendonly"
    assert drawn["layout"]["yaxis"]["range"] == [0, 1]


def test_a_figure_is_one_that_plotly_accepts():
    go = pytest.importorskip("plotly.graph_objects")
    series = collect([row(), row(name="hd95", phase="incoming", region="mean", value=None)], start=START)
    for chart in CHARTS:
        go.Figure(figure(chart, series, styles([("mainz", "Mainz")]), title="x"))


def test_regions_come_from_the_plan_with_the_mean_first():
    assert regions_of(make_plan().to_json()) == ["mean", "WT", "TC", "ET"]
    assert regions_of({}) == ["mean"]


def test_a_sparkline_needs_two_values_and_stays_in_its_box():
    assert sparkline([0.5]) == ""
    assert sparkline([0, 1, 2]) == "0.0,26.0 60.0,2.0 120.0,2.0"


def test_the_page_gets_only_what_json_can_say():
    data = page_data(collect([row()], start=None), styles([("mainz", "Mainz")]), ["mean"], cursor="0.1")
    assert '"cursor":"0.1"' in as_json(data)
    with pytest.raises(ValueError, match="JSON"):
        as_json({"value": float("nan")})
