"""Files of weights: what is read is what was written, or an error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from rmc import training
from tests.helpers.tiny_training import assert_same_bits

METADATA = {"flags": "--seed=0\n--core=rmc\n", "step": "3", "é": "…"}


def make_params():
  rng = np.random.default_rng(0)
  return {
      "core": {"w": rng.normal(size=(2, 3)), "b": np.float32([0.0, -0.0, 1.5])},
      "core/~/norm": {"scale": np.float16(rng.normal(size=2))},
      "empty": {"x": np.zeros([0, 2], np.float32), "n": np.int32(7)},
  }


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
  training.save_weights(path, make_params(), METADATA)
  return path


def test_round_trip(written):
  params, metadata = training.load_weights(written)
  assert_same_bits(params, make_params())
  assert metadata == METADATA
  assert [path.name for path in written.parent.iterdir()] == [written.name]


def test_arrays_of_jax(tmp_path):
  path = tmp_path / "weights"
  params = {"a": {"w": jnp.arange(6.0).reshape(2, 3).T}}  # Not contiguous.
  training.save_weights(path, params, {})
  assert_same_bits(training.load_weights(path)[0], jax.device_get(params))


def test_any_flipped_bit_is_found(written, tmp_path):
  whole = written.read_bytes()
  path = tmp_path / "damaged"
  for at in range(len(whole)):
    for bit in range(8):
      damaged = bytearray(whole)
      damaged[at] ^= 1 << bit
      path.write_bytes(damaged)
      with pytest.raises(training.WeightsError) as caught:
        training.load_weights(path)
      assert str(caught.value).startswith(f"{path} ")
      assert "\n" not in str(caught.value)


def test_any_cut_is_found(written, tmp_path):
  whole = written.read_bytes()
  path = tmp_path / "damaged"
  for size in range(len(whole)):
    path.write_bytes(whole[:size])
    with pytest.raises(training.WeightsError):
      training.load_weights(path)
  path.write_bytes(whole + b"\0")
  with pytest.raises(training.WeightsError):
    training.load_weights(path)


def test_other_files(tmp_path):
  with pytest.raises(training.WeightsError, match="cannot be read: No such"):
    training.load_weights(tmp_path / "nowhere")
  with pytest.raises(training.WeightsError, match="cannot be read"):
    training.load_weights(tmp_path)
  path = tmp_path / "file"
  for data in (b"", b"--seed=0\n" * 9, b"\x89PNG\r\n\x1a\n" + bytes(99)):
    path.write_bytes(data)
    with pytest.raises(training.WeightsError, match="no whole safetensors"):
      training.load_weights(path)
  safetensors.numpy.save_file({"a/w": np.zeros(2)}, path)
  with pytest.raises(training.WeightsError, match="was not written by save_"):
    training.load_weights(path)


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path):
  path = tmp_path / "kept"
  training.save_weights(path, {"a": {"w": np.zeros(2)}}, {})
  before = path.read_bytes()
  with pytest.raises(OSError):
    training.save_weights(tmp_path / "no" / "x", {"a": {"w": np.ones(2)}}, {})
  assert path.read_bytes() == before
