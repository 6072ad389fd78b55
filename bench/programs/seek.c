// SPDX-License-Identifier: GPL-2.0
/* forward_rtt: mean ns of an lseek on a file at home. Arguments: file, calls per batch. */
#include <fcntl.h>

#include "batch.h"

int main(int argc, char **argv)
{
	long calls = argc == 3 ? atol(argv[2]) : 0;
	int fd = argc == 3 ? open(argv[1], O_RDONLY) : -1;

	if (fd < 0)
		die("seek FILE CALLS");
	while (asked()) {
		double begin = now_ns();

		for (long i = 0; i < calls; i++)
			if (lseek(fd, i & 63, SEEK_SET) < 0)
				die("lseek");
		answer((now_ns() - begin) / calls);
	}
	return 0;
}
