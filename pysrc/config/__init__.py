"""The files under /etc/mosix as dataclasses."""
