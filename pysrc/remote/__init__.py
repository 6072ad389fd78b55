"""Guest side: the process that owns a guest, confines it and redirects its system calls."""
