"""The README's Python runs, and the files and flags it names are there."""

import pathlib
import re

import jax
import jax.numpy as jnp

ROOT = pathlib.Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_examples_run():
  names = {}
  examples = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
  assert len(examples) == 3
  core, environment, agent = examples
  exec(core, names)
  assert names["outputs"].shape == (10, 2, 256)
  assert names["memory"].shape == (2, 4, 64)
  assert jnp.all(jnp.isfinite(names["outputs"]))
  exec(environment, names)
  assert names["timestep"].observation.shape == (1000, 5, 5, 6)
  with jax.numpy_dtype_promotion("standard"):  # optax asks for it.
    exec(agent, names)
  first = jax.tree.leaves(
      jax.jit(names["network"].init)(jax.random.key(1), *names["first"])
  )
  for x, y in zip(first, jax.tree.leaves(names["params"]), strict=True):
    assert jnp.all(jnp.isfinite(y)) and jnp.any(x != y)
  assert len([line for line in agent.splitlines() if line]) <= 60


def test_presets_are_there():
  presets = {path.stem for path in (ROOT / "scripts/presets").iterdir()}
  for benchmark in ("nth_farthest", "mini_pacman", "box_world"):
    named = set(re.findall(rf"`({benchmark}_\w+)`", TEXT))
    assert named == {name for name in presets if name.startswith(benchmark)}
  for preset in re.findall(r"presets/(\w+)\.flags", TEXT):
    assert preset in presets


def test_links_and_programs_are_there():
  for path in re.findall(r"\]\(([^):]+)\)", TEXT):
    assert (ROOT / path).exists(), path
  for module in re.findall(r"python -m ([\w.]+)", TEXT):
    assert (ROOT / module.replace(".", "/")).with_suffix(".py").exists(), module
