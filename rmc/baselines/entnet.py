"""The paper's variant of the Recurrent Entity Network: a bank of LSTMs.

Glossary of shapes:
  - B: batch size.
  - D: size of the input.
  - J: cells of the bank.
  - H: units of a cell.
"""

import haiku as hk
import jax

from rmc import _checks


class EntNet(hk.RNNCore):
  r"""The Recurrent Entity Network (Henaff et al. 2017) as the paper varies it.

  A bank of J LSTM cells, all of which read the same input, and whose states
  are summed for the output (appendix A.2):

  .. math::

     \begin{array}{ll}
     h_t^j, c_t^j = \mathrm{LSTM}^j(x_t, h_{t-1}^j, c_{t-1}^j),
       & 1 \le j \le J \\
     y_t = \sum_j h_t^j
     \end{array}

  The state is a tuple of J `hk.LSTMState`, each of `hidden` and `cell`,
  `[B, H]`.

  The paper says no more than that. Left open, and what is chosen here:

    - Whether the cells share parameters: each has its own. With shared ones
      and an equal start all cells would be the same cell.
    - Keys and gates between cells, which the original network has: none; the
      gates of each LSTM are all there are.
    - Which state is summed: the hidden one, an LSTM's own output.
    - What its total of 1024 or 2048 units counts: the units of all cells, J *
      H, as it counts those of all slots for the RMC. With 6 cells, which it
      also tried, this cannot be exact, so the size given here is a cell's.
  """

  def __init__(self, num_cells: int, hidden_size: int, name: str = "entnet"):
    """Constructs an EntNet.

    Args:
      num_cells: LSTM cells, J.
      hidden_size: units of each of them, H, and the size of the output.
      name: name of the module.

    Raises:
      ValueError: if an argument is out of its range.
    """
    super().__init__(name=name)
    _checks.at_least(1, num_cells=num_cells, hidden_size=hidden_size)
    self._cells = [
        hk.LSTM(hidden_size, name=f"lstm_{j}") for j in range(num_cells)
    ]

  def initial_state(self, batch_size: int | None) -> tuple[hk.LSTMState, ...]:
    """Returns zeros.

    Args:
      batch_size: B, or None for a state without the batch axis.

    Returns:
      The state before the first step, J times `[B, H]` and `[B, H]`.
    """
    return tuple(cell.initial_state(batch_size) for cell in self._cells)

  def __call__(
      self, inputs: jax.Array, state: tuple[hk.LSTMState, ...]
  ) -> tuple[jax.Array, tuple[hk.LSTMState, ...]]:
    """Takes one step.

    Args:
      inputs: `[B, D]`, or `[D]` if the state has no batch axis.
      state: the state, a tuple of J `hk.LSTMState`.

    Returns:
      A pair of the output, `[B, H]`, and the next state.

    Raises:
      ValueError: if the inputs have a wrong shape or type, or the state another
        number of cells.
    """
    inputs = _checks.array(inputs)
    _checks.floating(inputs)
    if len(state) != len(self._cells):
      raise ValueError(
          f"state must have {len(self._cells)} cells, got {len(state)}."
      )
    hidden = state[0].hidden
    if hidden.ndim > 1:
      _checks.batched(inputs, len(hidden))
    elif inputs.ndim != 1:
      raise ValueError(
          "inputs must have shape [D], as the state has no batch, got "
          f"{list(inputs.shape)}."
      )
    hidden, next_state = zip(
        *(cell(inputs, x) for cell, x in zip(self._cells, state, strict=True)),
        strict=True,
    )
    return sum(hidden), next_state
