// SPDX-License-Identifier: GPL-2.0
/* read_stream: ns for reading a whole file with reads of one size. Arguments: file, KiB. */
#include <fcntl.h>

#include "batch.h"

int main(int argc, char **argv)
{
	size_t size = argc == 3 ? (size_t)atol(argv[2]) << 10 : 0;
	char *buffer = malloc(size);
	int fd = argc == 3 ? open(argv[1], O_RDONLY) : -1;

	if (fd < 0 || !size || !buffer)
		die("stream FILE KIB");
	while (asked()) {
		double begin = now_ns();
		ssize_t got;

		if (lseek(fd, 0, SEEK_SET) < 0)
			die("lseek");
		while ((got = read(fd, buffer, size)) > 0)
			;
		if (got < 0)
			die("read");
		answer(now_ns() - begin);
	}
	return 0;
}
