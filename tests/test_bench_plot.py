"""Plots of the benchmark: what is drawn stands where its figures say."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from bench import plot

SVG = "{http://www.w3.org/2000/svg}"


def drawn(svg):
    root = ET.fromstring(svg)  # noqa: S314 - our own drawing
    return root, [text.text for text in root.iter(f"{SVG}text")]


def circles(root):
    return [(float(c.get("cx")), float(c.get("cy"))) for c in root.iter(f"{SVG}circle")]


def test_points_of_a_line_rise_with_their_values_and_every_name_is_in_the_legend():
    root, texts = drawn(plot.lines("t", "x", "y", {"p50": [(1, 1), (2, 5)], "p95": [(1, 2)]}))

    (x1, y1), (x2, y2), (x3, y3) = circles(root)
    assert x1 < x2
    assert x1 == x3
    assert y2 < y3 < y1, "upwards is less in SVG"
    assert {"t", "x", "y", "p50", "p95"} <= set(texts)


def test_a_logarithmic_axis_gives_every_factor_of_ten_the_same_height():
    series = {"one": [(1, 1), (2, 10), (3, 100), (4, 0)]}

    root, texts = drawn(plot.lines("t", "x", "y", series, log_y=True))

    (_, y1), (_, y2), (_, y3) = circles(root)
    assert y1 - y2 == pytest.approx(y2 - y3, abs=0.2)
    assert {"1", "10", "100"} <= set(texts)


def test_parts_of_a_bar_lie_on_each_other_and_their_sum_is_written_above():
    root, texts = drawn(plot.bars("t", "µs", {"a": {"payment": 300, "envoy": 100}, "b": {}}))

    payment, envoy = list(root.iter(f"{SVG}rect"))[1:3]
    assert float(payment.get("height")) == pytest.approx(3 * float(envoy.get("height")), rel=0.02)
    assert float(envoy.get("y")) + float(envoy.get("height")) == pytest.approx(
        float(payment.get("y")), abs=0.2
    )
    assert "400" in texts


def test_a_part_has_one_colour_in_every_bar():
    stacks = {"a": {"payment": 1, "envoy": 1}, "b": {"envoy": 1}}

    root, _ = drawn(plot.bars("t", "µs", stacks))

    bars = list(root.iter(f"{SVG}rect"))[1:4]
    assert bars[1].get("fill") == bars[2].get("fill") != bars[0].get("fill")


def test_names_cannot_break_out_of_the_drawing():
    _, texts = drawn(plot.lines("<b>&", "x", "y", {"</text>": [(1, 1)]}))

    assert "</text>" in texts


@pytest.mark.parametrize("series", [{}, {"one": []}, {"one": [(0, 0)]}])
@pytest.mark.parametrize("log_y", [True, False])
def test_nothing_to_draw_is_an_empty_plot(series, log_y):
    root, _ = drawn(plot.lines("t", "x", "y", series, log_y=log_y))

    assert root.tag == f"{SVG}svg"
