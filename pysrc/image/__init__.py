"""The body: capture, stream, restore."""
