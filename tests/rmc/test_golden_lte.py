"""Learning to Execute against a training recorded from the original."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rmc
from tasks.learn_to_execute import LearnToExecute, score
from tests.helpers import golden_vectors, interpreter
from tests.helpers.golden_vectors import assert_near

MODULE = "seq2seq"


def to_params(variables, config):
  """Names the original's variables as our network does."""
  core = rmc.sonnet.params_from_variables(variables, **config["core"])
  params = {f"{MODULE}/~/{name}": value for name, value in core.items()}
  names = {
      f"mlp/linear_{i}": f"mlp/~/linear_{i}"
      for i in range(len(config["final_mlp"]))
  }
  names["sequence_model/linear"] = "logits"
  for theirs, ours in names.items():
    params[f"{MODULE}/~/{ours}"] = {
        key: variables[f"{theirs}/{key}"] for key in "wb"
    }
  return params


def assert_params_near(actual, variables, golden, atol, what, relative=False):
  """Compares parameters, but for entries whose gradient is rounding noise."""
  core = golden.config["core"]
  kept = {}
  for name, value in variables.items():
    indices = np.arange(value.size)
    if not golden.is_float64:
      indices = golden_vectors.without_noise(name, indices, core).ravel()
    mask = np.zeros(value.size, bool)
    mask[indices] = True
    kept[name] = mask.reshape(value.shape)
  kept = to_params(kept, golden.config)
  expected = to_params(variables, golden.config)
  assert set(actual) == set(expected)
  for module, bundle in expected.items():
    for key, value in bundle.items():
      assert actual[module][key].dtype == value.dtype
      mask = np.asarray(kept[module][key])
      assert_near(
          np.asarray(actual[module][key])[mask],
          np.asarray(value)[mask],
          atol,
          f"{module}/{key} {what}",
          relative_to_largest=relative,
      )


@pytest.mark.parametrize("name", golden_vectors.with_f64(["train_lte"]))
def test_training(name):
  golden = golden_vectors.load(name)
  arrays, config = golden.arrays, golden.config
  inputs, targets, input_lengths, target_lengths = (
      arrays[key].astype(np.int32)
      for key in ("inputs", "targets", "input_lengths", "target_lengths")
  )

  def network(inputs, targets):
    return rmc.Seq2Seq(
        lambda: rmc.RelationalMemory(**config["core"]),
        config["vocab_size"],
        config["final_mlp"],
    )(inputs, input_lengths, jnp.full_like(targets, -1), target_lengths)

  with golden.precision():
    apply = hk.without_apply_rng(hk.transform(network)).apply

    def loss_fn(params):
      logits = apply(params, inputs, targets)
      loss, correct, _ = score(logits, targets, target_lengths)
      return loss, (logits, correct)

    # In float64 too TensorFlow rounded its hyper-parameters to float32.
    optimizer = golden_vectors.tensorflow_adam(
        *(
            float(np.float32(config["optimizer"][key]))
            for key in ("lr", "beta1", "beta2", "epsilon_hat")
        )
    )

    @jax.jit
    def update(params, opt_state):
      (loss, aux), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
      updates, opt_state = optimizer.update(grads, opt_state)
      return optax.apply_updates(params, updates), opt_state, loss, aux, grads

    def token_accuracy(correct):
      return float(np.sum(correct)) / np.sum(target_lengths)

    loss_atol = 1e-7 if golden.is_float64 else 1e-5
    logits_atol = 1e-7 if golden.is_float64 else 2e-5
    params = to_params(golden.under("var"), config)
    opt_state = optimizer.init(params)
    for t in range(config["train_steps"]):
      params, opt_state, loss, (logits, correct), grads = update(
          params, opt_state
      )
      assert_near(loss, arrays["losses"][t], loss_atol, f"loss {t}")
      assert_near(logits, arrays["logits"][t], logits_atol, f"logits {t}")
      np.testing.assert_allclose(
          token_accuracy(correct), arrays["token_accuracy"][t], rtol=1e-6
      )
      if t == 0:
        atol = 1e-10 if golden.is_float64 else 1e-5
        relative = not golden.is_float64
        assert_params_near(
            grads, golden.under("grad"), golden, atol, "gradient", relative
        )
      if t + 1 in (1, 5):
        atol = 1e-6 if golden.is_float64 else 1e-5
        variables = golden.under(f"var_after{t + 1}")
        assert_params_near(params, variables, golden, atol, f"after {t + 1}")
    loss, (_, correct) = jax.jit(loss_fn)(params)
    assert_near(loss, arrays["loss_after_last_step"], loss_atol, "last")
    np.testing.assert_allclose(
        token_accuracy(correct),
        arrays["token_accuracy_after_last_step"],
        rtol=1e-6,
    )


def test_recorded_tokens():
  """The batch of this training is what we make of its text."""
  golden = golden_vectors.load("train_lte")
  task = LearnToExecute("alg-ctrl", length=2, nesting=2)
  programs = [text.rstrip(".") for text in golden.config["readable"]]
  answers = [interpreter.run("alg-ctrl", p).answer for p in programs]
  batch = task.encode(programs, answers)
  arrays = golden.arrays
  np.testing.assert_array_equal(batch.inputs.T, arrays["inputs"])
  np.testing.assert_array_equal(batch.targets.T, arrays["targets"])
  np.testing.assert_array_equal(batch.input_lengths, arrays["input_lengths"])
  np.testing.assert_array_equal(batch.target_lengths, arrays["target_lengths"])
