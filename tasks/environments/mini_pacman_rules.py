"""The rules of Mini Pacman: what its five modes consist in."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Rules:
  """What a mode of the game consists in; `RULES` has the released ones.

  Attributes:
    step_reward: at every step.
    food_reward: for a cell of food.
    pill_reward: for a power pill.
    ghost_reward: for eating a ghost.
    death_reward: for touching a ghost without power.
    cleared_by: what must be eaten up to clear a level: "food", "pills" or
      "ghosts".
    level_steps: steps after which a level gives way to the next; 0: never.
    start_level: the first level of an episode. Level k has
      1 + (k - 1) // 2 ghosts.
    frame_cap: steps after which an episode ends; 0: never.
    num_pills: power pills of a level.
    power_steps: what the power counter is set to by a pill. It is lowered at
      the start of each step, and ghosts are edible while it is above 0.
    ghost_speed: probability that a ghost moves, on level 1. It is halved under
      power.
    ghost_speed_per_level: what each further level adds to it.
    random_turn: probability that a ghost at a junction takes any exit but the
      way back; it has no such whims under power.
    max_ghosts: ghosts that a state has room for; later levels have this many.
      With 12 that begins at level 25, which within 3,000 steps and with food
      to be eaten is out of reach (at most 22 levels of 138 cells).
  """

  step_reward: float = 0.0
  food_reward: float = 0.0
  pill_reward: float = 0.0
  ghost_reward: float = 0.0
  death_reward: float = 0.0
  cleared_by: str = "food"
  level_steps: int = 0
  start_level: int = 1
  frame_cap: int = 3000
  num_pills: int = 2
  power_steps: int = 20
  ghost_speed: float = 0.5
  ghost_speed_per_level: float = 0.1
  random_turn: float = 0.05
  max_ghosts: int = 12

  def __post_init__(self):
    """Checks the rules.

    Raises:
      ValueError: if one is out of its range.
    """
    if self.cleared_by not in ("food", "pills", "ghosts"):
      raise ValueError(
          "cleared_by must be 'food', 'pills' or 'ghosts', "
          f"got {self.cleared_by!r}"
      )
    for name, least in (
        ("level_steps", 0),
        ("start_level", 1),
        ("frame_cap", 0),
        ("num_pills", 1),
        ("power_steps", 1),
        ("max_ghosts", 1),
    ):
      if getattr(self, name) < least:
        raise ValueError(
            f"{name} must be at least {least}, got {getattr(self, name)}"
        )
    for name in ("ghost_speed", "ghost_speed_per_level"):
      if getattr(self, name) < 0:
        raise ValueError(
            f"{name} must be at least 0, got {getattr(self, name)}"
        )
    if not 0 <= self.random_turn <= 1:
      raise ValueError(
          f"random_turn must be between 0 and 1, got {self.random_turn}"
      )


RULES = {
    "regular": Rules(food_reward=1.0, pill_reward=2.0, ghost_reward=5.0),
    "avoid": Rules(
        step_reward=0.1,
        food_reward=-0.1,
        pill_reward=-5.0,
        ghost_reward=-10.0,
        death_reward=-20.0,
        level_steps=128,
    ),
    "hunt": Rules(
        pill_reward=1.0,
        ghost_reward=10.0,
        death_reward=-20.0,
        cleared_by="ghosts",
    ),
    "ambush": Rules(
        food_reward=-0.1,
        ghost_reward=10.0,
        death_reward=-20.0,
        cleared_by="ghosts",
    ),
    "rush": Rules(food_reward=-0.1, pill_reward=10.0, cleared_by="pills"),
}
"""The five modes, as released. The papers' results are on "regular"."""
