"""The README's Python runs, and the files and flags it names are there."""

import pathlib
import re

import jax.numpy as jnp

ROOT = pathlib.Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_examples_run():
  names = {}
  examples = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
  assert len(examples) == 2
  for example in examples:
    exec(example, names)
  assert names["outputs"].shape == (10, 2, 256)
  assert names["memory"].shape == (2, 4, 64)
  assert jnp.all(jnp.isfinite(names["outputs"]))
  assert names["timestep"].observation.shape == (1000, 5, 5, 6)


def test_presets_are_there():
  presets = {path.stem for path in (ROOT / "scripts/presets").iterdir()}
  named = set(re.findall(r"`(nth_farthest_\w+)`", TEXT))
  assert named == {name for name in presets if name.startswith("nth_farthest")}
  for preset in re.findall(r"presets/(\w+)\.flags", TEXT):
    assert preset in presets


def test_links_and_programs_are_there():
  for path in re.findall(r"\]\(([^):]+)\)", TEXT):
    assert (ROOT / path).exists(), path
  for module in re.findall(r"python -m ([\w.]+)", TEXT):
    assert (ROOT / module.replace(".", "/")).with_suffix(".py").exists(), module
