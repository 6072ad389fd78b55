"""Home side: the process that owns a job's ghosts and serves what the bodies ask."""
