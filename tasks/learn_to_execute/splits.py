"""Which programs are for training, for validation and for test.

Glossary of shapes:
  - n: programs.
  - T: bytes of a padded program.
"""

import numpy as np

SPLITS = ("train", "valid", "test")

# Odd, from a stream that is the same for any number of them.
_HASH_FACTORS = np.random.Philox(key=2018).random_raw(256) | np.uint64(1)
MAX_CHARACTERS = 8 * (len(_HASH_FACTORS) - 1)  # The last mixes the sum.


def split_of(program: str) -> str:
  """Returns which of `SPLITS` a program belongs to.

  Args:
    program: its text.

  Raises:
    ValueError: if it is longer than any that is drawn.
  """
  data = program.encode()
  if len(data) > MAX_CHARACTERS:
    raise ValueError(
        f"program must be of at most {MAX_CHARACTERS:,} characters, got "
        f"{len(data):,}."
    )
  data += bytes(-len(data) % 8)
  return SPLITS[splits_of_bytes(np.frombuffer(data, np.uint8)[None])[0]]


def splits_of_bytes(text: np.ndarray) -> np.ndarray:
  """Returns indices into `SPLITS` of bytes `[n, T]` padded with 0, T % 8 = 0.

  Words of 0 add nothing, so that the width of the padding does not matter.
  """
  words = np.ascontiguousarray(text).view("<u8")  # [n, T / 8]
  digest = words @ _HASH_FACTORS[: words.shape[1]]  # Modulo 2^64.
  digest = (digest ^ (digest >> np.uint64(32))) * _HASH_FACTORS[-1]
  bucket = digest >> np.uint64(60)  # One of 16.
  return np.where(bucket == 0, 2, np.where(bucket == 1, 1, 0))
