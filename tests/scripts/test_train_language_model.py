"""The programs that train a language model and write text with it."""

import json
import socket

from absl import flags
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmc import softmax, training
from rmc.training import checkpoint
from scripts import generate_text, train_language_model
from scripts.lib.language_model_flags import make_network
from scripts.lib.program import UsageError
from tasks import language_modeling
from tasks.language_modeling import (
  SPLITS,
  TrainingWindows,
  Vocabulary,
  perplexity,
)
from tests.helpers.in_process import exit_of
from tests.helpers.programs import ROOT, parsed, run
from tests.helpers.texts import load, make_text

FLAGS = flags.FLAGS
PRESETS = ROOT / "scripts" / "presets" / "language_modeling"
SMALL = (
    "--corpus=text",
    "--mem_slots=1",
    "--num_heads=2",
    "--head_size=4",
    "--attention_mlp_layers=1",
    "--hidden_size=8",
    "--embedding_size=8",
    "--batch_size=8",
    "--window=5",
    "--log_every=1",
    "--eval_every=4",
    "--checkpoint_every=3",
    "--eval_streams=3",
)

NEARLY_ALL = 1 - 1e-7  # Nothing is left of the few numbers there are here.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = make_text(tmp_path_factory.mktemp("texts") / "text")
  load(folder)
  return folder


def texts(folder, small=SMALL):
  """Returns the flags of a run that reads `make_text`."""
  data_dir = folder.parent / "data"
  return (*small, f"--manual_dir={folder}", f"--data_dir={data_dir}")


@pytest.fixture
def train(train_here, folder):
  """Returns a function that trains in this process, on some devices."""

  def train(workdir, *arguments, num_devices=1, small=SMALL):
    return train_here(
        train_language_model,
        workdir,
        *texts(folder, small),
        *arguments,
        num_devices=num_devices,
    )

  return train


def test_train_evaluate_generate(tmp_path, folder):
  """The three programs, as a person runs them."""
  workdir = tmp_path / "run"
  places = (f"--workdir={workdir}", f"--data_dir={tmp_path / 'data'}")
  more = ("--steps=9", "--eval_reset_intervals=2,30")
  result = run(
      "scripts.train_language_model",
      *SMALL,
      *places,
      f"--manual_dir={folder}",
      "--core=lstm",
      *more,
  )
  assert result.returncode == 0, result.stderr
  summary = json.loads((workdir / "summary.json").read_text())
  assert summary["step"] == 9
  assert (workdir / "learning_curve.png").read_bytes()[:4] == b"\x89PNG"
  vocabulary = Vocabulary.parse((workdir / "vocabulary.txt").read_text())
  assert len(vocabulary) == 22

  # The run's own flags come first; the batch is of training alone.
  result = run(
      "scripts.train_language_model", *places, "--mode=eval", "--batch_size=2"
  )
  assert result.returncode == 0, result.stderr
  found = json.loads(result.stdout)
  assert found["step"] == 9
  assert found["eval_streams"] == 3
  names = {name for name in found if name.startswith("test_perplexity_")}
  assert names == {
      "test_perplexity_under_1k",
      "test_perplexity_unroll_2",
      "test_perplexity_unroll_30",
  }
  for name in ("valid_perplexity", "test_perplexity", *names):
    np.testing.assert_allclose(found[name], summary[name], rtol=1e-6)
  np.testing.assert_allclose(
      found["test_perplexity_under_1k"], found["test_perplexity"]
  )

  prompt = ("--prompt=w3 w4 other", "--num_words=30", "--seed=5")
  result = run("scripts.generate_text", places[0], *prompt)
  assert result.returncode == 0, result.stderr
  words = result.stdout.replace("\n", " <eos> ").split()
  assert words[:3] == ["w3", "w4", "<unk>"]
  assert set(words) <= set(vocabulary.words)
  with parsed(f"--flagfile={workdir / 'flags.txt'}", *prompt):
    again = generate_text.generate(
        make_network(len(vocabulary)),
        training.load_params(workdir),
        [vocabulary.eos, *vocabulary.encode(words[:3])],
        FLAGS.num_words,
    )
  assert vocabulary.decode(again[1:]) == result.stdout[:-1]
  result = run("scripts.generate_text", places[0], "--embedding_size=5")
  assert result.returncode == 2 and result.stderr.count("\n") == 1
  assert "is not the one of the flags" in result.stderr


@pytest.mark.parametrize(
    "module, arguments, message",
    [
        (
            train_language_model,
            ["--corpus=wikitext2", "--manual_dir=nowhere"],
            "manual_dir must be a folder, got 'nowhere'. wikitext2 needs wiki.",
        ),
        (
            generate_text,
            ["--temperature=0"],
            "--temperature=0.0: must be a finite number above 0",
        ),
        (generate_text, [], "holds no run of a language model"),
    ],
)
def test_wrong_flags_are_one_line(tmp_path, module, arguments, message):
  status, out, err = exit_of(module, f"--workdir={tmp_path}", *arguments)
  assert (status, out, err.count("\n")) == (2, "", 1)
  assert message in err
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--vocab_size=2"], "vocab_size must be 0, for all words, or"),
        (["--batch_size=89"], "has 440 words, and a batch of 89 streams of 5"),
        (["--embedding_dropout=1"], "embedding_dropout must be from 0 to"),
        (
            ["--softmax=adaptive", "--cutoffs=22"],
            "cutoffs must ascend from 1 to below the 22",
        ),
        (["--cutoffs=1,a"], "--cutoffs=1,a must be positive integers"),
        (["--eval_reset_intervals=0"], "intervals=0 must be positive integers"),
        (
            ["--nooutput_projection", "--head_size=5"],
            "output_projection is needed: the core's output has 10",
        ),
    ],
)
def test_wrong_flags(train, tmp_path, arguments, message):
  with pytest.raises(UsageError, match=message):
    train(tmp_path, *arguments)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--embedding_dropout=1", "embedding_dropout must be from 0 to"),
        ("--cutoffs=9,3", "cutoffs must ascend from 1 to below"),
        ("--workdir={text}/run", "--workdir=.*/run must not be in --manual_"),
        ("--workdir={text}", "--workdir=.* must not be in --manual_dir=.*text"),
    ],
)
def test_found_before_tokenising(train, tmp_path, folder, argument, message):
  """So that there is nothing yet where tokenised texts are kept."""
  data_dir = tmp_path / "data"
  arguments = ("--softmax=adaptive", "--cutoffs=9", f"--data_dir={data_dir}")
  with pytest.raises(UsageError, match=message):
    train(tmp_path, *arguments, argument.format(text=folder))
  assert not data_dir.exists()


def test_another_benchmarks_directory(train, tmp_path):
  """Nothing is left in it."""
  arguments = ("--steps=1", "--core=lstm")
  train(tmp_path, *arguments)
  kept = (tmp_path / "vocabulary.txt", tmp_path / "corpus.json")
  for path in kept:
    path.unlink()
  with pytest.raises(training.CheckpointError, match="seed was 0 and is 1"):
    train(tmp_path, *arguments, "--seed=1")
  assert not any(path.exists() for path in kept)


@pytest.mark.parametrize("core", ["rmc", "lstm"])
def test_resumed_run_is_the_same(train, tmp_path, core):
  """In the middle of an epoch, which is 11 updates, and of a line."""
  arguments = (f"--core={core}", "--output_dropout=0.5")
  whole = train(tmp_path / "whole", "--steps=14", *arguments)
  # The last report of the first part is out of turn, and is dropped.
  train(tmp_path / "parts", "--steps=7", *arguments)
  parts = train(tmp_path / "parts", "--steps=14", *arguments)
  assert parts == whole
  for x, y in zip(
      state_of(tmp_path / "whole", 14),
      state_of(tmp_path / "parts", 14),
      strict=True,
  ):
    np.testing.assert_array_equal(x, y)


def test_another_text(train, tmp_path):
  """A run goes on with its own text alone, and is evaluated on no other."""
  workdir = tmp_path / "run"
  train(workdir, "--steps=1", "--core=lstm")
  words = make_text(tmp_path / "words", num_types=21)
  order = make_text(tmp_path / "order", turned=True)
  again = make_text(tmp_path / "again")
  for other, name in ((words, "vocabulary.txt"), (order, "corpus.json")):
    for mode in ("train", "eval"):
      message = f"reads another text than .*{other}, whose {name} is not the"
      with pytest.raises(UsageError, match=message):
        train(
            workdir,
            "--steps=2",
            "--core=lstm",
            f"--manual_dir={other}",
            f"--mode={mode}",
        )
  train(workdir, "--steps=2", "--core=lstm", f"--manual_dir={again}")


def state_of(workdir, step):
  """Returns the parameters, then the rest of a state, carry and all."""
  directory = workdir / "checkpoints" / str(step)
  rest = checkpoint._read(directory / "rest")
  return jax.tree.leaves((training.load_params(workdir), rest))


def test_eight_devices_equal_one(train, tmp_path, monkeypatch, folder):
  """With dropout, and in the states that go from update to update.

  The softmax has a chunk for each step, or on eight devices for two. RMSProp
  whose mean squares are nothing beside epsilon is gradient descent.
  """
  num_types = len(load(folder).vocabulary)
  monkeypatch.setattr(softmax, "_MAX_LOGITS", 2 * num_types)
  arguments = ("--steps=3", "--core=lstm", "--optimizer=rmsprop")
  arguments += ("--learning_rate=1e3", "--rmsprop_epsilon=1e8")
  one = train(tmp_path / "one", "--parallel=jit", *arguments)
  state = state_of(tmp_path / "one", 3)
  assert sum(x.shape == (8, 8) for x in state) >= 2  # Hidden and cell.
  for mode in ("jit", "pmap"):
    workdir = tmp_path / mode
    eight = train(workdir, f"--parallel={mode}", *arguments, num_devices=8)
    for a, b in zip(one, eight, strict=True):
      assert a.keys() == b.keys()
      for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-5, err_msg=name)
    for x, y in zip(state, state_of(workdir, 3), strict=True):
      np.testing.assert_allclose(x, y, rtol=0, atol=1e-5)


def test_state_is_carried_in_training(train, tmp_path, folder):
  """Updates that move nothing leave the state after their windows."""
  still = ("--learning_rate=1e-30", "--embedding_dropout=0")
  train(tmp_path, "--steps=2", *still)
  corpus = load(folder)
  windows = TrainingWindows(corpus.splits["train"], 8, 5)
  params = training.load_params(tmp_path)
  with parsed(*SMALL):
    network = make_network(len(corpus.vocabulary))
    read = jax.jit(network.apply.log_probs)
    expected = network.apply.initial_state({}, 8)
    for i in range(2):
      words = windows(i, range(8)).T  # [T + 1, B]
      _, expected = read(params, words[:-1], words[1:], expected)
  (memory,) = (x for x in state_of(tmp_path, 2) if x.shape == (8, 1, 8))
  np.testing.assert_allclose(memory, expected, atol=1e-6)


def test_dropout_is_of_training_alone(experiment_of, folder):
  """Each of the two changes a loss in its own way, and neither a perplexity."""
  losses, perplexities = {}, []
  for embedding, output in ((0, 0), (0.5, 0), (NEARLY_ALL, 0), (0, NEARLY_ALL)):
    with experiment_of(
        train_language_model,
        *texts(folder),
        f"--embedding_dropout={embedding}",
        f"--output_dropout={output}",
    ) as made:
      state = made.init()
      indices = np.arange(8, dtype=np.int32)
      loss, _ = jax.jit(made.loss_fn)(
          state.params, made.batches(0, indices), state.carry, state.key
      )
      losses[embedding, output] = float(loss)
      perplexities.append(made.evaluate(state)["valid_perplexity"])
  assert len(set(losses.values())) == 4
  # Without the core's output all 22 words are as likely.
  assert losses[0, NEARLY_ALL] == pytest.approx(np.log(22), rel=1e-6)
  assert losses[NEARLY_ALL, 0] != pytest.approx(np.log(22), rel=1e-5)
  np.testing.assert_allclose(perplexities, perplexities[0], rtol=1e-6)


def test_a_perplexity_is_of_its_split_and_interval(experiment_of, folder):
  """The test split comes at the end alone."""
  corpus = load(folder)
  with experiment_of(
      train_language_model,
      *texts(folder),
      "--core=lstm",
      "--steps=9",
      "--eval_reset_intervals=2,30",
  ) as made:
    state = made.init()
    state.params["language_model/~/projection"]["w"] *= 10
    before = made.evaluate(state._replace(step=jnp.int32(8)))
    found = made.evaluate(state._replace(step=jnp.int32(9)))

    @jax.jit
    def log_probs(*arguments):
      return made.network.apply.log_probs(state.params, *arguments)

    def measure(split, streams, length):
      return perplexity(
          log_probs,
          made.network.apply.initial_state(state.params, streams),
          corpus.splits[split],
          corpus.vocabulary,
          length,
          FLAGS.window,
      ).total()

    # A line of ten words has an <eos> too; there are 9 and 7 of them.
    expected = {
        "eval_streams": 3,
        "valid_perplexity": measure("valid", 3, 33),
    }
    assert before == pytest.approx(expected)
    expected |= {
        "test_perplexity": measure("test", 3, 26),
        "test_perplexity_under_1k": measure("test", 3, 26),
        "test_perplexity_unroll_2": measure("test", 64, 2),
        "test_perplexity_unroll_30": measure("test", 64, 30),
    }
    assert found == pytest.approx(expected)
  assert len(set(expected.values())) == 5


def test_seed(experiment_of, folder):
  """Of parameters and of dropout."""
  found = []
  for seed in (0, 3):
    with experiment_of(
        train_language_model, *texts(folder), "--core=lstm", f"--seed={seed}"
    ) as made:
      state = made.init()
    found.append((state.params["language_model/~/projection"]["w"], state.key))
  for x, y in zip(*jax.device_get(found), strict=True):
    assert np.any(x != y)


def test_one_short_text_is_learnt(train, tmp_path):
  """By heart, so that it is what the likeliest words make.

  Training reads the text over and over, from the state at its end, and so does
  this: the initial state is far from all that it knows.
  """
  short = tmp_path / "text"
  short.mkdir()
  random = np.random.default_rng(0)
  lines = [[f"w{i}" for i in random.integers(30, size=9)] for _ in range(10)]
  text = "".join(" ".join(line) + "\n" for line in lines)
  for split, times in zip(SPLITS, (1, 20, 1), strict=True):
    (short / f"{split}.txt").write_text(times * text)
  workdir = tmp_path / "run"
  flags_of_run = (
      *SMALL,
      "--head_size=16",
      "--embedding_size=32",
      "--embedding_dropout=0",
  )
  records = train(
      workdir,
      f"--manual_dir={short}",
      "--learning_rate=1e-2",
      "--batch_size=5",
      "--window=20",
      "--steps=200",
      "--log_every=100",
      "--eval_every=0",
      "--eval_streams=1",
      small=flags_of_run,
  )
  assert records[-1]["valid_perplexity"] < 1.05
  vocabulary = Vocabulary.parse((workdir / "vocabulary.txt").read_text())
  prompt = [vocabulary.eos]
  for line in lines:
    prompt += [*vocabulary.encode(line), vocabulary.eos]
  with parsed(*flags_of_run, "--top_k=1"):
    network = make_network(len(vocabulary))
    found = generate_text.generate(
        network, training.load_params(workdir), prompt, 99
    )
  assert vocabulary.decode(found[len(prompt) :]) == text[:-1]


def test_draw():
  """The likeliest k, as likely as the temperature makes them."""
  probs = np.array([0.1, 0.4, 0.2, 0.3])
  keys = jax.random.split(jax.random.key(0), 4000)

  def shares(temperature, top_k):
    draw = jax.vmap(
        lambda key: generate_text.draw(
            jnp.log(jnp.float32(probs)), temperature, top_k, key
        )
    )
    return np.bincount(draw(keys), minlength=4) / len(keys)

  np.testing.assert_allclose(shares(1.0, 0), probs, atol=0.03)
  np.testing.assert_allclose(shares(1.0, 9), probs, atol=0.03)
  np.testing.assert_allclose(shares(1.0, 2), [0, 4 / 7, 0, 3 / 7], atol=0.03)
  np.testing.assert_allclose(
      shares(0.5, 0), probs**2 / np.sum(probs**2), atol=0.03
  )
  np.testing.assert_array_equal(shares(2.0, 1), [0, 1, 0, 0])


@pytest.fixture
def setting(folder):
  """A corpus, and a network whose parameters make words unlike one another.

  Yields:
    The corpus, the network, its parameters, and a function that measures the
    perplexity of the test split.
  """
  corpus = load(folder)
  with parsed(*SMALL):
    network = make_network(len(corpus.vocabulary))
    words = jnp.zeros([1, 1], jnp.int32)
    params = jax.jit(network.init)(jax.random.key(0), words)
    params["language_model/~/projection"]["w"] *= 10
    log_probs = jax.jit(network.apply.log_probs)

    def measure(length, batch_size, window):
      return perplexity(
          lambda *args: log_probs(params, *args),
          network.apply.initial_state(params, batch_size),
          corpus.splits["test"],
          corpus.vocabulary,
          length,
          window,
      ).total()

    yield corpus, network, params, measure


def test_another_seed_writes_another_text(setting):
  _, network, params, _ = setting
  found = []
  for seed in (0, 1):
    FLAGS.seed = seed
    found.append(generate_text.generate(network, params, [0, 3], 20))
  assert found[0] != found[1]
  assert all(len(text) == 22 and text[:2] == [0, 3] for text in found)


@pytest.mark.parametrize("num_streams", [1, 3])
def test_perplexity_does_not_depend_on_the_window(setting, num_streams):
  """The last one is short."""
  *_, measure = setting
  length = -(-77 // num_streams)
  expected = measure(length, num_streams, length)
  for window in (10, 25, 100):
    found = measure(length, num_streams, window)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_perplexity_against_single_steps(setting):
  """One stream is the text word by word, from an `<eos>` on."""
  corpus, network, params, measure = setting
  step = jax.jit(network.apply.step)
  state = network.apply.initial_state(params, 1)
  total, word = 0.0, corpus.vocabulary.eos
  for target in corpus.splits["test"].read(0, 77):
    table, state = step(params, np.full([1], word, np.int32), state)
    total += float(table[0, target])
    word = target
  np.testing.assert_allclose(
      measure(77, 1, 10), np.exp(-total / 77), rtol=1e-6
  )


def test_perplexity_of_reset_states(setting):
  """It is the same however many windows are read at a time."""
  *_, measure = setting
  few = measure(9, 2, 100)
  np.testing.assert_allclose(measure(9, 64, 4), few, rtol=1e-6)
  assert abs(measure(77, 1, 10) / few - 1) > 1e-3


def sizes_of(*arguments, vocab_size=2000):
  """Returns how many parameters the network of some flags has."""
  with parsed(*arguments):
    network = make_network(vocab_size)
    tokens = jnp.zeros([1, 1], jnp.int32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), tokens)
    return hk.data_structures.tree_size(shapes)


@pytest.mark.parametrize(
    "path",
    sorted({*PRESETS.iterdir()} - {PRESETS / "base.flags"}),
    ids=lambda path: path.stem,
)
def test_presets(path):
  """They parse, and both cores are of the same size."""
  preset = f"--flagfile={path}"
  vocab_size = 33_278 if "wikitext2" in path.stem else 2000
  rmc_size = sizes_of(preset, vocab_size=vocab_size)
  lstm_size = sizes_of(preset, "--core=lstm", vocab_size=vocab_size)
  tolerance = 0.005 if path.stem == "wikitext2_small" else 0.01
  assert abs(lstm_size / rmc_size - 1) < tolerance
  if path.stem == "wikitext2":
    assert 10.5e6 < rmc_size < 11.5e6
  with parsed(preset):
    if "paper" in path.stem:
      assert FLAGS.mem_slots * FLAGS.num_heads * FLAGS.head_size == 2500
      assert (FLAGS.num_heads, FLAGS.attention_mlp_layers) == (4, 5)
      assert (FLAGS.batch_size, FLAGS.window) == (384, 100)
      assert (FLAGS.learning_rate, FLAGS.max_grad_norm) == (1e-3, 0.1)
      assert (FLAGS.embedding_size, FLAGS.embedding_dropout) == (512, 0.5)
      assert (FLAGS.mem_slots, FLAGS.num_blocks) == (1, 1)
      assert (FLAGS.tied, FLAGS.softmax) == (True, "full")
      whole = path.stem == "paper_wikitext103"
      assert FLAGS.vocab_size == (0 if whole else 250_000)


def test_demo_needs_no_network(train, tmp_path, monkeypatch):
  """The preset as it is, but for its length."""

  def refuse(*args):
    raise OSError("no network")

  monkeypatch.setattr(socket.socket, "connect", refuse)
  monkeypatch.setattr(socket, "getaddrinfo", refuse)
  preset = PRESETS / "demo.flags"
  (record, *_) = train(
      tmp_path / "run",
      "--steps=1",
      "--manual_dir=",
      f"--data_dir={tmp_path / 'data'}",
      small=[f"--flagfile={preset}"],
  )
  with parsed(f"--flagfile={preset}"):
    corpus = language_modeling.load(
        "python", None, str(tmp_path / "data"), min_count=FLAGS.min_count
    )
  # Of a network that was drawn: no word is likelier than others.
  np.testing.assert_allclose(
      np.exp(record["loss"]), len(corpus.vocabulary), rtol=0.1
  )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--core=rmc"],
        ["--core=lstm"],
        ["--core=rmc", "--softmax=adaptive", "--cutoffs=200,1000"],
        ["--core=lstm", "--notied"],
    ],
    ids=" ".join,
)
def test_untrained_perplexity(arguments):
  """It is within 10 % of the number of words."""
  vocab_size = 5000
  preset = PRESETS / "demo.flags"
  with parsed(f"--flagfile={preset}", *arguments):
    network = make_network(vocab_size)
  words = np.random.default_rng(0).integers(vocab_size, size=(31, 8))
  words = words.astype(np.int32)

  def loss(key):
    params = network.init(key, words)
    state = network.apply.initial_state(params, 8)
    log_probs, _ = network.apply.log_probs(
        params, words[:-1], words[1:], state
    )
    return -jnp.mean(log_probs)

  perplexity = np.exp(jax.jit(loss)(jax.random.key(1)))
  np.testing.assert_allclose(perplexity, vocab_size, rtol=0.1)
