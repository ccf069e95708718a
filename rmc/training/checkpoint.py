"""Checkpoints: orbax behind one small module."""

from collections.abc import Sequence
import hashlib
import json
import pathlib
from typing import Any

from absl import logging
import haiku as hk
import jax
import numpy as np
import orbax.checkpoint as ocp

from rmc.training.update import TrainState

_DIRECTORY = "checkpoints"
_MAX_TO_KEEP = 3


class CheckpointError(Exception):
  """A directory's checkpoints cannot be read, or are not this run's to use."""


class Checkpointer:
  """Writes and reads checkpoints in `<workdir>/checkpoints`.

  A checkpoint holds NumPy arrays of this process, `params` apart from the
  rest, and a JSON object of the caller's. orbax writes it beside and renames
  it when it is whole. Digests of the arrays and of the JSON object are stored
  too, since a damaged file can be read without an error.
  """

  def __init__(self, workdir: str | pathlib.Path):
    """Constructs a Checkpointer.

    Args:
      workdir: the run's directory, which no other run may be using.

    Raises:
      CheckpointError: if orbax would lose checkpoints there.
    """
    self._directory = pathlib.Path(workdir).absolute() / _DIRECTORY
    # It looks with glob for what it has written, and only warns if that fails.
    if any(mark in str(self._directory) for mark in ("[", "\\", "**")):
      raise CheckpointError(
          r"a working directory must have no [, \ or ** in its path, got "
          f"{pathlib.Path(workdir).absolute()}"
      )
    self._directory.mkdir(parents=True, exist_ok=True)
    self._manager = ocp.CheckpointManager(
        self._directory,
        options=ocp.CheckpointManagerOptions(
            max_to_keep=_MAX_TO_KEEP,
            create=False,
            enable_async_checkpointing=False,
            cleanup_tmp_directories=True,
            # Only the process that writes may be here, so none is waited for.
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=jax.process_index(),
                active_processes={jax.process_index()},
            ),
        ),
    )

  def steps(self) -> list[int]:
    """Returns the steps that there are checkpoints of, in order."""
    return sorted(self._manager.all_steps())

  def save(self, state: TrainState, meta: dict[str, Any]):
    """Writes a checkpoint of a state of NumPy arrays, unless it is there.

    Args:
      state: what `DataParallel.fetch_state` returned.
      meta: anything that JSON can hold.

    Raises:
      OSError: if it could not be written. Earlier ones are left as they are.
    """
    step = int(state.step)
    steps = self.steps()
    if step in steps:
      return
    params, rest = state.params, _numbered(state._replace(params=None))
    meta = _signed(meta, _digest(params), _digest(rest))
    try:
      self._manager.save(
          step,
          args=ocp.args.Composite(
              params=ocp.args.StandardSave(params),
              rest=ocp.args.StandardSave(rest),
              meta=ocp.args.JsonSave(meta),
          ),
      )
    except Exception as error:  # orbax promises no type for a full disk.
      raise OSError(
          f"the checkpoint of step {step} could not be written: "
          f"{first_line(error)}; good ones are kept of steps {steps}"
      ) from error

  def restore(self, like: TrainState) -> tuple[TrainState, dict] | None:
    """Reads the newest checkpoint that is whole.

    Args:
      like: a state with the shapes and types to expect.

    Returns:
      The state, as NumPy arrays, and the JSON object saved with it; None if
      there is no checkpoint at all. Newer checkpoints that cannot be read are
      named in a warning and deleted.

    Raises:
      CheckpointError: if there are checkpoints and none can be read.
    """
    steps = self.steps()[::-1]
    failures = []
    for step in steps:
      try:
        state, meta = self._restore(step, like)
      except Exception as error:  # orbax promises no type for damaged files.
        failures.append(f"step {step}: {first_line(error)}")
        continue
      for failure, damaged in zip(failures, steps, strict=False):
        logging.warning("damaged checkpoint left out, %s", failure)
        self._manager.delete(damaged)
      return state, meta
    if failures:
      raise CheckpointError(
          f"no checkpoint in {self._directory} can be read: "
          + "; ".join(failures)
      )
    return None

  def meta(self) -> dict | None:
    """Returns the newest JSON object that can be read, or None."""
    return _newest_meta(self._directory, self.steps())

  def close(self):
    """Releases what orbax holds."""
    self._manager.close()

  def _restore(self, step: int, like: TrainState) -> tuple[TrainState, dict]:
    directory = self._directory / str(step)
    signed = _read_signed(directory)
    params = _read(directory / "params")
    rest = _read(directory / "rest")
    _check_digest("params", params, signed)
    _check_digest("rest", rest, signed)
    _check(params, like.params)
    expected = like._replace(params=None)
    _check(rest, _numbered(expected))
    leaves = [rest[name] for name in sorted(rest)]
    state = jax.tree.unflatten(jax.tree.structure(expected), leaves)
    return state._replace(params=params), signed["meta"]


def latest_step(workdir: str | pathlib.Path) -> int:
  """Returns the step of a run's newest checkpoint.

  Args:
    workdir: the run's directory.

  Raises:
    CheckpointError: if there is none.
  """
  return int(_find(workdir, None).name)


def recorded_config(workdir: str | pathlib.Path) -> dict[str, Any] | None:
  """Returns the configuration that a run's newest checkpoint records.

  Args:
    workdir: the run's directory.

  Returns:
    The `config` of `training.train`; None if there is no checkpoint, or none
    that can be read.
  """
  directory = pathlib.Path(workdir).absolute() / _DIRECTORY
  meta = _newest_meta(directory, _steps(directory))
  return None if meta is None else meta["config"]


def load_params(
    workdir: str | pathlib.Path, step: int | None = None
) -> hk.Params:
  """Returns the parameters of a finished or running run.

  Args:
    workdir: the run's directory.
    step: which checkpoint; None for the newest.

  Returns:
    Parameters as NumPy arrays.

  Raises:
    CheckpointError: if there is no such checkpoint, or it cannot be read.
  """
  directory = _find(workdir, step)
  try:
    signed = _read_signed(directory)
    params = _read(directory / "params")
    _check_digest("params", params, signed)
  except Exception as error:  # orbax promises no type for damaged files.
    raise CheckpointError(
        f"the checkpoint of step {directory.name} in {directory.parent} cannot "
        f"be read: {first_line(error)}"
    ) from error
  return params


def _find(workdir: str | pathlib.Path, step: int | None) -> pathlib.Path:
  """Returns the directory of a checkpoint, of the newest for None."""
  directory = pathlib.Path(workdir).absolute() / _DIRECTORY
  steps = _steps(directory)
  if not steps or step not in (None, *steps):
    which = "" if step is None else f" of step {step}"
    raise CheckpointError(
        f"{directory} has no checkpoint{which}; the steps there are {steps}."
    )
  return directory / str(steps[-1] if step is None else step)


def _steps(directory: pathlib.Path) -> list[int]:
  """Returns the steps of the checkpoints in a directory, in order."""
  if not directory.is_dir():
    return []
  return sorted(int(d.name) for d in directory.iterdir() if d.name.isdigit())


def _newest_meta(
    directory: pathlib.Path, steps: Sequence[int]
) -> dict[str, Any] | None:
  """Returns the newest JSON object that can be read, or None."""
  for step in reversed(steps):
    try:
      return _read_signed(directory / str(step))["meta"]
    except (OSError, ValueError):
      continue
  return None


def _read(directory: pathlib.Path) -> Any:
  """Reads a nest of dicts of arrays, as NumPy arrays."""
  handler = ocp.PyTreeCheckpointHandler()
  names = handler.metadata(directory).tree
  as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(np.ndarray), names)
  return handler.restore(
      directory, args=ocp.args.PyTreeRestore(restore_args=as_numpy)
  )


def _signed(meta: dict[str, Any], params: str, rest: str) -> dict[str, Any]:
  """Returns a JSON object with the digests of all parts of a checkpoint."""
  meta = json.loads(json.dumps(meta))
  signed = {"meta": meta, "params": params, "rest": rest}
  text = json.dumps(signed, sort_keys=True).encode()
  return signed | {"digest": hashlib.blake2b(text, digest_size=16).hexdigest()}


def _read_signed(directory: pathlib.Path) -> dict[str, Any]:
  """Reads what `_signed` made; a ValueError if it is not that."""
  found = json.loads((directory / "meta" / "metadata").read_text("utf-8"))
  try:
    expected = _signed(found["meta"], found["params"], found["rest"])
  except (KeyError, TypeError):
    expected = None
  if found != expected:
    raise ValueError("its metadata are not as they were written")
  return found


def _check_digest(name: str, tree: Any, signed: dict[str, Any]):
  if _digest(tree) != signed[name]:
    raise ValueError(f"its {name} are not as they were written")


def first_line(error: Exception) -> str:
  """Returns an error's type and the first line of what it says."""
  line = (str(error).strip().splitlines() or [""])[0]
  return f"{type(error).__name__}: {line}"[:300]


def _numbered(tree: Any) -> dict[str, np.ndarray]:
  return {f"{i:06d}": leaf for i, leaf in enumerate(jax.tree.leaves(tree))}


def _digest(tree: Any) -> str:
  """Returns a hash of the arrays' paths, types, shapes and contents."""
  digest = hashlib.blake2b(digest_size=16)
  for path, leaf in jax.tree.leaves_with_path(tree):
    leaf = np.ascontiguousarray(leaf)
    head = f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}"
    digest.update(head.encode())
    digest.update(leaf.tobytes())
  return digest.hexdigest()


def _check(found: Any, expected: Any):
  """Raises a ValueError that names the first difference of shape or type."""

  def described(tree):
    return {
        jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree.leaves_with_path(tree)
    }

  found, expected = described(found), described(expected)
  for name in sorted(found.keys() | expected.keys()):
    if found.get(name) != expected.get(name):
      raise ValueError(
          f"{name} is {found.get(name)}, expected {expected.get(name)}"
      )
