"""Weights: a network's parameters and facts about them, in one small file."""

from collections.abc import Mapping
import hashlib
import json
import pathlib

import haiku as hk
import numpy as np
import safetensors
import safetensors.numpy

from rmc.training.checkpoint import first_line

_DIGEST = "blake2b"


class WeightsError(Exception):
  """A file's weights cannot be read."""


def save_weights(
    path: str | pathlib.Path,
    params: hk.Params,
    metadata: Mapping[str, str],
):
  """Writes parameters and what is known of them.

  The format is that of the package safetensors. An array is named by its
  module and its own name, as in `relational_memory/~/qkv_0/w`. A digest of it
  all is among the metadata, so that a damaged file is found.

  Args:
    path: of the file. It is written beside first, so that it is never half
      there.
    params: Haiku's, of NumPy or JAX arrays.
    metadata: strings by name.

  Raises:
    OSError: if the file cannot be written.
  """
  arrays = {
      f"{module}/{name}": np.asarray(x, order="C")
      for module, bundle in params.items()
      for name, x in bundle.items()
  }
  metadata = dict(metadata)
  metadata[_DIGEST] = _digest(arrays, metadata)
  path = pathlib.Path(path)
  beside = path.with_name(f".{path.name}.part")
  try:
    beside.write_bytes(safetensors.numpy.save(arrays, metadata))
    beside.replace(path)
  finally:
    beside.unlink(missing_ok=True)


def load_weights(
    path: str | pathlib.Path,
) -> tuple[hk.Params, dict[str, str]]:
  """Reads what `save_weights` wrote.

  Args:
    path: of the file.

  Returns:
    The parameters, as NumPy arrays, and the metadata.

  Raises:
    WeightsError: if it cannot be read, is damaged, or is not of that kind.
  """
  try:
    with safetensors.safe_open(path, framework="numpy") as file:
      metadata = dict(file.metadata() or {})
      arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
  except OSError as error:
    reason = error.strerror or str(error)
    raise WeightsError(f"{path} cannot be read: {reason}") from error
  except (safetensors.SafetensorError, ValueError) as error:
    raise WeightsError(
        f"{path} is no whole safetensors file: {first_line(error)}"
    ) from error
  found = metadata.pop(_DIGEST, None)
  if found is None:
    raise WeightsError(f"{path} was not written by save_weights: no {_DIGEST}")
  if found != _digest(arrays, metadata):
    raise WeightsError(f"{path} is damaged: it is not as it was written")
  params = {}
  for name, x in arrays.items():
    module, _, name = name.rpartition("/")
    params.setdefault(module, {})[name] = x
  return params, metadata


def _digest(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]):
  """Returns a hash of names, types, shapes, contents and metadata."""
  digest = hashlib.blake2b(digest_size=16)
  digest.update(json.dumps(metadata, sort_keys=True).encode())
  for name, x in sorted(arrays.items()):
    digest.update(f"{name} {x.dtype} {x.shape}".encode())
    digest.update(x.tobytes())
  return digest.hexdigest()
