"""Metrics of a run: a JSON line a report, and TensorBoard's event files."""

import json
import os
import pathlib
import socket
import time
from typing import Any

from tensorboardX.proto import event_pb2, summary_pb2
from tensorboardX.record_writer import RecordWriter

_METRICS = "metrics.jsonl"


class MetricsLog:
  """Writes `metrics.jsonl` and TensorBoard's event files.

  Opened at the step of a checkpoint, it first drops every line past that step
  and writes the event files anew from the lines that are left. So a run that
  was killed leaves the files of one that was not.

  Both files are written by `write` itself. (`tensorboardX.SummaryWriter` leaves
  the event file to a thread, up to two minutes late; a full disk ends the
  thread, and then whoever reports waits for ever.)
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
    name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
    self._events = RecordWriter(str(self._path.parent / name))
    self._add_event(file_version="brain.Event:2")
    for record in self.records:
      self._add_scalars(record)
    self._events.flush()

  def write(self, record: dict[str, Any]):
    """Adds a report, which is in both files when this returns.

    Args:
      record: metrics by name, among them `step` and `wall_seconds`. With
        `final`, the report stands outside the regular ones and is dropped if
        the run goes on.

    Raises:
      OSError: if a file cannot be written.
    """
    self.records.append(record)
    self._file.write(json.dumps(record) + "\n")
    self._file.flush()
    self._add_scalars(record)
    self._events.flush()

  def close(self):
    """Closes the files."""
    try:
      self._file.close()
    finally:
      self._events.close()

  def _add_scalars(self, record: dict[str, Any]):
    values = [
        summary_pb2.Summary.Value(tag=name, simple_value=value)
        for name, value in record.items()
        if name not in ("step", "final")
    ]
    summary = summary_pb2.Summary(value=values)
    self._add_event(step=record["step"], summary=summary)

  def _add_event(self, **fields: Any):
    event = event_pb2.Event(wall_time=time.time(), **fields)
    self._events.write(event.SerializeToString())


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
