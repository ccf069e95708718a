"""Trains the RMC and an LSTM on a small Nth Farthest and compares them.

  python -m scripts.demo --seeds=0,1,2

Both see the same stream of examples. It takes some two minutes a seed on two
CPU cores, prints a table and leaves learning_curves.png, and in each run's
directory attention.png.
"""

import json
import pathlib
import subprocess
import sys

from absl import flags
import tabulate

from scripts import figures, program

FLAGS = flags.FLAGS

flags.DEFINE_string("demo_dir", "runs/demo", "Directory of the demo's runs.")
flags.DEFINE_list("seeds", ["0"], "Seeds, separated by commas.")
flags.DEFINE_list("cores", ["rmc", "lstm"], "Cores, separated by commas.")

_PRESET = pathlib.Path(__file__).parent / "presets" / "nth_farthest_demo.flags"


def main():
  """Runs what has not been run yet, then compares."""
  for name, allowed in (("cores", {"rmc", "lstm"}), ("seeds", None)):
    for value in FLAGS[name].value:
      if value not in allowed if allowed else not value.isdecimal():
        raise program.UsageError(
            f"--{name}={','.join(FLAGS[name].value)} must be a list of "
            f"{sorted(allowed) if allowed else 'numbers from 0'}"
        )
  directory = pathlib.Path(FLAGS.demo_dir)
  groups = {core: [] for core in FLAGS.cores}
  rows = []
  for core, workdirs in groups.items():
    for seed in FLAGS.seeds:
      workdir = directory / f"{core}_seed{seed}"
      workdirs.append(workdir)
      print(f"\n{core}, seed {seed}", flush=True)
      _train(core, seed, workdir)
      rows.append(_row(core, seed, workdir))
  plateau = json.loads((workdir / "summary.json").read_text())["plateau"]
  path = directory / "learning_curves.png"
  figures.learning_curves(groups, "accuracy", path, plateau)
  print()
  print(tabulate.tabulate(rows, headers="keys", floatfmt=".3f", intfmt=","))
  print(f"\nwithout comparing distances one reaches {plateau:.3f}")
  print(f"learning curves: {path}")
  if "rmc" in groups:
    print(f"attention of the slots: {groups['rmc'][0] / 'attention.png'}")


def _train(core: str, seed: str, workdir: pathlib.Path):
  command = [
      sys.executable,
      "-m",
      "scripts.train_nth_farthest",
      f"--flagfile={_PRESET}",
      f"--core={core}",
      f"--seed={seed}",
      f"--workdir={workdir}",
  ]
  status = subprocess.run(command, check=False).returncode
  if status:
    sys.exit(status)


def _row(core: str, seed: str, workdir: pathlib.Path) -> dict[str, object]:
  summary = json.loads((workdir / "summary.json").read_text())
  return {
      "core": core,
      "seed": seed,
      "parameters": summary["parameters"],
      "updates": summary["step"],
      "accuracy": summary["eval_accuracy"],
      "standard error": summary["eval_accuracy_standard_error"],
      "updates/s": summary["steps_per_second"],
      "seconds": summary["wall_seconds"],
  }


if __name__ == "__main__":
  program.run(main)
