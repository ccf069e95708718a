"""The programs that train a language model and write text with it."""

import json
import socket
import types

from absl import flags
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rmc
from rmc import softmax, training
from rmc.training import checkpoint
from scripts import generate_text, train_language_model
from scripts.lib import run_flags
from tasks import language_modeling
from tasks.language_modeling import SPLITS, TrainingWindows, Vocabulary
from tests.helpers.programs import ROOT, parsed, run

FLAGS = flags.FLAGS
PRESETS = sorted((ROOT / "scripts" / "presets").glob("lm_*.flags"))
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


def make_text(folder, num_types=20, turned=False):
  """Writes a text of words that depend on the word before.

  Args:
    folder: where to.
    num_types: how many words there are.
    turned: whether each split has its last line first.

  Returns:
    The folder.
  """
  steps = 1 + (np.random.default_rng(0).random(400) < 0.2)
  folder.mkdir()
  lines = np.array([f"w{i % num_types}" for i in np.cumsum(steps)])
  for split, size in zip(SPLITS, (400, 90, 70), strict=True):
    rows = np.roll(lines[:size].reshape(-1, 10), int(turned), axis=0)
    text = "\n".join(" ".join(line) for line in rows)
    (folder / f"{split}.txt").write_text(text)
  return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = make_text(tmp_path_factory.mktemp("texts") / "text")
  load(folder)  # The first use defines flags, which a flagsaver takes back.
  return folder


def load(folder):
  """Returns the corpus of `make_text`, tokenised where `train` does it."""
  data_dir = str(folder.parent / "data")
  return language_modeling.load("text", str(folder), data_dir)


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
  more = ("--steps=9", "--eval_unroll=2,30")
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
        train_language_model.make_network(len(vocabulary)),
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
            "train_language_model",
            ["--corpus=wikitext2", "--manual_dir=nowhere"],
            "manual_dir must be a folder, got 'nowhere'. wikitext2 needs wiki.",
        ),
        (
            "generate_text",
            ["--temperature=0"],
            "--temperature=0.0: must be a finite number above 0",
        ),
        ("generate_text", [], "holds no run of a language model"),
    ],
)
def test_wrong_flags_are_one_line(tmp_path, module, arguments, message):
  result = run(f"scripts.{module}", f"--workdir={tmp_path}", *arguments)
  assert result.returncode == 2
  assert result.stderr.count("\n") == 1
  assert message in result.stderr
  assert not result.stdout
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
        (["--eval_unroll=0"], "--eval_unroll=0 must be positive integers"),
        (
            ["--nooutput_projection", "--head_size=5"],
            "output_projection is needed: the core's output has 10",
        ),
    ],
)
def test_wrong_flags(train, tmp_path, arguments, message):
  with pytest.raises(run_flags.UsageError, match=message):
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
def test_found_before_tokenising(
    train, tmp_path, folder, monkeypatch, argument, message
):
  monkeypatch.delattr(language_modeling, "load")
  arguments = ("--softmax=adaptive", "--cutoffs=9", argument)
  arguments = [argument.format(text=folder) for argument in arguments]
  with pytest.raises(run_flags.UsageError, match=message):
    train(tmp_path, *arguments)
  with pytest.raises(AttributeError):  # It would have come to that.
    train(tmp_path / "run")


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
      with pytest.raises(run_flags.UsageError, match=message):
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

  The softmax has a chunk for each step, or on eight devices for two.
  """
  num_types = len(load(folder).vocabulary)
  monkeypatch.setattr(softmax, "_MAX_LOGITS", 2 * num_types)
  monkeypatch.setattr(run_flags, "make_optimizer", lambda: optax.sgd(0.1))
  arguments = ("--steps=3", "--core=lstm")
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
  words = np.concatenate([windows(i, range(8))[:, :-1] for i in range(2)], 1)
  with parsed(*SMALL):
    network = train_language_model.make_network(len(corpus.vocabulary))
    _, expected = jax.jit(network.apply.log_probs)(
        training.load_params(tmp_path),
        words.T,
        words.T,
        network.apply.initial_state({}, 8),
    )
  (memory,) = (x for x in state_of(tmp_path, 2) if x.shape == (8, 1, 8))
  np.testing.assert_allclose(memory, expected, atol=1e-6)


def test_dropout_is_of_training_alone(about_to_train, folder):
  """Each of the two changes a loss, and neither a perplexity."""
  losses, perplexities = [], []
  for embedding, output in ((0, 0), (0.5, 0), (0, 0.5)):
    with about_to_train(
        train_language_model,
        *texts(folder),
        "--core=lstm",
        "--parallel=jit",
        f"--embedding_dropout={embedding}",
        f"--output_dropout={output}",
    ) as run:
      state = run.init()
      indices = np.arange(8, dtype=np.int32)
      loss, _ = jax.jit(run.loss_fn)(
          state.params, run.batches(0, indices), state.carry, state.key
      )
      losses.append(float(loss))
      perplexities.append(run.evaluate(state)["valid_perplexity"])
  assert len(set(losses)) == 3
  np.testing.assert_allclose(perplexities, perplexities[0], rtol=1e-6)


def test_a_dropout_is_that_of_its_flag(monkeypatch):
  seen = set()

  class Model(rmc.LanguageModel):
    def __init__(self, core, make_softmax, *dropouts, **options):
      seen.add(dropouts[:2])
      super().__init__(core, make_softmax, *dropouts, **options)

  monkeypatch.setattr(rmc, "LanguageModel", Model)
  with parsed(*SMALL, "--embedding_dropout=0.25", "--output_dropout=0.75"):
    network = train_language_model.make_network(9)
    jax.eval_shape(network.init, jax.random.key(0), jnp.zeros([1, 1], int))
  assert seen == {(0.25, 0.75)}


def test_a_perplexity_is_of_its_split_and_window(
    about_to_train, folder, monkeypatch
):
  """The test split comes at the end alone."""

  def perplexity(log_probs, initial_state, split, vocabulary, length):
    del log_probs, vocabulary
    (streams,) = {len(x) for x in jax.tree.leaves(initial_state)}
    asked = (len(split), streams, length)
    return types.SimpleNamespace(
        total=lambda: asked, parts=lambda: {"rare": (*asked, "rare")}
    )

  monkeypatch.setattr(train_language_model, "perplexity", perplexity)
  with about_to_train(
      train_language_model, *texts(folder), "--steps=9", "--eval_unroll=2,30"
  ) as run:
    state = types.SimpleNamespace(params={}, step=8)
    before = run.evaluate(state)
    state.step = 9
    found = run.evaluate(state)
  # A line of ten words has an <eos> too; there are 9 and 7 of them.
  assert before == {"eval_streams": 3, "valid_perplexity": (99, 3, 33)}
  assert found == before | {
      "test_perplexity": (77, 3, 26),
      "test_perplexity_rare": (77, 3, 26, "rare"),
      "test_perplexity_unroll_2": (77, 64, 2),
      "test_perplexity_unroll_30": (77, 64, 30),
  }


def test_seed(about_to_train, folder):
  """Of parameters and of dropout."""
  found = []
  for seed in (0, 3):
    with about_to_train(
        train_language_model, *texts(folder), "--core=lstm", f"--seed={seed}"
    ) as run:
      state = run.init()
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
    network = train_language_model.make_network(len(vocabulary))
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
    network = train_language_model.make_network(len(corpus.vocabulary))
    words = jnp.zeros([1, 1], jnp.int32)
    params = jax.jit(network.init)(jax.random.key(0), words)
    params["language_model/~/projection"]["w"] *= 10
    log_probs = jax.jit(network.apply.log_probs)

    def measure(length, batch_size, window):
      FLAGS.window = window
      return train_language_model.perplexity(
          lambda *args: log_probs(params, *args),
          network.apply.initial_state(params, batch_size),
          corpus.splits["test"],
          corpus.vocabulary,
          length,
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
    network = train_language_model.make_network(vocab_size)
    tokens = jnp.zeros([1, 1], jnp.int32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), tokens)
    return hk.data_structures.tree_size(shapes)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_presets(path):
  """They parse, and both cores are of the same size."""
  preset = f"--flagfile={path}"
  vocab_size = 33_278 if "wikitext2" in path.stem else 2000
  rmc_size = sizes_of(preset, vocab_size=vocab_size)
  lstm_size = sizes_of(preset, "--core=lstm", vocab_size=vocab_size)
  tolerance = 0.005 if path.stem == "lm_wikitext2_small" else 0.01
  assert abs(lstm_size / rmc_size - 1) < tolerance
  if path.stem == "lm_wikitext2":
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
      whole = path.stem == "lm_paper_wikitext103"
      assert FLAGS.vocab_size == (0 if whole else 250_000)


def test_demo_needs_no_network(train, tmp_path, monkeypatch):
  """The preset as it is, but for its length."""

  def refuse(*args):
    raise OSError("no network")

  monkeypatch.setattr(socket.socket, "connect", refuse)
  monkeypatch.setattr(socket, "getaddrinfo", refuse)
  preset = ROOT / "scripts" / "presets" / "lm_demo.flags"
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
  preset = ROOT / "scripts" / "presets" / "lm_demo.flags"
  with parsed(f"--flagfile={preset}", *arguments):
    network = train_language_model.make_network(vocab_size)
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
