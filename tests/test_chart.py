"""notebooks/chart.py: the picture tells what the text tells."""

import xml.etree.ElementTree as tree

import chart

STEPS = [(1.0, "db-0", None, "starting"), (3.0, "db-0", "starting", "ready"), (4.0, "old", "ready", "terminating"),
         (5.0, "old", "terminating", "gone")]  # fmt: skip


def bars(svg):
    """The bars' beginnings and lengths in seconds, of a recording of ten seconds."""
    shapes = [shape.attrib for shape in tree.fromstring(svg.data) if shape.tag.endswith("rect")][1:]
    scale = chart.WIDTH / 10
    return [
        ((float(each["x"]) - chart.LEFT) / scale, float(each["width"]) / scale, each["fill"])
        for each in shapes
        if each["width"] != "16"  # the legend
    ]


def test_every_state_has_a_bar_as_long_as_it_lasted():
    shade = {state: shade for state, (shade, _) in chart.SHADES.items()}
    assert sorted(bars(chart.timeline(STEPS, 10.0))) == [
        (0, 4, shade["ready"]),  # it was ready before the recording began
        (1, 2, shade["starting"]),
        (3, 7, shade["ready"]),
        (4, 1, shade["terminating"]),
    ]


def test_it_can_be_heard_as_well():
    (title,) = [each.text for each in tree.fromstring(chart.timeline(STEPS, 10.0).data) if each.tag.endswith("title")]
    assert title == "db-0 starting; db-0 ready; old terminating; old gone"


def test_a_recording_of_nothing_is_a_picture_too():
    assert bars(chart.timeline([], 0.0)) == []
