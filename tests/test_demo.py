"""What the demo tells a person; that it works is shown end to end."""

import json

import pytest

from utils import demo


@pytest.mark.parametrize(
    ("score", "expected"),
    [(0.0, "░░░░░░░   0%"), (0.5, "████░░░  50%"), (1.0, "███████ 100%")],
)
def test_a_probability_is_a_bar_of_one_width(score, expected):
    """Columns line up whatever the probability."""
    assert demo._bar(score).plain == expected


def test_a_likely_delay_is_red():
    """The colour says what to look at first."""
    colours = [demo._bar(score).spans[-1].style for score in (0.1, 0.3, 0.7)]
    assert colours == ["green", "yellow", "red"]


def test_the_log_of_a_failed_task_is_told_without_its_json(tmp_path):
    """Messages and exceptions are kept, marks of folding and broken lines are not."""
    log = tmp_path / "attempt=1.log"
    error = {"exc_type": "AirflowFailException", "exc_value": "no such table"}
    lines = [{"event": "::group::x"}, {"event": "Task failed", "error_detail": [error]}]
    log.write_text("\n".join([*map(json.dumps, lines), '{"event": "cut o']))
    assert demo._log_lines(log) == ["Task failed", "AirflowFailException: no such table"]


@pytest.mark.parametrize("words", [["--port", "x"], ["--onse"], ["now"]])
def test_wrong_arguments_are_wrong_usage(words, capsys):
    """Exit 2 before anything starts, and the message names the command as it was called."""
    with pytest.raises(SystemExit) as end:
        demo.main(words)
    assert end.value.code == 2
    assert "./run demo: error:" in capsys.readouterr().err


def test_progress_is_plain_lines_where_there_is_no_terminal(capsys):
    """A log of CI holds no spinner and no colour."""
    screen = demo.Screen()
    with screen.step("Loading") as tell:
        tell("half")
    assert capsys.readouterr().out == "... Loading\n    half\nok  Loading  0 s\n"
