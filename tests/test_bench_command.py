"""`tallystick bench`: the table of figures."""

from __future__ import annotations

import argparse

import pytest

from bench import command


@pytest.fixture
def figures(monkeypatch):
    """Two figures that measure nothing; `asked` is what they were asked."""
    asked = []
    codes = {"one": 0, "two": 0}

    def a_figure(name, **facts):
        def run(options):
            asked.append((name, options.profile, options.json, getattr(options, "plots", None)))
            return codes[name]

        options = command._add_plots if facts.pop("plots", False) else lambda _: None
        return command._Figure(name, options, run, **facts)

    table = {"one": a_figure("one", plots=True), "two": a_figure("two", profiles=("mysql",))}
    monkeypatch.setattr(command, "_FIGURES", table)
    return argparse.Namespace(asked=asked, codes=codes)


def run(*arguments):
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    options = parser.parse_args(["bench", *map(str, arguments)])
    return options.run(options)


def test_all_measures_every_figure_and_says_where_reports_are(figures, tmp_path, capsys):
    assert run("all", "--out", tmp_path) == 0

    assert figures.asked == [
        ("one", "mysql", tmp_path / "one.json", tmp_path),
        ("two", "mysql", tmp_path / "two.json", None),
    ]
    assert str(tmp_path) in capsys.readouterr().out
    assert (tmp_path / "figures.md").read_text() == "\n", "there are no reports of these"


def test_books_that_do_not_match_fail_all_and_the_others_are_measured_all_the_same(
    figures, tmp_path, capsys
):
    figures.codes["one"] = 1

    assert run("all", "--out", tmp_path) == 1

    assert [name for name, *_ in figures.asked] == ["one", "two"]
    assert "the books of one do not match" in capsys.readouterr().out


def test_a_profile_a_figure_cannot_be_measured_on_leaves_it_out(figures, tmp_path):
    assert run("all", "--profile", "dev", "--out", tmp_path) == 0

    assert [name for name, *_ in figures.asked] == ["one"]


def test_a_profile_that_one_figure_has_not_is_refused(figures, capsys):
    with pytest.raises(SystemExit):
        run("two", "--profile", "dev")

    assert "'dev'" in capsys.readouterr().err
