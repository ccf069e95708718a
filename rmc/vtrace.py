"""V-trace: targets for an actor-critic from what another policy did.

Glossary of shapes:
  - T: steps.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class VTrace(NamedTuple):
  """What an actor-critic learns from.

  Attributes:
    targets: of the values of the states at which actions were taken,
      `[T, ...]`.
    advantages: of the actions taken, the weights of the policy gradient,
      `[T, ...]`.
  """

  targets: jax.Array
  advantages: jax.Array


def vtrace(
    v_tm1: jax.Array,
    v_t: jax.Array,
    r_t: jax.Array,
    discount_t: jax.Array,
    rho_tm1: jax.Array,
    *,
    lambda_: float = 1.0,
    clip_rho: float = 1.0,
    clip_pg_rho: float = 1.0,
) -> VTrace:
  r"""Computes V-trace targets (Espeholt et al. 2018, section 4.1).

  An action :math:`a_s` at state :math:`x_s` led to the reward :math:`r_s` and,
  discounted by :math:`\gamma_s`, to the state :math:`x_{s+1}`. Under the policy
  that learns it is :math:`w_s = \pi(a_s | x_s) / \mu(a_s | x_s)` times as
  likely as under the one that acted. With :math:`\rho_s = \min(\bar\rho, w_s)`
  and :math:`c_s = \lambda \min(1, w_s)`, the target of :math:`V(x_s)` is

  .. math::

     v_s = V(x_s) + \rho_s (r_s + \gamma_s V(x_{s+1}) - V(x_s))
           + \gamma_s c_s (v_{s+1} - V(x_{s+1}))

  which ends with :math:`v_T = V(x_T)`, and the advantage of :math:`a_s` is

  .. math::

     A_s = \min(\bar\rho_{pg}, w_s) (r_s + \gamma_s (\lambda v_{s+1}
           + (1 - \lambda) V(x_{s+1})) - V(x_s))

  Where all :math:`w_s = 1` and :math:`\lambda = 1`, targets are n-step returns.
  A ratio of 0 takes an action out, and all that came after it: the target of
  its state is the value, and its advantage 0::

    >>> values, rewards = jnp.zeros([3]), jnp.array([0.0, 0.0, 1.0])
    >>> discounts = jnp.array([0.9, 0.9, 0.0])
    >>> targets, _ = vtrace(values, values, rewards, discounts, jnp.ones([3]))
    >>> [round(float(x), 2) for x in targets]
    [0.81, 0.9, 1.0]
    >>> targets, _ = vtrace(
    ...     values, values, rewards, discounts, jnp.array([1.0, 0.0, 1.0]))
    >>> targets.tolist()
    [0.0, 0.0, 1.0]

  Args:
    v_tm1: values of the states where the actions were taken, `[T, ...]`.
    v_t: values of the states that they led to, `[T, ...]`.
    r_t: their rewards, `[T, ...]`.
    discount_t: their discounts, 0 where an episode ended, `[T, ...]`.
    rho_tm1: their importance ratios :math:`w`, `[T, ...]`.
    lambda_: from 0 to 1, how far to look beyond the next step.
    clip_rho: :math:`\bar\rho`, above 0.
    clip_pg_rho: :math:`\bar\rho_{pg}`, above 0.

  Returns:
    Targets and advantages; no gradient flows through them to the sequences.

  Raises:
    ValueError: if shapes differ, there is no step, or a number that is not
      traced is out of its range.
  """
  arguments = {
      "v_tm1": v_tm1,
      "v_t": v_t,
      "r_t": r_t,
      "discount_t": discount_t,
      "rho_tm1": rho_tm1,
  }
  shapes = {name: jnp.shape(x) for name, x in arguments.items()}
  shape = shapes["v_tm1"]
  if len(set(shapes.values())) != 1 or not shape or not shape[0]:
    raise ValueError(
        "v_tm1, v_t, r_t, discount_t and rho_tm1 must have one shape "
        f"[T, ...] with T at least 1, got {shapes}."
    )
  if not isinstance(lambda_, jax.core.Tracer) and not 0 <= lambda_ <= 1:
    raise ValueError(f"lambda_ must be from 0 to 1, got {lambda_}.")
  for name, value in (("clip_rho", clip_rho), ("clip_pg_rho", clip_pg_rho)):
    if not isinstance(value, jax.core.Tracer) and not value > 0:
      raise ValueError(f"{name} must be above 0, got {value}.")

  v_tm1, v_t, r_t, discount_t, rho_tm1 = map(
      jax.lax.stop_gradient, arguments.values()
  )
  c_tm1 = lambda_ * jnp.minimum(1.0, rho_tm1)
  decay_t = discount_t * c_tm1
  delta_t = jnp.minimum(clip_rho, rho_tm1) * (
      r_t + discount_t * v_t - v_tm1
  )

  def step(error, inputs):
    delta, decay = inputs
    error = delta + decay * error
    return error, error

  _, errors = jax.lax.scan(
      step,
      jnp.zeros(shape[1:], jnp.result_type(delta_t, decay_t)),
      (delta_t, decay_t),
      reverse=True,
  )  # [T, ...]
  targets = errors + v_tm1
  next_targets = jnp.concatenate([targets[1:], v_t[-1:]])
  ahead = lambda_ * next_targets + (1 - lambda_) * v_t
  advantages = jnp.minimum(clip_pg_rho, rho_tm1) * (
      r_t + discount_t * ahead - v_tm1
  )
  return VTrace(targets, advantages)
