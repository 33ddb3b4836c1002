"""What pyproject.toml has no words for: `configs/` becomes a part of the package."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["simclr_jax", "simclr_jax.*"]), "simclr_jax.configs"],
    package_dir={"simclr_jax.configs": "configs"},
)
