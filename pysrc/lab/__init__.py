"""A cluster on one machine: nodes are namespaces and cgroups. `mosix-lab` is its command."""
