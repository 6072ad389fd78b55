"""mosd: control socket, spawner, registry, peers."""
