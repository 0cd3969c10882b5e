from setuptools import find_packages, setup

setup(name="vmae_jax", version="0.1.0", packages=find_packages(include=["vmae_jax*"]))
