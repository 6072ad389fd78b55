"""C behind cffi: injection, pages, redirector, agent; and the two C programs."""
