"""The plan of the house: who imports whom, and how long a file may be.

All of it is read, not imported.
"""

import ast
import functools
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
ROOMS = ("rmc", "tasks", "scripts", "benchmarks", "tests")
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for room in ROOMS
    for path in sorted((ROOT / room).rglob("*.py"))
}
PACKAGES = {
    name.removesuffix(".__init__") for name in FILES if "__init__" in name
}
PROGRAMS = {
    name
    for name in FILES
    if name.startswith("scripts.") and name.count(".") == 1
    and not name.endswith("__init__")
}  # fmt: skip


@functools.cache
def tree_of(name):
  return ast.parse(FILES[name].read_text(encoding="utf-8"))


def as_file(name):
  """Returns the file of ours that a dotted name is in; None if it is not."""
  if name in FILES:
    return name
  if f"{name}.__init__" in FILES:
    return f"{name}.__init__"
  parent = name.rpartition(".")[0]
  return as_file(parent) if parent else None


def imports_of(name, at_import_alone=False):
  """Returns the files of ours that a file imports.

  Args:
    name: of the file, dotted.
    at_import_alone: whether to leave out what functions import.
  """
  nodes = [tree_of(name)]
  found = set()
  while nodes:
    node = nodes.pop()
    if isinstance(node, ast.ImportFrom):
      for alias in node.names:
        found.add(as_file(f"{node.module}.{alias.name}"))
    elif isinstance(node, ast.Import):
      found |= {as_file(alias.name) for alias in node.names}
    if not at_import_alone or not isinstance(node, ast.FunctionDef):
      nodes += ast.iter_child_nodes(node)
  return found - {None, name}


def room_of(name):
  return name.partition(".")[0]


ALLOWED = {
    "rmc": {"rmc"},
    "tasks": {"tasks"},
    "scripts": {"rmc", "tasks", "scripts"},
    "benchmarks": {"rmc", "tasks", "scripts", "benchmarks"},
    "tests": {*ROOMS},
}


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_one_way(room):
  for name in FILES:
    if room_of(name) == room:
      for other in imports_of(name):
        assert room_of(other) in ALLOWED[room], f"{name} imports {other}"


def test_the_core_knows_no_training():
  for name in FILES:
    if room_of(name) == "rmc" and not name.startswith("rmc.training"):
      for other in imports_of(name):
        assert not other.startswith("rmc.training"), f"{name} imports {other}"


def test_only_tests_and_benchmarks_import_programs():
  for name in FILES:
    if room_of(name) not in ("tests", "benchmarks"):
      assert not imports_of(name) & PROGRAMS, name


def test_nothing_imports_in_a_circle():
  graph = {name: imports_of(name, at_import_alone=True) for name in FILES}
  done = set()

  def visit(name, path):
    assert name not in path, " -> ".join([*path, name])
    if name not in done:
      for other in graph[name]:
        # A package's own names may come from files that it imports.
        if not other.endswith("__init__") or not path:
          visit(other, [*path, name])
      done.add(name)

  for name in FILES:
    visit(name, [])


def test_programs_fit_on_a_few_screens():
  for name in PROGRAMS:
    lines = FILES[name].read_text(encoding="utf-8").count("\n")
    assert lines < 200, f"{name} has {lines} lines"


def test_functions_fit_on_a_screen():
  """80 lines, not counting a docstring."""
  for name in FILES:
    if room_of(name) == "tests":
      continue
    for node in ast.walk(tree_of(name)):
      if isinstance(node, ast.FunctionDef):
        lines = node.end_lineno - node.lineno + 1
        first = node.body[0]
        if ast.get_docstring(node) is not None:
          lines -= first.end_lineno - first.lineno + 1
        assert lines <= 80, f"{name}.{node.name} has {lines} lines"


def test_tests_mirror_the_rooms():
  folder = ROOT / "tests"
  names = {path.name for path in folder.iterdir()} - {"__pycache__"}
  rooms = {*ROOMS} - {"tests"}
  assert names == rooms | {
      "__init__.py", "conftest.py", "golden", "helpers", "repository"
  }  # fmt: skip
  inner = {path.name for path in (folder / "rmc").iterdir() if path.is_dir()}
  assert inner - {"__pycache__"} == {"training"}
