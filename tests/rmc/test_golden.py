"""The core against vectors recorded from the Sonnet original."""

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rmc
from tests.helpers import golden_vectors
from tests.helpers.golden_vectors import assert_near

UNROLLS = sorted(
    path.stem
    for path in golden_vectors.DIRECTORY.glob("*.npz")
    if not path.stem.startswith(("train_", "data_", "dnc_"))
    and not path.stem.startswith(("box_world", "mini_pacman"))
)


def unroll_plainly(core, inputs, state, lengths):
  """Steps with `hk.dynamic_unroll` alone, batch-major."""

  def step(inputs, state):
    inputs, t = inputs
    output, next_state = core(inputs, state)
    if lengths is None:
      return output, next_state
    running = (t < lengths)[:, None]  # [B, 1]
    output = jnp.where(running, output, jnp.zeros_like(output))
    return output, jnp.where(running[:, None], next_state, state)

  steps = jnp.arange(inputs.shape[1], dtype=jnp.int32)[None]
  steps = jnp.broadcast_to(steps, inputs.shape[:2])  # [B, T]
  return hk.dynamic_unroll(step, (inputs, steps), state, time_major=False)


def unroll_ours(core, inputs, state, lengths):
  return rmc.unroll(core, inputs, state, lengths=lengths, time_major=False)


def test_all_files_are_there():
  assert len(UNROLLS) == 2 * 21


@pytest.mark.parametrize(
    "unroll", [unroll_plainly, unroll_ours], ids=["dynamic_unroll", "rmc"]
)
@pytest.mark.parametrize("name", UNROLLS)
def test_unroll(name, unroll):
  golden = golden_vectors.load(name)
  arrays, config = golden.arrays, golden.config
  arguments = config["constructor"] | {
      "treat_input_as_matrix": config["treat_input_as_matrix"]
  }
  lengths = config["sequence_length"]
  with golden.precision():
    lengths = None if lengths is None else jnp.asarray(lengths, jnp.int32)

    def loss_fn(inputs, state):
      core = rmc.RelationalMemory(**arguments)
      outputs, final_state = unroll(core, inputs, state, lengths)
      info = core.step(inputs[:, 0], state)[-1]
      loss = jnp.mean(outputs * arrays["output_cotangent"])
      return loss, (outputs, final_state, info)

    def own_start(inputs):
      core = rmc.RelationalMemory(**arguments)
      return core.initial_state(inputs.shape[0])

    params = rmc.sonnet.params_from_variables(golden.under("var"), **arguments)
    inputs, state = arrays["inputs"], arrays["initial_state"]
    if config["start"] == "initial_state":
      start = hk.transform(own_start).apply({}, None, inputs)
      np.testing.assert_array_equal(start, state)
      assert start.dtype == state.dtype

    apply = hk.without_apply_rng(hk.transform(loss_fn)).apply
    grad_fn = jax.value_and_grad(apply, argnums=(0, 1, 2), has_aux=True)
    (loss, aux), grads = jax.jit(grad_fn)(params, inputs, state)
    outputs, final_state, info = aux
    grads, grad_inputs, grad_state = grads

    atol = 1e-10 if golden.is_float64 else 1e-5
    assert outputs.dtype == final_state.dtype == inputs.dtype
    assert_near(loss, arrays["loss"], atol, "loss")
    assert_near(outputs, arrays["outputs"], atol, "outputs")
    assert_near(final_state, arrays["final_state"], atol, "final_state")
    for gate in ("input_gate", "forget_gate"):
      if gate in arrays:
        assert_near(getattr(info, gate), arrays[gate], atol, gate)
      else:
        assert arguments["gate_style"] is None
        assert getattr(info, gate) is None

    grads = {
        f"grad/{variable}": grad
        for variable, grad in rmc.sonnet.variables_from_params(
            grads, **arguments
        ).items()
    }
    assert set(grads) == {key for key in arrays if key.startswith("grad/")}
    grads |= {"grad_inputs": grad_inputs, "grad_initial_state": grad_state}
    for variable, grad in grads.items():
      assert_near(
          grad,
          arrays[variable],
          atol,
          variable,
          relative_to_largest=not golden.is_float64,
      )


@pytest.mark.parametrize(
    "name", golden_vectors.with_f64(["train_nth_farthest"])
)
def test_training_nth_farthest(name):
  golden = golden_vectors.load(name)
  arrays, config = golden.arrays, golden.config
  module = "sequence_classifier"

  def to_params(variables):
    """Names everything as our network does."""
    core = rmc.sonnet.params_from_variables(variables, **config["core"])
    params = {f"{module}/~/{name}": value for name, value in core.items()}
    for i in range(len(config["final_mlp"])):
      params[f"{module}/~/mlp/~/linear_{i}"] = {
          key: variables[f"mlp/linear_{i}/{key}"] for key in "wb"
      }
    params[f"{module}/~/logits"] = {
        key: variables[f"sequence_model/linear/{key}"] for key in "wb"
    }
    return params

  def network(inputs):
    return rmc.SequenceClassifier(
        lambda: rmc.RelationalMemory(**config["core"]),
        config["target_size"],
        config["final_mlp"],
    )(jnp.swapaxes(inputs, 0, 1))

  with golden.precision():
    apply = hk.without_apply_rng(hk.transform(network)).apply

    def loss_fn(params, inputs, labels):
      logits = apply(params, inputs)
      losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
      return jnp.mean(losses), logits

    # In float64 too TensorFlow rounded its hyper-parameters to float32.
    learning_rate, beta1, beta2, epsilon = (
        float(np.float32(config["optimizer"][key]))
        for key in ("lr", "beta1", "beta2", "epsilon_hat")
    )
    optimizer = golden_vectors.tensorflow_adam(
        learning_rate, beta1, beta2, epsilon
    )

    # As users compile, whatever other tests do.
    optimized = {"xla_backend_optimization_level": 3}

    @functools.partial(jax.jit, compiler_options=optimized)
    def update(params, opt_state, inputs, labels):
      (loss, logits), grads = jax.value_and_grad(loss_fn, has_aux=True)(
          params, inputs, labels
      )
      updates, opt_state = optimizer.update(grads, opt_state)
      params = optax.apply_updates(params, updates)
      return params, opt_state, loss, logits, grads

    loss_atol = 1e-7 if golden.is_float64 else 1e-5
    params_atol = 1e-6 if golden.is_float64 else 1e-5
    params = to_params(golden.under("var"))
    opt_state = optimizer.init(params)
    inputs = arrays["inputs"]
    labels = arrays["labels"].astype(np.int32)
    for t in range(config["train_steps"]):
      params, opt_state, loss, logits, grads = update(
          params, opt_state, inputs[t], labels[t]
      )
      assert_near(loss, arrays["losses"][t], loss_atol, f"loss {t}")
      assert_near(logits, arrays["logits"][t], loss_atol, f"logits {t}")
      if t == 0:
        expected = to_params(golden.under("grad"))
        for (path, grad), value in zip(
            jax.tree.leaves_with_path(grads),
            jax.tree.leaves(expected),
            strict=True,
        ):
          assert_near(grad, value, 1e-5, str(path), relative_to_largest=True)
      if t + 1 in (1, 5):
        variables = golden.under(f"var_after{t + 1}")
        if not golden.is_float64:
          variables = {
              key: _masked(key, value, config["core"])
              for key, value in variables.items()
          }
        expected = to_params(variables)
        assert set(params) == set(expected)
        for bundle, values in expected.items():
          for key, value in values.items():
            kept = ~np.isnan(value)
            assert_near(
                np.asarray(params[bundle][key])[kept],
                value[kept],
                params_atol,
                f"{bundle}/{key} after {t + 1}",
            )
    last_loss, _ = loss_fn(params, inputs[-1], labels[-1])
    assert_near(last_loss, arrays["loss_after_last_step"], loss_atol, "last")


def _masked(name, value, core):
  """Marks with NaN the entries whose gradient is rounding noise."""
  kept = golden_vectors.without_noise(name, np.arange(value.size), core)
  masked = np.full(value.size, np.nan, value.dtype)
  masked[kept.ravel()] = value.ravel()[kept.ravel()]
  return masked.reshape(value.shape)
