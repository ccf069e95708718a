"""Films as GIFs."""

from collections.abc import Sequence
import pathlib

from absl import flags
import numpy as np
from PIL import Image

flags.DEFINE_string("gif", None, "Where to save the episode as a GIF.")

_FRAME_SECONDS = 0.125


@flags.validator("gif", message="must name a file in a folder that exists")
def _check_gif(path: str | None) -> bool:
  if path is None:
    return True
  path = pathlib.Path(path).absolute()
  return path.parent.is_dir() and not path.is_dir()


def save_gif(path: str, frames: Sequence[np.ndarray]):
  """Writes an endless film that stands still for a second at its end.

  Args:
    path: where to.
    frames: images, uint8 [height, width, 3].
  """
  images = [Image.fromarray(frame) for frame in frames]
  durations = [int(1000 * _FRAME_SECONDS)] * (len(images) - 1) + [1000]
  images[0].save(
      path,
      format="GIF",
      save_all=True,
      append_images=images[1:],
      duration=durations,
      loop=0,
  )
