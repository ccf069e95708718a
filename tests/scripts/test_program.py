"""What all programs share: flag files and old names of flags."""

from absl import flags
import pytest

from scripts.lib import core_flags, language_model_flags, run_table
from scripts.lib.program import UsageError, expand_flagfiles
from tests.helpers.programs import parsed

FLAGS = flags.FLAGS


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A folder with flag files, which is not the current directory."""
  (tmp_path / "inner").mkdir()
  (tmp_path / "elsewhere").mkdir()
  monkeypatch.chdir(tmp_path / "elsewhere")
  for name, text in {
      "base": "# A comment.\n--seed=1\n\n// Another.\n  --mem_slots=2  \n",
      "inner/run": "--steps=3\n--flagfile=../base.flags\n--seed=4\n",
      "loop": "--flagfile=inner/back.flags\n",
      "inner/back": "--flagfile=../loop.flags\n",
  }.items():
    (tmp_path / f"{name}.flags").write_text(text)
  return tmp_path


@pytest.mark.parametrize("given", ["{}/inner/run.flags", "../inner/run.flags"])
@pytest.mark.parametrize("dashes", ["--", "-"])
@pytest.mark.parametrize("equals", ["=", " "])
def test_a_file_names_another_beside_it(folder, given, dashes, equals):
  option = f"{dashes}flagfile{equals}{given.format(folder)}".split()
  assert expand_flagfiles(["--a", *option, "--b"]) == [
      "--a", "--steps=3", "--seed=1", "--mem_slots=2", "--seed=4", "--b"
  ]  # fmt: skip
  with parsed(*option, "--steps=5"):
    assert (FLAGS.steps, FLAGS.seed, FLAGS.mem_slots) == (5, 4, 2)


def test_what_is_no_flagfile(folder):
  del folder
  for arguments in (["--", "--flagfile=nowhere"], ["--flagfiles=x"]):
    assert expand_flagfiles(arguments) == arguments
  assert expand_flagfiles(["--flagfile="]) == []


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--flagfile=nowhere"], "--flagfile=.*/nowhere cannot be read: .*No"),
        (["--flagfile"], "--flagfile must name a file"),
        (["--flagfile=.."], "cannot be read: .*directory"),
        (["--flagfile=../loop.flags"], "loop.flags must not include itself"),
    ],
)
def test_wrong_flagfiles(folder, arguments, message):
  del folder
  with pytest.raises(UsageError, match=message):
    expand_flagfiles(arguments)


@pytest.mark.parametrize(
    "old, new, module",
    [
        ("unroll=3", "scan_unroll", core_flags),
        ("eval_unroll=3,4", "eval_reset_intervals", language_model_flags),
        ("figures=a", "metrics", run_table),
    ],
)
def test_old_names(old, new, module):
  """They set the new flag, and are among no program's own flags."""
  name, _, value = old.partition("=")
  with parsed(f"--{old}"):
    assert FLAGS[new].serialize() == f"--{new}={value}"
  own = {flag.name for flag in FLAGS.get_key_flags_for_module(module.__name__)}
  assert new in own and name not in own
