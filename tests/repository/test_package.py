"""The wheel: the library and the tasks, and no more is asked of the user."""

import shutil
import subprocess
import sys
import zipfile

import rmc
from tests.repository.test_docs import BLOCK, PAGES
from tests.repository.test_import import ROOT


def test_wheel(tmp_path):
  source = tmp_path / "source"  # Building leaves files behind.
  source.mkdir()
  for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
    shutil.copy(ROOT / name, source)
  for package in ("rmc", "tasks", "scripts", "tests"):
    ignored = shutil.ignore_patterns("__pycache__", "golden")
    shutil.copytree(ROOT / package, source / package, ignore=ignored)
  subprocess.run(
      [sys.executable, "-m", "build", "--wheel", "--no-isolation"]
      + ["--outdir", tmp_path, source],
      check=True,
      capture_output=True,
  )
  (path,) = tmp_path.glob("*.whl")
  assert path.name == f"rmc-{rmc.__version__}-py3-none-any.whl"
  with zipfile.ZipFile(path) as wheel:
    names = set(wheel.namelist())
    (metadata,) = (n for n in names if n.endswith("/METADATA"))
    metadata = wheel.read(metadata).decode()
  modules = {
      str(path.relative_to(ROOT))
      for package in ("rmc", "tasks")
      for path in (ROOT / package).rglob("*.py")
  }
  assert {name for name in names if ".dist-info/" not in name} == modules
  assert any(name.endswith("LICENSE") for name in names)
  needed = [
      line.split()[1].split(">")[0]
      for line in metadata.splitlines()
      if line.startswith("Requires-Dist:") and "extra ==" not in line
  ]
  assert set(needed) == {"dm-haiku", "jax", "jaxlib", "numpy"}
  run_from_wheel(path, tmp_path / "target")


def run_from_wheel(path, target):
  """Installs the wheel, and runs the README's example far from the clone."""
  subprocess.run(
      [sys.executable, "-m", "pip", "install", "--quiet", "--no-index"]
      + ["--no-deps", "--no-compile", "--target", target, path],
      check=True,
  )
  ((_, example),) = (
      block for block in BLOCK.findall(PAGES["README.md"])
      if block[0] == "python"
  )
  process = subprocess.run(
      [sys.executable, "-c", f"{example}\nprint(rmc.__file__, outputs.shape)"],
      cwd=target.parent,
      env={"PYTHONPATH": str(target), "JAX_PLATFORMS": "cpu"},
      capture_output=True,
      text=True,
      check=False,
  )
  assert process.returncode == 0, process.stderr
  file = target / "rmc" / "__init__.py"
  assert process.stdout == f"{file} (10, 2, 256)\n"
