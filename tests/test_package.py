"""The wheel: the library and the tasks, and no more is asked of the user."""

import shutil
import subprocess
import sys
import zipfile

import rmc
from tests.test_import import ROOT


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
