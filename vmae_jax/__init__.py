"""JAX codebase for pretraining masked video models."""

__version__ = "0.1.0"
