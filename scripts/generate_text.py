"""Writes text with a language model that `train_language_model` trained.

  python -m scripts.generate_text --workdir=runs/wikitext2 --prompt="The city"
  python -m scripts.generate_text --weights=FILE --prompt="The city"

It reads the prompt a word at a time, after an `<eos>`, then draws one word
after another. The same flags, `--seed` among them, draw the same text.
"""

from collections.abc import Sequence
import math

from absl import flags
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from scripts.lib import experiment, language_model_flags, program
from tasks import language_modeling

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(language_model_flags)

flags.DEFINE_string("prompt", "", "How the text begins.")
flags.DEFINE_integer("num_words", 200, "Words to draw.", lower_bound=1)
flags.DEFINE_float(
    "temperature", 1.0, "Log-probabilities are divided by this."
)
flags.DEFINE_integer(
    "top_k", 0, "Draw from so many likeliest words; 0: from all.", lower_bound=0
)

flags.register_validator(
    "temperature",
    lambda value: value > 0 and math.isfinite(value),
    "must be a finite number above 0",
)


def main():
  """Prints the prompt and a continuation."""
  vocabulary = language_model_flags.load_vocabulary()
  with program.usage_errors():
    network = language_model_flags.make_network(len(vocabulary))
    params, _ = experiment.load_params(
        jax.eval_shape(
            network.init, jax.random.key(0), jnp.zeros([1, 1], jnp.int32)
        )
    )
  prompt = language_modeling.tokenize(FLAGS.corpus, FLAGS.prompt)
  text = generate(
      network,
      params,
      [vocabulary.eos, *vocabulary.encode(prompt)],
      FLAGS.num_words,
  )
  print(vocabulary.decode(text[1:]))


def generate(
    network: hk.MultiTransformed,
    params: hk.Params,
    prompt: Sequence[int],
    length: int,
) -> list[int]:
  """Goes on with a text.

  Args:
    network: as `language_model_flags.make_network` returns it.
    params: its parameters.
    prompt: words, at least one.
    length: how many words to draw.

  Returns:
    The prompt and the words drawn.
  """

  @jax.jit
  def step(params, token, state, key):
    log_probs, state = network.apply.step(params, token[None], state)
    return draw(log_probs[0], FLAGS.temperature, FLAGS.top_k, key), state

  key = jax.random.key(FLAGS.seed)
  state = network.apply.initial_state(params, 1)
  text = list(prompt)
  for i in range(len(prompt) + length - 1):
    token, state = step(
        params, np.int32(text[i]), state, jax.random.fold_in(key, i)
    )
    if i + 1 == len(text):
      text.append(int(token))
  return text


def draw(
    log_probs: jax.Array, temperature: float, top_k: int, key: jax.Array
) -> jax.Array:
  """Draws a word.

  Args:
    log_probs: of all words, `[V]`.
    temperature: they are divided by it.
    top_k: draw from so many likeliest words; 0 for all.
    key: of the draw.

  Returns:
    The word, int32.
  """
  size = len(log_probs)
  values, words = jax.lax.top_k(log_probs, min(top_k or size, size))
  return words[jax.random.categorical(key, values / jnp.float32(temperature))]


if __name__ == "__main__":
  FLAGS.set_default("mode", "eval")  # The run's own flags come first.
  experiment.run_program(main)
