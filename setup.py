"""Builds the package `mosix` from pysrc/, its cffi extension and its two C programs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).resolve().parent
PARTS = (
    "balancer",
    "cli",
    "config",
    "deputy",
    "image",
    "kernel",
    "lab",
    "native",
    "node",
    "remote",
    "syscalls",
    "wire",
)


class BuildPrograms(build_ext):
    """Also makes pysrc/native/bin/{mosrun,mosix-guest,agent.bin}, which are not extensions."""

    def run(self) -> None:
        make = ["make", "-s", "-C", str(HERE / "pysrc" / "native"), f"PYTHON={sys.executable}"]
        subprocess.run(make, check=True)
        super().run()


setup(
    packages=["mosix", *(f"mosix.{part}" for part in PARTS)],
    package_dir={"mosix": "pysrc"},
    package_data={
        "mosix": ["py.typed", "include/*.h"],
        "mosix.lab": ["initramfs.sh"],
        "mosix.native": ["bin/*", "abi.h"],
    },
    cffi_modules=["pysrc/native/build.py:ffi"],
    cmdclass={"build_ext": BuildPrograms},
)
