"""Figures of a run: a JSON line a report, and TensorBoard's event files."""

import json
import os
import pathlib
from typing import Any

import tensorboardX

_METRICS = "metrics.jsonl"


class MetricsLog:
  """Writes `metrics.jsonl` and TensorBoard's event files.

  Opened at the step of a checkpoint, it first drops every line past that step
  and writes the event files anew from the lines that are left. So a run that
  was killed leaves the files of one that was not.
  """

  def __init__(self, workdir: str | pathlib.Path, step: int):
    """Constructs a MetricsLog.

    Args:
      workdir: the run's directory.
      step: how many updates are done.
    """
    self._path = pathlib.Path(workdir) / _METRICS
    self.records = [
        record
        for record in read_metrics(workdir)
        if record["step"] <= step and not record.get("final")
    ]
    write_text(
        self._path, "".join(json.dumps(r) + "\n" for r in self.records)
    )
    for path in self._path.parent.glob("events.out.tfevents.*"):
      path.unlink()
    self._file = self._path.open("a", encoding="utf-8")
    self._board = tensorboardX.SummaryWriter(str(self._path.parent))
    for record in self.records:
      self._to_board(record)

  def write(self, record: dict[str, Any]):
    """Adds a report, which is in the file when this returns.

    Args:
      record: figures by name, among them `step` and `wall_seconds`. With
        `final`, the report stands outside the regular ones and is dropped if
        the run goes on.
    """
    self.records.append(record)
    self._file.write(json.dumps(record) + "\n")
    self._file.flush()
    self._to_board(record)

  def close(self):
    """Closes the files."""
    self._file.close()
    self._board.close()

  def _to_board(self, record: dict[str, Any]):
    for name, value in record.items():
      if name not in ("step", "final"):
        self._board.add_scalar(name, value, record["step"])


def read_metrics(workdir: str | pathlib.Path) -> list[dict[str, Any]]:
  """Returns a run's reports; a line that was cut off ends them."""
  path = pathlib.Path(workdir) / _METRICS
  records = []
  if path.exists():
    for line in path.read_text(encoding="utf-8").splitlines():
      try:
        records.append(json.loads(line))
      except json.JSONDecodeError:
        break
  return records


def write_text(path: pathlib.Path, text: str):
  """Writes a file so that it is never seen half written."""
  beside = path.with_name(path.name + ".tmp")
  beside.write_text(text, encoding="utf-8")
  os.replace(beside, path)
