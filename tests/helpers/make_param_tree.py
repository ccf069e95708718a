"""Writes `golden/param_tree.json`: names and shapes of all parameters.

Checkpoints depend on them. Run this program only when they change on purpose:

  python -m tests.helpers.make_param_tree
"""

import json
import pathlib
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

import rmc
from tests.helpers import small_cores
from tests.helpers.small_cores import BATCH, CASES, Case

PATH = pathlib.Path(__file__).parents[1] / "golden" / "param_tree.json"
STEPS = 2


def shapes(fn, *args) -> dict[str, str]:
  """Returns the shapes of the parameters of `fn(*args)` by name."""
  params = jax.eval_shape(hk.transform(fn).init, jax.random.key(0), *args)
  return {
      f"{module}/{name}": str(list(value.shape))
      for module, bundle in sorted(params.items())
      for name, value in sorted(bundle.items())
  }


def of_core(case: Case) -> dict[str, str]:
  """Returns the parameters of one call."""
  return shapes(
      lambda x, memory: case.core()(x, memory),
      case.inputs(BATCH),
      case.memory(BATCH),
  )


def of_classifier() -> dict[str, str]:
  """Returns the parameters of a SequenceClassifier."""

  def classify(inputs):
    case = CASES["default"]
    return rmc.SequenceClassifier(case.core, 7, mlp_sizes=(6, 8))(inputs)

  return shapes(classify, CASES["default"].inputs(STEPS, BATCH))


def of_actor_critic() -> dict[str, str]:
  """Returns the parameters of an ActorCritic."""

  def act(observations):
    case = CASES["matrix"]
    model = rmc.ActorCritic(case.core, 3, channels=(2, 3))
    state = model.initial_state(BATCH)
    return model(observations, state, jnp.zeros([STEPS, BATCH], bool))

  return shapes(act, jnp.zeros([STEPS, BATCH, 4, 4, 5]))


def tree() -> dict[str, Any]:
  """Returns everything that the file holds."""
  cores = {name: of_core(case) for name, case in small_cores.CASES.items()}
  return cores | {
      "sequence_classifier": of_classifier(),
      "actor_critic": of_actor_critic(),
  }


if __name__ == "__main__":
  PATH.write_text(json.dumps(tree(), indent=1) + "\n")
