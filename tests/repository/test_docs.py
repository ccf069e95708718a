"""What the README, the pages and the docstrings say: it runs, it is there."""

import ast
import doctest
import functools
import importlib
import os
import pathlib
import re
import shlex
import subprocess
import sys
import types

from absl import flags
import haiku as hk
import jax
import jax.numpy as jnp
import pytest

import rmc
from scripts.lib import cores, experiment
from tests.helpers.programs import parsed

FLAGS = flags.FLAGS
ROOT = pathlib.Path(__file__).parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for folder in (".", "docs", "benchmarks", "results")
    for path in sorted(
        ROOT.glob("*.md")
        if folder == "."
        else (ROOT / folder).rglob("*.md")
    )
}
EXTENDING = "docs/extending.md"
MINI_PACMAN = "results/reinforcement_learning/mini_pacman/README.md"
GUIDES = [name for name in PAGES if name.split("/")[0] != "results"]
BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def commands(text):
  """Yields the words of each command of Python's in blocks and in backticks."""
  inline = re.findall(r"`(python -m [^`]+)`", text)
  blocks = [block for language, block in BLOCK.findall(text) if not language]
  lines = "\n".join(inline + blocks).replace("\\\n", " ").splitlines()
  for line in lines:
    line = line.split("python -m ", 1)
    if len(line) == 2:
      yield shlex.split(line[1].rstrip('"'), comments=True)


def run_examples(name):
  """Runs a page's examples; returns the variables after each."""
  module = sys.modules[name] = types.ModuleType(name)  # Flags belong to one.
  names, after = vars(module), []
  with jax.numpy_dtype_promotion("standard"):  # optax asks for it.
    for language, block in BLOCK.findall(PAGES[name]):
      if language == "python":
        exec(compile(block, name, "exec"), names)
        after.append(dict(names))
  return after


def check_example_of_the_core(names):
  assert names["outputs"].shape == (10, 2, 256)
  assert names["memory"].shape == (2, 4, 64)
  assert jnp.all(jnp.isfinite(names["outputs"]))


def test_readme():
  (core,) = run_examples("README.md")
  check_example_of_the_core(core)


def test_quick_start():
  core, lengths, look = run_examples("docs/quick_start.md")
  check_example_of_the_core(core)
  outputs = lengths["outputs"]
  assert jnp.all(outputs[7:, 1] == 0) and jnp.all(outputs[7:, 0] != 0)
  expected = core["outputs"].at[5:, 0].set(core["outputs"][:5, 0])
  assert jnp.allclose(outputs[:7], expected[:7], atol=1e-5)
  assert look["info"].attention_weights[0].shape == (2, 4, 4, 5)
  assert look["info"].forget_gate.shape == (2, 4, 64)


def test_example_of_environments():
  (names,) = run_examples("docs/agents.md")
  assert names["timestep"].observation.shape == (1000, 5, 5, 6)


def test_example_of_an_agent():
  names, _ = run_examples("docs/own_agent.md")
  first = jax.jit(names["network"].init)(jax.random.key(1), *names["first"])
  for x, y in zip(
      jax.tree.leaves(first), jax.tree.leaves(names["params"]), strict=True
  ):
    assert jnp.all(jnp.isfinite(y)) and jnp.any(x != y)
  agent, _ = (block for _, block in BLOCK.findall(PAGES["docs/own_agent.md"]))
  assert len([line for line in agent.splitlines() if line]) <= 60


def test_example_of_a_replay():
  text = PAGES["docs/own_agent.md"]
  _, code = (block for _, block in BLOCK.findall(text))
  names = {"hk": hk, "jax": jax, "rmc": rmc}
  exec(compile(code, "own_agent.md", "exec"), names)
  burn_in = names["BURN_IN"]
  steps = burn_in + 3
  observations = jax.random.normal(jax.random.key(0), (steps, 2, 3))
  begins = jnp.zeros([steps, 2], bool).at[0, 0].set(True)
  init, apply = map(jax.jit, names["q_network"])
  q_values = jax.jit(names["q_values"])
  params = init(jax.random.key(1), observations, begins, None)
  old = jax.random.normal(jax.random.key(2), (2, 2, 32))

  q = q_values(params, observations, begins, old)
  whole, _ = apply(params, observations, begins, old)
  assert jnp.allclose(q, whole[burn_in:], atol=1e-6)
  fresh, _ = apply(params, observations, begins, None)
  assert jnp.allclose(q[:, 0], fresh[burn_in:, 0], atol=1e-6)
  assert not jnp.any(jnp.isclose(q[:, 1], fresh[burn_in:, 1], atol=1e-6))

  def total(observations):
    return jnp.sum(q_values(params, observations, begins, old))

  grads = jax.jit(jax.grad(total))(observations)
  assert not jnp.any(grads[:burn_in]) and jnp.all(grads[burn_in:] != 0)


@pytest.fixture
def forgotten_flags():
  """Forgets flags that a page defines."""
  before = set(FLAGS)
  yield
  for name in set(FLAGS) - before:
    delattr(FLAGS, name)


def test_recipes(forgotten_flags, tmp_path, capsys):
  task, core, env, plain, _ = run_examples(EXTENDING)
  assert "invalid value (nan)" in capsys.readouterr().out
  assert env["timesteps"].step_type.tolist() == [2] * 64
  assert env["timesteps"].reward.tolist() == [1.0] * 64
  again, first = jax.vmap(env["env"].step)(env["states"], jnp.zeros(64, int))
  assert first.step_type.tolist() == [0] * 64 and not again.place.any()
  assert plain["outputs"].shape == (10, 8, 128)
  assert plain["memory"].shape == (8, 4, 32)
  del core
  try:
    with (
        jax.numpy_dtype_promotion("standard"),
        parsed(
            f"--workdir={tmp_path}",
            "--core=gru",
            "--gru_size=16",
            "--steps=300",
            "--learning_rate=1e-2",
            "--num_vectors=4",
        ),
    ):
      _, summary = experiment.train_or_evaluate(
          task["make_experiment"], jax.devices()[:1]
      )
  finally:
    del cores.CORES["gru"]
  assert summary["eval_accuracy"] > 0.6  # By chance it is 0.25.
  saved = (tmp_path / "flags.txt").read_text().splitlines()
  assert {"--gru_size=16", "--num_vectors=4", "--core=gru"} <= {*saved}


def test_table_of_cores():
  rows = re.findall(r"^\| `(\w+)` \| ([\w, ]+) \|", PAGES[EXTENDING], re.M)
  assert {name: tuple(inputs.split(", ")) for name, inputs in rows} == {
      name: core.inputs for name, core in cores.CORES.items()
  }


def test_example_of_data_parallelism():
  (names,) = run_examples("docs/devices.md")
  assert names["state"].step == 3
  assert len(names["parallel"].devices) == jax.device_count() == 8


def test_example_of_sonnets_variables():
  (names,) = run_examples("docs/sonnet_weights.md")
  assert names["output"].shape == (2, 1024)


def test_return_of_a_random_policy():
  # With LLVM's optimisations, which these tests are without, it takes a sixth.
  page = PAGES[MINI_PACMAN]
  (block,) = [code for name, code in BLOCK.findall(page) if name == "python"]
  done = subprocess.run(
      [sys.executable, "-W", "error", "-c", block],
      cwd=ROOT,
      env=os.environ | {"XLA_FLAGS": ""},
      capture_output=True,
      text=True,
      check=True,
  )
  mean, error = map(float, done.stdout.split())
  assert f"A random policy has {mean:.1f} ± {error:.1f}, by" in page


def test_all_examples_are_tested():
  tested = {
      "README.md",
      MINI_PACMAN,
  } | {
      f"docs/{name}.md"
      for name in (
          "quick_start", "agents", "own_agent", "devices", "extending",
          "sonnet_weights",
      )
  }
  assert tested == {name for name in PAGES if "```python" in PAGES[name]}


@pytest.mark.parametrize(
    "path",
    [
        path.relative_to(ROOT)
        for folder in ("rmc", "tasks", "scripts", "benchmarks")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if ">>>" in path.read_text(encoding="utf-8")
    ],
    ids=str,
)
def test_examples_in_docstrings(path):
  # `rmc.unroll` is the function; importlib finds the module.
  module = importlib.import_module(".".join(path.with_suffix("").parts))
  result = doctest.testmod(module)
  assert result.attempted > 0
  assert result.failed == 0


def test_presets():
  """Those that a page names are there, and the guides name every folder."""
  folders = {path.name for path in (ROOT / "scripts/presets").iterdir()}
  text = "\n".join(PAGES.values())
  for name in re.findall(r"presets/([\w/]+\.flags)", text):
    assert (ROOT / "scripts/presets" / name).is_file(), name
  guides = "\n".join(PAGES[name] for name in GUIDES)
  assert set(re.findall(r"presets/(\w+)/\w+\.flags", guides)) == folders


@functools.cache
def flags_of(module):
  """Returns the flags that a program and what it imports define.

  They are read, not imported: two programs may define the same flag. Old names
  of flags are not among them.
  """
  path = (ROOT / module.replace(".", "/")).with_suffix(".py")
  text = path.read_text(encoding="utf-8")
  found = set(re.findall(r"DEFINE_\w+\(\s*\"(\w+)\"", text))
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.ImportFrom):
      names = (f"{node.module}.{alias.name}" for alias in node.names)
      for name in (node.module, *names):
        file = (ROOT / name.replace(".", "/")).with_suffix(".py")
        if name.startswith(("scripts.", "benchmarks.")) and file.exists():
          found |= flags_of(name)
  return found


@pytest.mark.parametrize("name", PAGES)
def test_commands(name):
  """Modules and flags of a page's commands exist."""
  found = list(commands(PAGES[name]))
  assert bool(found) == ("python -m" in PAGES[name])
  for module, *arguments in found:
    if not (ROOT / module.split(".")[0]).is_dir():
      assert module in ("pip", "sphinx", "build")
      continue
    if f"Save it as `{module.replace('.', '/')}.py`" in PAGES[name]:
      continue
    known = flags_of(module) | {"flagfile", "help"}
    if "--" in arguments:  # What follows is another program, with its flags.
      known |= flags_of(arguments[arguments.index("--") + 1])
    for argument in arguments:
      if argument.startswith("--") and argument != "--":
        flag, _, value = argument[2:].partition("=")
        assert flag in known or flag.removeprefix("no") in known, argument
        if flag == "vary":
          assert value.split("=")[0] in known, argument
        argument = value
      if argument.startswith(("results/", "scripts/presets/")):
        assert any(ROOT.glob(argument)), argument


# What is drawn at the end, beside what a flag of a command names.
DRAWN_BY = {
    "make demo": {"learning_curves.png", "attention.png"},
    "scripts.train_nth_farthest": {"learning_curve.png", "attention.png"},
}


@pytest.mark.parametrize("name", [name for name in PAGES if "results/" in name])
def test_every_picture_has_its_command(name):
  page = PAGES[name]
  folder = pathlib.PurePath(name).parent
  named = {
      argument.partition("=")[2]
      for command in commands(page)
      for argument in command
  }
  for program, drawn in DRAWN_BY.items():
    if program in page:
      named |= {str(folder / picture) for picture in drawn}
  pictures = re.findall(r"!\[[^\]]*\]\((\S+)\)", page)
  assert {str(folder / picture) for picture in pictures} <= named


def test_targets_of_make():
  targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
  text = "\n".join(PAGES.values())
  named = set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE))
  assert {"demo", "test"} <= named <= set(targets)


def test_pages_build(tmp_path):
  """Sphinx finds the target of every link, and reads every docstring."""
  process = subprocess.run(
      [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going"]
      + ["-q", "-c", "docs", "-d", tmp_path / "cache", ".", tmp_path / "html"],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=False,
  )
  assert process.returncode == 0, process.stderr
  for page in ("docs/index", "docs/api", "README", "results/README"):
    assert (tmp_path / "html" / page).with_suffix(".html").exists()
  core = (tmp_path / "html/docs/core.html").read_text()
  assert "jax.nn.softmax" in re.sub(r"<[^>]+>", "", core)
