"""Learning to Execute: programs, answers, splits and curricula."""

import collections
import json
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tasks import learn_to_execute as lte
from tasks.learn_to_execute import Curriculum, LearnToExecute, Level
from tasks.prefetch import Prefetcher
from tests.helpers import golden_vectors, interpreter

RECORDED = json.loads(
    (golden_vectors.DIRECTORY / "data_lte_samples.json").read_text()
)


def recorded_setting(key):
  """Returns our task's name, and further settings, for `TASK/length1/...`."""
  task, length, nesting, *unit = key.split("/")
  return (
      task.lower().replace("_", "-"),
      int(length.removeprefix("length")),
      int(nesting.removeprefix("nest")),
      unit == ["token"],
  )


def draw(task, count, level=None, seed=0, split="train"):
  """Returns a batch, and its programs and answers as text."""
  batch = task.sample(seed, np.arange(count), level, split)
  programs = task.decode(batch.inputs, batch.input_lengths)
  return batch, programs, task.decode(batch.targets, batch.target_lengths)


def assert_same(actual, expected):
  for x, y in zip(actual, expected, strict=True):
    assert x.dtype == y.dtype == np.int32
    np.testing.assert_array_equal(x, y)


# The recorded original.


@pytest.mark.parametrize("key", RECORDED["samples"])
def test_recorded_programs(key):
  """They parse in our grammar, and the answers are ours."""
  name, length, nesting, _ = recorded_setting(key)
  task = LearnToExecute(name, length, nesting)
  for sample in RECORDED["samples"][key]:
    run = interpreter.run(name, sample["code"])
    assert run.answer == sample["target"]
    assert run.length == length
    assert len(run.operations) == (nesting if task.operations else 0)


@pytest.mark.parametrize("key", RECORDED["shapes"])
def test_recorded_shapes(key):
  name, length, nesting, by_token = recorded_setting(key)
  expected = RECORDED["shapes"][key]
  task = LearnToExecute(name, length, nesting, by_token)
  assert task.num_steps == expected["num_steps"]
  assert task.num_steps_out == expected["num_steps_out"]
  assert len(task.vocabulary) == expected["vocab_size"]


@pytest.mark.parametrize(
    "name, length, by_token",
    [
        ("char", 5, False),
        ("token_length1", 1, True),
        ("token_length2", 2, True),
    ],
)
def test_recorded_vocabulary(name, length, by_token):
  task = LearnToExecute("all", length, 2, by_token)
  assert list(task.vocabulary) == RECORDED["vocabularies"][name]


def test_recorded_batches():
  """Their tokens are what we make of their text."""
  with np.load(golden_vectors.DIRECTORY / "data_lte_batches.npz") as file:
    arrays = dict(file)
  batches = json.loads(str(arrays["config"]))["batches"]
  assert len(batches) == 6
  for config in batches:
    name = config["task"].lower().replace("_", "-")
    task = LearnToExecute(
        name,
        config["max_length"],
        config["max_nest"],
        not config["token_by_char"],
    )
    programs = [text.rstrip(".") for text in config["readable"]]
    answers = [interpreter.run(name, program).answer for program in programs]
    batch = task.encode(programs, answers)
    recorded = {
        key.rpartition("/")[-1]: value
        for key, value in arrays.items()
        if key.startswith(config["key"] + "/")
    }
    np.testing.assert_array_equal(batch.inputs.T, recorded["inputs"])
    np.testing.assert_array_equal(batch.targets.T, recorded["targets"])
    for ours, theirs in (
        (batch.input_lengths, "input_lengths"),
        (batch.target_lengths, "target_lengths"),
        (task.shift(jnp.asarray(batch.targets.T)), "decoder_inputs"),
    ):
      np.testing.assert_array_equal(ours, recorded[theirs])
    assert task.decode(batch.inputs, batch.input_lengths) == programs
    shown = task.decode(batch.targets, batch.target_lengths)
    expected = [text.rstrip(".") for text in config["readable_targets"]]
    assert shown == expected


# What we draw.


@pytest.mark.parametrize("name", lte.TASKS)
def test_answers(name):
  """100,000 programs of several lengths and nestings, all interpreted."""
  settings = [(1, 1), (5, 2), (6, 3), (8, 4)]
  if not LearnToExecute(name, 1, 1).operations:
    settings = [(length, 1) for length, _ in settings]
  for length, nesting in settings:
    task = LearnToExecute(name, length, nesting)
    for mixed in (False, True):
      batch, programs, answers = draw(
          task,
          100_000 // (2 * len(settings)),
          Level(length, nesting, mixed),
          seed=length,
      )
      lengths, nestings = set(), set()
      for program, answer in zip(programs, answers, strict=True):
        run = interpreter.run(name, program)
        assert run.answer == answer, program
        lengths.add(run.length)
        nestings.add(len(run.operations) or 1)
      every = (range(1, length + 1), range(1, nesting + 1))
      expected = every if mixed else ([length], [nesting])
      assert (lengths, nestings) == tuple(map(set, expected))
      # What is past the end is padding, and nothing before it is.
      assert_same(batch, task.encode(programs, answers))


@pytest.mark.parametrize("length, nesting", [(2, 1), (3, 2), (4, 3)])
def test_by_token(length, nesting):
  """By token there are the same programs, and numbers beyond are unknown."""
  by_token = LearnToExecute("all", length, nesting, by_token=True)
  by_character = LearnToExecute("all", length, nesting)
  level = Level(length, nesting, mixed=True)
  batch, programs, answers = draw(by_token, 500, level)
  _, same_programs, same_answers = draw(by_character, 500, level)
  assert programs == same_programs
  for answer, same in zip(answers, same_answers, strict=True):
    assert answer == (same if int(same) < 10**length else lte.UNKNOWN)
  assert lte.UNKNOWN in answers
  assert_same(batch, by_token.encode(programs, same_answers))


def test_longest_programs_fill_the_padding():
  """One place short of the room, as in the original, or none by token."""
  for by_token in (False, True):
    task = LearnToExecute("all", 4, 3, by_token)
    batch, programs, _ = draw(task, 4000)
    longest = max(programs, key=len)
    assert batch.input_lengths.max() <= task.num_steps
    if by_token:
      assert batch.input_lengths.max() == task.num_steps
    else:
      assert len(longest) == batch.input_lengths.max()


def test_distribution():
  """Operations, comparators, loops, literals and levels are all uniform."""
  task = LearnToExecute("all", 2, 2)
  _, programs, _ = draw(task, 40_000, Level(2, 2, mixed=True))
  runs = [interpreter.run("all", program) for program in programs]
  levels = collections.Counter((r.length, len(r.operations)) for r in runs)
  assert_uniform(levels, 4)
  operations = [o for r in runs for o in r.operations]
  kinds = collections.Counter(o.rstrip("<>123456789") for o in operations)
  assert_uniform(kinds, 5)
  for name, count in (("if", 2), ("for", 9)):
    variants = (o for o in operations if o.startswith(name))
    assert_uniform(collections.Counter(variants), count)
  # A chain's operations have nothing to do with one another. One level of
  # nesting is left out: with so few programs the splits take their toll.
  pairs = collections.Counter(
      tuple(o.rstrip("<>123456789") for o in r.operations)
      for r in runs
      if len(r.operations) == 2
  )
  assert_uniform(pairs, 25)
  two_digits = [r for r in runs if r.length == 2 and len(r.operations) == 2]
  for position in (0, -1):  # The innermost A, and the last operand.
    literals = collections.Counter(r.literals[position] for r in two_digits)
    assert_uniform(literals, 90)


def assert_uniform(counter, kinds):
  """Asserts chi-squared below 5 standard deviations from its mean."""
  assert len(counter) == kinds
  counts = np.array(list(counter.values()))
  expected = counts.sum() / kinds
  chi_squared = np.sum((counts - expected) ** 2) / expected
  freedom = kinds - 1
  assert chi_squared < freedom + 5 * np.sqrt(2 * freedom), counter


# Each example is a function of its number.


def test_programs_of_a_seed():
  """These, in all versions: runs are resumed, and figures compared, by them."""
  task = LearnToExecute("program", 3, 2)
  level = Level(3, 2, mixed=True)
  for split, expected in (
      ("train", ["(2+9)-4", "x=(341-378)for[6]x+=974", "2+4"]),
      ("test", ["x=3for[2]x+=6", "85if42<75else85", "963if434<722else152"]),
  ):
    assert draw(task, 3, level, seed=1, split=split)[1] == expected


@pytest.mark.parametrize("split", lte.SPLITS)
def test_examples_do_not_depend_on_one_another(split):
  task = LearnToExecute("program", 3, 2)
  level = Level(3, 2, mixed=True)
  whole = task.sample(3, np.arange(200), level, split)
  for numbers in ([7], [0, 1, 2, 50, 51, 199], range(100, 140)):
    numbers = np.array(numbers, np.int64)
    part = task.sample(3, numbers, level, split)
    assert_same(part, [x[numbers] for x in whole])


def test_seeds_and_splits_differ():
  task = LearnToExecute("addition", 5, 2)
  drawn = [
      draw(task, 200, seed=seed, split=split)[1]
      for seed in (0, 1)
      for split in lte.SPLITS
  ]
  assert len({program for programs in drawn for program in programs}) > 1190


def test_batches():
  """From any step, for any share: the examples that have these numbers."""
  task = LearnToExecute("copy", 4)
  level = Level(4, 1, mixed=True)
  for step, indices in ((0, np.arange(4)), (5, np.arange(2, 4))):
    batches = task.batches(1, step, indices, 4, level)
    for t in range(step, step + 2100):
      batch = next(batches)
      if t % 300 == 0 or t > 2098:
        assert_same(batch, task.sample(1, 4 * t + indices, level))


# Splits.


@pytest.mark.parametrize(
    "name, length, nesting",
    [("all", 3, 2), ("addition", 1, 1), ("copy", 2, 1), ("copy", 1, 1)],
)
def test_splits_are_disjoint(name, length, nesting):
  task = LearnToExecute(name, length, nesting)
  found = {
      split: set(draw(task, 2000, split=split)[1]) for split in lte.SPLITS
  }
  for split, programs in found.items():
    assert programs
    for program in programs:
      assert lte.split_of(program) == split
  if name == "copy":  # Every literal is somewhere.
    assert sum(map(len, found.values())) == 9 * 10 ** (length - 1)


def test_split_sizes():
  splits = collections.Counter(lte.split_of(str(i)) for i in range(20_000))
  for split, sixteenths in (("train", 14), ("valid", 1), ("test", 1)):
    share = sixteenths / 16
    error = 5 * np.sqrt(share * (1 - share) / 20_000)
    assert abs(splits[split] / 20_000 - share) < error


def test_split_of_programs():
  """These, in all versions: no run may train on another's test programs."""
  splits = {str(i): lte.split_of(str(i)) for i in range(10, 60)}
  found = {x: split for x, split in splits.items() if split != "train"}
  assert found == {
      "17": "test",
      "21": "valid",
      "31": "valid",
      "33": "valid",
      "38": "test",
      "55": "valid",
  }


def test_split_of_too_long_a_program():
  assert lte.split_of("1" * 2040) in lte.SPLITS
  with pytest.raises(ValueError, match="at most 2,040 characters, got 2,041"):
    lte.split_of("1" * 2041)


def test_split_does_not_depend_on_the_setting():
  """A short program is in the same split whatever room there is for others."""
  _, programs, _ = draw(
      LearnToExecute("program", 6, 3), 500, Level(2, 1), split="test"
  )
  task = LearnToExecute("program", 2, 1)
  trained_on = set(draw(task, 20_000)[1])
  assert not trained_on & set(programs)
  by_token = LearnToExecute("program", 2, 1, by_token=True)
  assert not set(draw(by_token, 20_000)[1]) & set(programs)


def test_empty_split_is_an_error(monkeypatch):
  monkeypatch.setattr(
      lte, "_splits", lambda text: np.zeros(len(text), np.int64)
  )
  task = LearnToExecute("copy", 1)
  task.sample(0, np.arange(3))
  with pytest.raises(ValueError, match="split 'test' must have.*'copy'.* none"):
    task.sample(0, np.arange(3), split="test")


# Errors.


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("sum",), "task must be one of .*'addition'.* got 'sum'"),
        (("all", 0), "length must be from 1 to 8, got 0"),
        (("all", 9), "length must be from 1 to 8, got 9"),
        (("all", 7, 1, True), "length must be from 1 to 6 by token, got 7"),
        (("all", 5, 0), "nesting must be at least 1, got 0"),
        (("copy", 5, 2), "nesting must be 1 for task 'copy'.* got 2"),
        (("all", 5, 76), "nesting must leave .* 5 at most 2040 .* got 76"),
    ],
)
def test_errors(arguments, message):
  with pytest.raises(ValueError, match=message):
    LearnToExecute(*arguments)


def test_the_longest_programs():
  task = LearnToExecute("all", 5, 75)
  program = task.sample(0, np.arange(1), split="test")
  assert program.input_lengths[0] <= task.num_steps <= 2040


@pytest.mark.parametrize(
    "level", [Level(0, 1), Level(4, 1), Level(3, 0), Level(3, 3, True)]
)
def test_wrong_level(level):
  task = LearnToExecute("all", 3, 2)
  with pytest.raises(ValueError, match="level must have.*1 to 3.*1 to 2"):
    task.sample(0, np.arange(2), level)


@pytest.mark.parametrize(
    "examples", [[], [-1, 3], [-1, 0, 1], [0.0], [1, 1], [2, 1], [[0, 1]], 3]
)
def test_wrong_examples(examples):
  with pytest.raises(ValueError, match="examples must be numbers, .* got "):
    LearnToExecute("copy", 3).sample(0, np.array(examples))


def test_wrong_seed():
  with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
    LearnToExecute("copy", 3).sample(-1, np.arange(2))


def test_wrong_split_and_text():
  task = LearnToExecute("copy", 3)
  with pytest.raises(ValueError, match="split must be one of .* 'dev'"):
    task.sample(0, np.arange(2), split="dev")
  with pytest.raises(ValueError, match="programs must .* most 4 .*'12345'"):
    task.encode(["1", "12345"], ["1", "2"])
  with pytest.raises(ValueError, match="answers must have at most 4"):
    task.encode(["1"], ["12345"])


# Curricula.


def test_constant_curricula():
  for name, mixed in (("baseline", False), ("mix", True)):
    curriculum = Curriculum(name, 3, 2, window=2)
    assert not curriculum.adapts
    for _ in range(5):
      assert curriculum.level == Level(3, 2, mixed)
      curriculum.update(1.0)


@pytest.mark.parametrize("name, mixed", [("naive", False), ("combine", True)])
def test_adaptive_curricula(name, mixed):
  """Length first, then nesting, each once the loss stands still."""
  curriculum = Curriculum(name, 2, 3, threshold=0.1, window=3)
  levels = []
  for _ in range(15):
    levels.append(curriculum.level)
    curriculum.update(1.0)
  expected = [(1, 1), (2, 1), (2, 2), (2, 3), (2, 3)]
  assert levels == [Level(*level, mixed) for level in expected for _ in "123"]


@pytest.mark.parametrize(
    "losses, rises",
    [
        ([1.0, 1.0], False),  # Too early to tell.
        ([1.0, 1.1, 1.05], True),
        ([2.0, 1.0, 0.5], False),  # Falls; the original would go up.
        ([0.5, 1.0, 2.0], False),
        ([9.0, 2.0, 1.0, 1.0, 1.0], True),  # Only the last three count.
        ([0.0, 0.0, 0.0], False),
    ],
)
def test_level_rule(losses, rises):
  curriculum = Curriculum("naive", 5, 2, threshold=0.1, window=3)
  for loss in losses:
    assert curriculum.level == Level(1, 1)
    curriculum.update(loss)
  assert curriculum.level == Level(1 + rises, 1)


def test_curriculum_defaults():
  """Ten losses, of which one may differ from the next by a tenth of them."""
  curriculum = Curriculum("naive", 2, 1)
  for _ in range(9):
    curriculum.update(1.0)
  assert curriculum.level == Level(1, 1)
  curriculum.update(1.0)
  assert curriculum.level == Level(2, 1)
  for slope, rises in ((9, True), (11, False)):
    curriculum = Curriculum("naive", 2, 1)
    for i in range(10):
      curriculum.update(100 + slope * (i - 4.5))
    assert curriculum.level == Level(1 + rises, 1)


def test_curriculum_errors():
  with pytest.raises(ValueError, match="curriculum must be one of .*'easy'"):
    Curriculum("easy", 3, 2)
  with pytest.raises(ValueError, match="window must be at least 2, got 1"):
    Curriculum("naive", 3, 2, window=1)


# Score.


def test_score():
  random = np.random.default_rng(0)
  steps, n, size = 4, 6, 5
  logits = random.normal(size=(steps, n, size)).astype(np.float32)
  targets = random.integers(size, size=(steps, n)).astype(np.int32)
  lengths = np.array([1, 2, 3, 4, 4, 2], np.int32)
  for i in (1, 3):  # Two answers are right, one of them only up to its end.
    targets[: lengths[i], i] = logits[: lengths[i], i].argmax(axis=1)
  targets[0, 0] = (logits[0, 0].argmax() + 1) % size
  loss, correct, solved = jax.jit(lte.score)(logits, targets, lengths)
  total = 0.0
  for i in range(n):
    right = 0
    for t in range(lengths[i]):
      exponentials = np.exp(logits[t, i].astype(np.float64))
      total -= np.log(exponentials[targets[t, i]] / exponentials.sum())
      right += logits[t, i].argmax() == targets[t, i]
    assert int(correct[i]) == right
    assert bool(solved[i]) == (right == lengths[i])
  np.testing.assert_allclose(loss, total / (steps * n), rtol=1e-6)
  assert solved.tolist()[:4] == [0.0, 1.0, 0.0, 1.0]
  assert float(correct[0]) == 0


# The background thread.


def counting(step, setting):
  while True:
    yield step, setting
    step += 1


def test_prefetcher():
  prefetcher = Prefetcher(counting, size=3)
  asked = [(t, "a") for t in range(10)]
  asked += [(t, "b") for t in range(10, 15)]  # The setting changes,
  asked += [(3, "b"), (4, "b"), (40, "b"), (40, "b")]  # and the step.
  assert [prefetcher(*pair) for pair in asked] == asked
  threads = threading.active_count()
  prefetcher.close()
  assert threading.active_count() == threads - 1
  assert prefetcher(7) == (7, None)
  prefetcher.close()


def test_prefetcher_passes_errors_on():
  def failing(step, setting):
    yield from range(step, 2)
    raise KeyError("broken")

  prefetcher = Prefetcher(failing)
  assert prefetcher(0) == 0
  assert prefetcher(1) == 1
  with pytest.raises(KeyError, match="broken"):
    prefetcher(2)
  with pytest.raises(ValueError, match="must not end"):
    Prefetcher(lambda step, setting: iter([]))(0)


def test_evaluate():
  """Accuracies and standard errors of parts that do not divide evenly."""
  random = np.random.default_rng(0)
  count = 2 * 1280 + 100
  lengths = random.integers(1, 5, size=count).astype(np.int32)
  correct = random.binomial(lengths, 0.8).astype(np.float32)
  places = np.arange(count)
  test = lte.Batch(places, lengths, places, lengths)

  def score_batch(part):
    found = correct[part.inputs]
    solved = (found == part.target_lengths).astype(np.float32)
    return np.mean(found), found, solved

  found = lte.evaluate(score_batch, test, 1280)
  np.testing.assert_allclose(found["eval_loss"], correct.mean(), rtol=1e-6)
  accuracy = correct.sum() / lengths.sum()
  np.testing.assert_allclose(found["eval_character_accuracy"], accuracy)
  solved = correct == lengths
  np.testing.assert_allclose(found["eval_answer_accuracy"], solved.mean())
  # The spread over samples of programs drawn with replacement.
  draws = random.integers(count, size=(2000, count))
  ratios = correct[draws].sum(axis=1) / lengths[draws].sum(axis=1)
  np.testing.assert_allclose(
      found["eval_character_accuracy_standard_error"], ratios.std(), rtol=0.1
  )
  np.testing.assert_allclose(
      found["eval_answer_accuracy_standard_error"],
      solved[draws].mean(axis=1).std(),
      rtol=0.1,
  )
