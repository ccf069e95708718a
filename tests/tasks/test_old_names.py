"""Old names work for one release, and say what to use instead."""

import importlib
import sys

import pytest

from tasks import learn_to_execute, nth_farthest

MOVED = {
    "tasks.environment": (
        "tasks.environments.interface",
        "Environment StepType TimeStep sample_where windows",
    ),
    "tasks.mini_pacman": (
        "tasks.environments.mini_pacman",
        "ACTIONS MAZE RULES Level MiniPacman Rules State",
    ),
    "tasks.box_world": (
        "tasks.environments.box_world",
        "ACTIONS DISTRACTOR LOCK NUM_COLOURS BoxWorld State",
    ),
    "tasks.adapters": (
        "tasks.environments.adapters",
        "DmEnvironment GymnasiumEnv GymnasiumVectorEnv make to_dm_env "
        "to_gymnasium",
    ),
}


@pytest.mark.parametrize("old", MOVED)
def test_moved_modules(old, monkeypatch):
  new, names = MOVED[old]
  monkeypatch.delitem(sys.modules, old, raising=False)
  message = f"^{old} has moved to {new}\\. "
  with pytest.warns(DeprecationWarning, match=message) as seen:
    module = importlib.import_module(old)
  (warning,) = seen
  assert warning.filename == importlib.__file__  # Who imports is warned.
  for name in names.split():
    assert getattr(module, name) is getattr(importlib.import_module(new), name)


@pytest.mark.parametrize(
    "module, new",
    [(nth_farthest, "StageCurriculum"), (learn_to_execute, "LevelCurriculum")],
)
def test_renamed_curricula(module, new):
  message = f"^{module.__name__}.Curriculum is now called {new}\\. "
  with pytest.warns(DeprecationWarning, match=message) as seen:
    old = module.Curriculum
  assert old is getattr(module, new)
  assert [warning.filename for warning in seen] == [__file__]
  with pytest.raises(AttributeError, match=f"'{module.__name__}' .* 'Curric'"):
    _ = module.Curric
