"""Sonnet's variables to parameters and back, out of whole checkpoints."""

import haiku as hk
import jax
import numpy as np
import pytest

import rmc
from tests.helpers.small_cores import BATCH, CASES, Case, case

ROUND_TRIPS = {name: CASES[name] for name in CASES if name != "heads"} | {
    "blocks3": case(5, num_heads=2, num_blocks=3),
    "blocks3_matrix": case(
        4, 5, num_blocks=3, treat_input_as_matrix=True, key_size=2
    ),
    "named": case(5, name="memory"),
}
SMALL = case(5, num_heads=2)
# By hand, of SMALL: what Sonnet would have made of it, in its order.
SMALL_SHAPES = {
    "linear/w": (5, 8),
    "linear/b": (8,),
    "linear_1/w": (8, 24),
    "linear_1/b": (24,),
    "layer_norm/gamma": (24,),
    "layer_norm/beta": (24,),
    "layer_norm_1/gamma": (8,),
    "layer_norm_1/beta": (8,),
    "mlp/linear_0/w": (8, 8),
    "mlp/linear_0/b": (8,),
    "mlp/linear_1/w": (8, 8),
    "mlp/linear_1/b": (8,),
    "layer_norm_2/gamma": (8,),
    "layer_norm_2/beta": (8,),
    "linear_2/w": (8, 16),
    "linear_2/b": (16,),
    "linear_3/w": (8, 16),
    "linear_3/b": (16,),
}
SLOTS = ("Adam", "Adam_1", "RMSProp", "Momentum", "ExponentialMovingAverage")


def variables_of(scope="relational_memory", seed=0, dtype=np.float32):
  rng = np.random.default_rng(seed)
  return {
      f"{scope}/{name}": rng.normal(size=shape).astype(dtype)
      for name, shape in SMALL_SHAPES.items()
  }


def load(variables, **kwargs):
  return rmc.sonnet.params_from_variables(
      variables, **(SMALL.arguments | kwargs)
  )


def assert_same(actual, expected):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_round_trip(name):
  """And what comes back is exactly what `init` would make."""
  case = ROUND_TRIPS[name]
  params = case.params()
  variables = rmc.sonnet.variables_from_params(params, **case.arguments)
  assert len(variables) == len(jax.tree.leaves(params))
  assert all(key.startswith("relational_memory/") for key in variables)
  back = rmc.sonnet.params_from_variables(variables, **case.arguments)
  assert_same(back, params)


def test_names_and_shapes():
  variables = rmc.sonnet.variables_from_params(
      SMALL.params(), **SMALL.arguments
  )
  assert {name: v.shape for name, v in variables.items()} == {
      f"relational_memory/{name}": shape
      for name, shape in SMALL_SHAPES.items()
  }


def test_names_of_blocks():
  """Three LayerNorms and a linear layer for each, the gates after them."""
  three = case(5, num_heads=2, num_blocks=3)
  variables = rmc.sonnet.variables_from_params(
      three.params(), **three.arguments
  )
  layers = {name.split("/", 1)[1].rsplit("/", 1)[0] for name in variables}
  assert layers == (
      {"linear", "layer_norm", "mlp/linear_0", "mlp/linear_1"}
      | {f"linear_{i}" for i in range(1, 6)}
      | {f"layer_norm_{i}" for i in range(1, 9)}
  )
  shape_of = {name.split("/", 1)[1]: v.shape for name, v in variables.items()}
  assert [shape_of[f"linear_{i}/w"] for i in range(1, 6)] == [
      (8, 24),
      (8, 24),
      (8, 24),
      (8, 16),
      (8, 16),
  ]


@pytest.mark.parametrize("suffix", ["", ":0"])
def test_whole_checkpoint(suffix):
  """The scope's variables are found among all that a run leaves behind."""
  own = variables_of("model/relational_memory")
  checkpoint = dict(own)
  for name, value in own.items():
    for slot in SLOTS:
      checkpoint[f"{name}/{slot}"] = np.full_like(value, np.nan)
  for other in (
      variables_of("model/relational_memory_1", seed=1),
      variables_of("model/my_relational_memory", seed=2),
      variables_of("relational_memory", seed=3),
      variables_of("other/model/relational_memory", seed=4),
  ):
    checkpoint |= other
  checkpoint |= {
      "global_step": np.int64(1000),
      "beta1_power": np.float32(0.1),
      "beta2_power": np.float32(0.1),
      "model/mlp/linear_0/w": np.ones((3, 3), np.float32),
      "model/linear/w": np.ones((3, 3), np.float32),
      "model/linear/w/Adam": np.ones((3, 3), np.float32),
  }
  rng = np.random.default_rng(5)
  names = rng.permutation(sorted(checkpoint))
  checkpoint = {f"{name}{suffix}": checkpoint[name] for name in names}
  assert_same(
      load(checkpoint, prefix="model/relational_memory"),
      load(variables_of("relational_memory")),
  )
  for scope, seed in (
      ("model/relational_memory_1", 1),
      ("relational_memory", 3),
  ):
    assert_same(
        load(checkpoint, prefix=scope), load(variables_of(seed=seed))
    )


def test_every_value_in_its_place():
  """A value for each variable, found again under the parameter's name."""
  variables = variables_of()
  params = load(variables)
  for module, parameter, name in (
      ("input_projection", "w", "linear/w"),
      ("qkv_0", "b", "linear_1/b"),
      ("qkv_norm_0", "scale", "layer_norm/gamma"),
      ("attention_norm_0", "offset", "layer_norm_1/beta"),
      ("mlp/~/linear_1", "w", "mlp/linear_1/w"),
      ("mlp_norm_0", "scale", "layer_norm_2/gamma"),
      ("input_gates", "w", "linear_2/w"),
      ("memory_gates", "w", "linear_3/w"),
  ):
    np.testing.assert_array_equal(
        params[f"relational_memory/~/{module}"][parameter],
        variables[f"relational_memory/{name}"],
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_type_is_kept(dtype):
  """Whatever JAX's own default is."""
  params = load(variables_of(dtype=dtype))
  assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype(dtype)}
  assert all(type(x) is np.ndarray for x in jax.tree.leaves(params))
  back = rmc.sonnet.variables_from_params(params, **SMALL.arguments)
  assert_same(back, variables_of(dtype=dtype))


def test_prefix_of_what_is_written():
  variables = rmc.sonnet.variables_from_params(
      load(variables_of()), prefix="model/core", **SMALL.arguments
  )
  assert_same(variables, variables_of("model/core"))


def test_other_modules_parameters_are_left_out():
  params = load(variables_of()) | {
      "linear": {"w": np.ones(3)},
      "relational_memory_1/~/qkv_0": {"w": np.ones(3)},
  }
  variables = rmc.sonnet.variables_from_params(params, **SMALL.arguments)
  assert_same(variables, variables_of())


def test_inside_a_transform():
  """Parameters may be looked up where a network is built."""

  def fn():
    return load(variables_of())["relational_memory/~/qkv_0"]["b"]

  params = hk.transform(fn).init(jax.random.key(0))
  assert params == {}


# What is wrong with the variables.


@pytest.mark.parametrize("name", ["linear/w", "linear_3/b", "layer_norm/beta"])
def test_missing(name):
  variables = variables_of()
  del variables[f"relational_memory/{name}"]
  with pytest.raises(ValueError, match=f"relational_memory/{name}"):
    load(variables)


@pytest.mark.parametrize("name", ["linear_4/w", "offset", "mlp/linear_2/b"])
def test_extra(name):
  variables = variables_of() | {f"relational_memory/{name}": np.ones(3)}
  with pytest.raises(ValueError) as error:
    load(variables)
  for part in (f"'relational_memory/{name}'", "relational_memory/linear_3/b"):
    assert part in str(error.value)


@pytest.mark.parametrize(
    "name, shape, expected",
    [
        ("linear_1/w", (8, 23), "[8, 24]"),
        ("linear/b", (8, 1), "[8]"),
        ("layer_norm_2/gamma", (), "[8]"),
        ("linear/w", (5,), "[D, F]"),
        ("linear/w", (5, 7), "[5, 8]"),
        ("linear_2/w", (16, 16), "[8, 16]"),
    ],
)
def test_misshapen(name, shape, expected):
  variables = variables_of()
  variables[f"relational_memory/{name}"] = np.ones(shape, np.float32)
  with pytest.raises(ValueError) as error:
    load(variables)
  for part in (f"relational_memory/{name}", expected, f"got {list(shape)}"):
    assert part in str(error.value)


@pytest.mark.parametrize("prefix", ["relational_memory", "model", "core/rmc"])
def test_empty(prefix):
  """The message says where else to look."""
  checkpoint = variables_of("agent/relational_memory") | {"global_step": 1}
  checkpoint |= variables_of("model_2/relational_memory")
  there = r"\['agent/relational_memory', 'model_2/relational_memory'\]"
  with pytest.raises(ValueError, match=there) as error:
    load(checkpoint, prefix=prefix)
  assert repr(prefix) in str(error.value)
  with pytest.raises(ValueError, match=prefix):
    load({}, prefix=prefix)


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_blocks": 2},
        {"num_blocks": 3},
        {"gate_style": "memory"},
        {"gate_style": None},
        {"gate_style": None, "num_blocks": 3},
        {"attention_mlp_layers": 1},
        {"attention_mlp_layers": 3},
        {"num_heads": 1},
        {"head_size": 8},
        {"key_size": 5},
    ],
    ids=str,
)
def test_other_arguments(arguments):
  """Variables of another configuration are not taken for this one's."""
  with pytest.raises(ValueError, match="relational_memory/"):
    load(variables_of(), **arguments)
  with pytest.raises(ValueError):
    rmc.sonnet.variables_from_params(
        load(variables_of()), **(SMALL.arguments | arguments)
    )


@pytest.mark.parametrize("num_blocks", [1, 2])
def test_blocks_of_three(num_blocks):
  three = case(5, num_heads=2, num_blocks=3)
  variables = rmc.sonnet.variables_from_params(
      three.params(), **three.arguments
  )
  with pytest.raises(ValueError, match="relational_memory/l"):
    load(variables, num_blocks=num_blocks)


def test_wrong_params():
  params = load(variables_of())
  missing = {k: v for k, v in params.items() if "memory_gates" not in k}
  with pytest.raises(ValueError, match="missing"):
    rmc.sonnet.variables_from_params(missing, **SMALL.arguments)
  extra = params | {"relational_memory/~/linear": {"w": np.ones(3)}}
  with pytest.raises(ValueError, match="relational_memory/~/linear/w"):
    rmc.sonnet.variables_from_params(extra, **SMALL.arguments)
  with pytest.raises(ValueError):
    rmc.sonnet.variables_from_params({}, **SMALL.arguments)


def test_loaded_parameters_step():
  """They fit a core, and survive `jit`."""
  params = load(variables_of())
  x, memory = SMALL.inputs(BATCH), Case(SMALL.arguments, ()).memory(BATCH)
  fn = hk.transform(lambda x, m: SMALL.core()(x, m))
  output, _ = jax.jit(fn.apply)(params, None, x, memory)
  assert np.all(np.isfinite(output))


def test_params_of_another_network():
  params = {"agent/~/relational_memory/~/qkv_0": {"w": np.zeros([2, 6])}}
  with pytest.raises(ValueError, match="modules under 'relational_memory/'"):
    rmc.sonnet.variables_from_params(params, mem_slots=2, head_size=2)
