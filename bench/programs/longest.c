// SPDX-License-Identifier: GPL-2.0
/* reconnect_ms: ns of the longest of the lseeks on a file at home that were made within some time.
 * Arguments: file, milliseconds. */
#include <fcntl.h>

#include "batch.h"

int main(int argc, char **argv)
{
	double time_ns = argc == 3 ? atol(argv[2]) * 1e6 : 0;
	int fd = argc == 3 ? open(argv[1], O_RDONLY) : -1;

	if (fd < 0 || !time_ns)
		die("longest FILE MILLISECONDS");
	while (asked()) {
		double begin = now_ns(), last = begin, longest = 0;

		while (last - begin < time_ns) {
			double now;

			if (lseek(fd, 0, SEEK_SET) < 0)
				die("lseek");
			now = now_ns();
			if (now - last > longest)
				longest = now - last;
			last = now;
		}
		answer(longest);
	}
	return 0;
}
