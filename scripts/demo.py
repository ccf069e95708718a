"""Trains the RMC and an LSTM on a small task and compares them.

  python -m scripts.demo --seeds=0,1,2
  python -m scripts.demo --benchmark=learn_to_execute
  python -m scripts.demo --benchmark=language_modeling

Both see the same stream of examples; --cores=rmc,lstm,dnc,entnet compares the
other baselines too. Each core and seed takes one to two minutes on two CPU
cores. It prints a table and leaves learning_curves.png, and in each run's
directory what the training program draws.
"""

import json
import pathlib
import signal
import subprocess
import sys
from typing import NamedTuple

from absl import flags
import tabulate

from scripts.lib import cores, plots, program

FLAGS = flags.FLAGS


class _Demo(NamedTuple):
  """What to run, and which metrics to show.

  Attributes:
    module: the training program.
    preset: its flags.
    directory: of the runs, unless --demo_dir says otherwise.
    curve: the metric whose curves are drawn.
    columns: the final metrics of the table, by title.
  """

  module: str
  preset: str
  directory: str
  curve: str
  columns: dict[str, str]


def _accuracy(name: str) -> dict[str, str]:
  return {"accuracy": name, "standard error": f"{name}_standard_error"}


_DEMOS = {
    "nth_farthest": _Demo(
        "scripts.train_nth_farthest",
        "nth_farthest/demo.flags",
        "runs/demo",
        "accuracy",
        _accuracy("eval_accuracy"),
    ),
    "learn_to_execute": _Demo(
        "scripts.train_learn_to_execute",
        "learn_to_execute/demo.flags",
        "runs/demo_learn_to_execute",
        "eval_character_accuracy",
        _accuracy("eval_character_accuracy"),
    ),
    "language_modeling": _Demo(
        "scripts.train_language_model",
        "language_modeling/demo.flags",
        "runs/demo_language_modeling",
        "valid_perplexity",
        {"test perplexity": "test_perplexity"},
    ),
}

_CORES = cores.names_for("flat")

flags.DEFINE_enum("benchmark", "nth_farthest", list(_DEMOS), "What to learn.")
flags.DEFINE_string(
    "demo_dir", None, "Directory of the demo's runs; default: under runs/."
)
flags.DEFINE_list("seeds", ["0"], "Seeds, separated by commas.")
flags.DEFINE_list(
    "cores",
    ["rmc", "lstm"],
    f"Cores, separated by commas, of {', '.join(_CORES)}.",
)

_PRESETS = pathlib.Path(__file__).parent / "presets"


def main():
  """Runs what has not been run yet, then compares."""
  for name, allowed in (("cores", _CORES), ("seeds", None)):
    values = FLAGS[name].value
    if not values or not all(
        value in allowed if allowed else value.isdecimal() for value in values
    ):
      raise program.UsageError(
          f"--{name}={','.join(values)} must be a list of "
          f"{sorted(allowed) if allowed else 'numbers from 0'}"
      )
  demo = _DEMOS[FLAGS.benchmark]
  directory = pathlib.Path(FLAGS.demo_dir or demo.directory)
  groups = {core: [] for core in FLAGS.cores}
  rows = []
  for core, workdirs in groups.items():
    for seed in FLAGS.seeds:
      workdir = directory / f"{core}_seed{seed}"
      workdirs.append(workdir)
      print(f"\n{core}, seed {seed}", flush=True)
      _train(demo, core, seed, workdir)
      rows.append(_row(demo, core, seed, workdir))
  summary = json.loads((workdir / "summary.json").read_text())
  plateau = summary.get("plateau")
  path = directory / "learning_curves.png"
  plots.learning_curves(groups, demo.curve, path, plateau)
  print()
  print(tabulate.tabulate(rows, headers="keys", floatfmt=".3f", intfmt=","))
  if plateau is not None:
    print(f"\nwithout comparing distances one reaches {plateau:.3f}")
  print(f"learning curves: {path}")
  if FLAGS.benchmark == "nth_farthest" and "rmc" in groups:
    print(f"attention of the slots: {groups['rmc'][0] / 'attention.png'}")


def _train(demo: _Demo, core: str, seed: str, workdir: pathlib.Path):
  command = [
      sys.executable,
      "-m",
      demo.module,
      f"--flagfile={_PRESETS / demo.preset}",
      f"--core={core}",
      f"--seed={seed}",
      f"--workdir={workdir}",
  ]
  process = subprocess.Popen(command)
  signal.signal(signal.SIGTERM, lambda *_: process.terminate())
  status = None
  while status is None:
    try:
      status = process.wait()
    except KeyboardInterrupt:  # It got the signal too, saves, and ends.
      continue
  if status:
    sys.exit(status)


def _row(
    demo: _Demo, core: str, seed: str, workdir: pathlib.Path
) -> dict[str, object]:
  summary = json.loads((workdir / "summary.json").read_text())
  return {
      "core": core,
      "seed": seed,
      "parameters": summary["parameters"],
      "updates": summary["step"],
      **{title: summary[name] for title, name in demo.columns.items()},
      "updates/s": summary["steps_per_second"],
      "seconds": summary["wall_seconds"],
  }


if __name__ == "__main__":
  program.run(main)
