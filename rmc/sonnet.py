"""Sonnet v1 variables to Haiku parameters, and back."""

from collections.abc import Mapping
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from rmc.relational_memory import RelationalMemory

# Name of a parameter in Haiku's LayerNorm to its name in Sonnet's.
_LAYER_NORM = {"scale": "gamma", "offset": "beta"}


def params_from_variables(
    variables: Mapping[str, Any],
    *,
    prefix: str = "relational_memory",
    **constructor_arguments: Any,
) -> hk.Params:
  """Turns the variables of Sonnet's module into parameters of ours.

  The variables may be a whole checkpoint: only those in the scope `prefix`
  are used, and an optimiser's slots (`<variable>/<anything>`) are dropped.
  With TensorFlow 2 installed beside a checkpoint that TensorFlow 1 wrote::

      reader = tf.train.load_checkpoint("model.ckpt-1000")
      variables = {
          name: reader.get_tensor(name)
          for name in reader.get_variable_to_shape_map()
      }
      params = rmc.sonnet.params_from_variables(
          variables, mem_slots=4, head_size=64, num_heads=4
      )

  Args:
    variables: arrays by name, such as `"relational_memory/linear/w"`; a
      trailing `":0"` does not matter.
    prefix: the scope of the module, without a slash at its end.
    **constructor_arguments: those of `RelationalMemory` that made the module.

  Returns:
    The parameters that `hk.transform` gives a function which makes
    `RelationalMemory(**constructor_arguments)` and calls it, as NumPy arrays of
    the variables' types.

  Raises:
    ValueError: if a variable in the scope is missing, is not of this module,
      or has another shape than the arguments imply; or if nothing is there.
  """
  scope = prefix.rstrip("/") + "/"
  found = {}
  for name, value in variables.items():
    name = name.removesuffix(":0")
    if name.startswith(scope):
      found[name.removeprefix(scope)] = np.asarray(value)
  if not found:
    names = (name.removesuffix(":0") for name in variables)
    scopes = sorted(
        name.removesuffix("/linear/w")
        for name in names
        if name.endswith("/linear/w")
    )
    raise ValueError(
        f"prefix {prefix!r} is the scope of no variable; the scopes with a "
        f"variable linear/w are {scopes}."
    )
  expected = _expected(found, scope, constructor_arguments)
  for name in found.keys() - expected.keys():
    if not any(name.startswith(known + "/") for known in expected):
      raise ValueError(
          f"variable {scope + name!r} is not of this module; with these "
          f"arguments there are {_listed(scope, expected)}."
      )
  params = {}
  for name, (module, parameter, shape) in expected.items():
    _check(scope + name, found.get(name), shape)
    params.setdefault(module, {})[parameter] = found[name]
  return params


def variables_from_params(
    params: hk.Params,
    *,
    prefix: str = "relational_memory",
    **constructor_arguments: Any,
) -> dict[str, np.ndarray]:
  """Turns parameters of our module into the variables of Sonnet's.

  Args:
    params: the parameters of a network in which the module is an outermost
      one; the other modules' parameters are left out.
    prefix: the scope that the variables shall have.
    **constructor_arguments: those of `RelationalMemory` that made the module.

  Returns:
    NumPy arrays by name, such as `"relational_memory/linear/w"`.

  Raises:
    ValueError: if a parameter of the module is missing, is one too many, or
      has another shape than the arguments imply.
  """
  scope = prefix.rstrip("/") + "/"
  core = constructor_arguments.get("name", "relational_memory") + "/"
  found, of_sonnet = {}, _sonnet_name(constructor_arguments)
  for module, bundle in params.items():
    if module.startswith(core):
      for parameter, value in bundle.items():
        name = of_sonnet(module, parameter)
        if name is None:
          raise ValueError(
              f"parameter {module}/{parameter} is not of a module with these "
              f"arguments: {constructor_arguments}."
          )
        found[name] = np.asarray(value)
  if not found:
    raise ValueError(
        f"params must have modules under {core!r}, got {sorted(params)}; cut "
        "off the names of the modules around it."
    )
  expected = _expected(found, scope, constructor_arguments)
  for name in expected:
    _check(scope + name, found.get(name), expected[name][-1])
  for name in found.keys() - expected.keys():
    raise ValueError(
        f"the parameter of variable {scope + name!r} is not of a module with "
        f"these arguments: {constructor_arguments}."
    )
  return {scope + name: found[name] for name in expected}


def _expected(
    found: Mapping[str, np.ndarray],
    scope: str,
    constructor_arguments: Mapping[str, Any],
) -> dict[str, tuple[str, str, tuple[int, ...]]]:
  """Returns (module, parameter, shape) by the name that Sonnet gives it.

  Neither the size of the input nor its number of rows is an argument of the
  constructor, so these two are read off the variables.

  Args:
    found: variables by name inside the scope.
    scope: for messages.
    constructor_arguments: those of `RelationalMemory`.
  """

  def step(inputs):
    core = RelationalMemory(**constructor_arguments)
    return core(inputs, core.initial_state(inputs.shape[0]))

  of_sonnet = _sonnet_name(constructor_arguments)
  projection = found.get("linear/w")
  if projection is None or projection.ndim != 2:
    raise ValueError(
        f"variable {scope}linear/w must be a matrix [D, F], got "
        f"{None if projection is None else list(projection.shape)}."
    )
  shape = (1, projection.shape[0])
  if constructor_arguments.get("treat_input_as_matrix"):
    blocks = constructor_arguments.get("num_blocks", 1)
    gates = found.get(f"linear_{blocks + 1}/w", projection)
    num_rows = max(1, gates.shape[0] // projection.shape[1])
    shape = (1, num_rows, projection.shape[0])
  params = jax.eval_shape(
      hk.transform(step).init,
      jax.random.key(0),
      jax.ShapeDtypeStruct(shape, jnp.result_type(float)),
  )
  return {
      of_sonnet(module, parameter): (module, parameter, value.shape)
      for module, bundle in params.items()
      for parameter, value in bundle.items()
  }


def _sonnet_name(constructor_arguments: Mapping[str, Any]):
  """Returns a function from module and parameter to the name in Sonnet.

  Sonnet numbers its layers as they come: the input's projection, each block's
  qkv layer, the two gate layers; and each block's three LayerNorms.

  Args:
    constructor_arguments: those of `RelationalMemory`.
  """
  num_blocks = constructor_arguments.get("num_blocks", 1)
  core = constructor_arguments.get("name", "relational_memory") + "/"
  layers = {
      "input_projection": "linear",
      "input_gates": f"linear_{num_blocks + 1}",
      "memory_gates": f"linear_{num_blocks + 2}",
  }
  for i in range(num_blocks):
    layers[f"qkv_{i}"] = f"linear_{i + 1}"
    for j, norm in enumerate(("qkv_norm", "attention_norm", "mlp_norm")):
      number = 3 * i + j
      layers[f"{norm}_{i}"] = f"layer_norm_{number}" if number else "layer_norm"

  def of_sonnet(module: str, parameter: str) -> str | None:
    layer = module.removeprefix(core).removeprefix("~/")
    if layer.startswith("mlp/~/"):
      layer = "mlp/" + layer.removeprefix("mlp/~/")
    elif layer in layers:
      layer = layers[layer]
    else:
      return None
    return f"{layer}/{_LAYER_NORM.get(parameter, parameter)}"

  return of_sonnet


def _check(name: str, value: np.ndarray | None, shape: tuple[int, ...]):
  if value is None:
    raise ValueError(f"variable {name!r} of shape {list(shape)} is missing.")
  if value.shape != shape:
    raise ValueError(
        f"variable {name!r} must have shape {list(shape)} with these "
        f"arguments, got {list(value.shape)}."
    )


def _listed(scope: str, names) -> str:
  return ", ".join(scope + name for name in names)
