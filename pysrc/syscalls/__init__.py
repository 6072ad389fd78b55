"""The one table of system calls and what is generated from it."""
