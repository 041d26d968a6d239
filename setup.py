"""Which packages there are; everything else is declared in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    # The configurations lie beside the package, where people look for them, and travel inside it.
    packages=[*find_packages(include=["rb_jax", "rb_jax.*"]), "rb_jax.configs"],
    package_dir={"rb_jax.configs": "configs"},
)
