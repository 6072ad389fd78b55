"""MOSIX for today's Linux: ordinary programs move between machines while they run."""

__version__ = "0.1.0"
