"""Packaging of the Relational Memory Core."""

import pathlib
import re

import setuptools

_ROOT = pathlib.Path(__file__).parent
_VERSION = re.search(
    r'^__version__ = "(.+)"$',
    (_ROOT / "rmc" / "__init__.py").read_text(encoding="utf-8"),
    re.MULTILINE,
).group(1)

_TRAIN = [
    "absl-py",
    "chex>=0.1.91",
    "importlib_resources",  # TFDS imports it without declaring it.
    "optax>=0.2.7",  # The first whose Muon has consistent_rms.
    "orbax-checkpoint>=0.11.30",
    "safetensors>=0.5",
    "jmp",
    "tabulate",
    "tensorboardX>=2.6.2",
    "tensorflow-datasets>=4.9.9",
    "tqdm",
]
_FIGURES = ["matplotlib>=3.9"]
_ENVS = [
    "absl-py",
    "dm-env>=1.6",
    "gymnasium>=1.1",
    "pillow",
]

_DOCS = ["furo", "myst-parser>=4", "sphinx>=8"]
_TEST = [
    *_ENVS,
    *_DOCS,
    "build",
    "pytest>=8",
    "pytest-xdist>=3.6",
    "ruff",
    "setuptools>=77",
]

setuptools.setup(
    name="rmc",
    version=_VERSION,
    description=(
        "The Relational Memory Core of Santoro et al. (2018) in JAX and Haiku"
    ),
    long_description=(_ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    author="the authors of rmc",
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    packages=setuptools.find_packages(include=["rmc*", "tasks*"]),
    python_requires=">=3.11",
    install_requires=[
        "dm-haiku>=0.0.16",
        # Haiku does not ask for JAX itself.
        "jax>=0.8",
        "jaxlib>=0.8",
        "numpy>=1.26",
    ],
    extras_require={
        "cuda": ["jax[cuda12]>=0.8"],
        "tpu": ["jax[tpu]>=0.8"],
        "train": _TRAIN,
        "figures": _FIGURES,
        "envs": _ENVS,
        "docs": _DOCS,
        "test": _TEST,
    },
)
