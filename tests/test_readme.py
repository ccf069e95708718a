"""The README's Python runs, and the files and flags it names are there."""

import pathlib
import re

import jax.numpy as jnp

ROOT = pathlib.Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_example_runs():
  (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
  names = {}
  exec(example, names)
  assert names["outputs"].shape == (10, 2, 256)
  assert names["memory"].shape == (2, 4, 64)
  assert jnp.all(jnp.isfinite(names["outputs"]))


def test_presets_are_there():
  presets = {path.stem for path in (ROOT / "scripts/presets").iterdir()}
  assert set(re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)) >= presets


def test_links_and_programs_are_there():
  for path in re.findall(r"\]\(([^):]+)\)", TEXT):
    assert (ROOT / path).exists(), path
  for module in re.findall(r"python -m ([\w.]+)", TEXT):
    assert (ROOT / module.replace(".", "/")).with_suffix(".py").exists(), module
