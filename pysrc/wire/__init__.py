"""What nodes say to each other: frames, handshake, messages (sans-io)."""
