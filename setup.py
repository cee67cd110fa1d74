"""What setup.cfg can't say: the configs, which lie at the top, are data of the package."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=['backbones*', 'poolformer_dense*']),
        'poolformer_dense.configs',
    ],
    package_dir={'poolformer_dense.configs': 'configs'},
)
