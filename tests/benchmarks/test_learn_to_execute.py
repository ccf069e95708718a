"""The benchmark of programs to execute, in short."""

from benchmarks import learn_to_execute


def test_table(monkeypatch, capsys):
  monkeypatch.setattr(learn_to_execute, "_SECONDS", 0.05)
  learn_to_execute.main()
  _, _, *rows = capsys.readouterr().out.splitlines()
  assert [row.split()[0] for row in rows] == 2 * ["characters"] + 2 * ["words"]
  for row in rows:
    rates = [float(x.replace(",", "")) for x in row.split()[-3:]]
    assert min(rates) > 0
