"""The files of figures."""

import contextlib

import pytest

from rmc import training
from tests.helpers.tiny_training import events_expected, events_of, records_of

RECORDS = [
    {"step": 10, "wall_seconds": 1.0, "loss": 0.1 + 0.2},
    {"step": 20, "wall_seconds": 2.0, "loss": 1e-30, "eval_loss": 3},
    {"step": 30, "wall_seconds": 3.0, "loss": -2.5},
    {"step": 35, "wall_seconds": 3.5, "loss": 7.0, "final": True},
]


def write(workdir, records, step=0):
  with contextlib.closing(training.MetricsLog(workdir, step)) as log:
    for record in records:
      log.write(record)
    return log.records


def test_round_trip(tmp_path):
  assert training.read_metrics(tmp_path) == []
  write(tmp_path, RECORDS)
  assert training.read_metrics(tmp_path) == RECORDS
  assert events_of(tmp_path) == events_expected(records_of(tmp_path))


@pytest.mark.parametrize(
    "step,kept", [(0, 0), (9, 0), (10, 1), (29, 2), (30, 3), (35, 3), (50, 3)]
)
def test_opened_at_a_step_later_lines_are_gone(tmp_path, step, kept):
  """So is the final report, which a longer run does not have."""
  write(tmp_path, RECORDS)
  write(tmp_path, [], step)
  assert training.read_metrics(tmp_path) == RECORDS[:kept]
  assert events_of(tmp_path) == events_expected(records_of(tmp_path))


@pytest.mark.parametrize("cut", [1, 2, 20])
def test_a_line_that_was_cut_off_is_gone(tmp_path, cut):
  write(tmp_path, RECORDS[:3])
  path = tmp_path / "metrics.jsonl"
  text = path.read_text()
  path.write_text(text[:-cut])
  whole = 3 if cut == 1 else 2  # The first cut takes the end of line alone.
  assert training.read_metrics(tmp_path) == RECORDS[:whole]
  write(tmp_path, RECORDS[whole:3], step=RECORDS[whole - 1]["step"])
  assert path.read_text() == text
  assert events_of(tmp_path) == events_expected(records_of(tmp_path))


def test_each_report_is_there_when_write_returns(tmp_path):
  with contextlib.closing(training.MetricsLog(tmp_path, 0)) as log:
    for i, record in enumerate(RECORDS):
      log.write(record)
      assert training.read_metrics(tmp_path) == RECORDS[: i + 1]
      assert events_of(tmp_path) == events_expected(records_of(tmp_path))
