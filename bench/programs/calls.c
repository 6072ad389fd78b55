// SPDX-License-Identifier: GPL-2.0
/* calls KIND COUNT FILE: nanoseconds of one of COUNT calls: getpid, a read of 4 KiB, or open+read+close. */
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>

#include "batch.h"

static char data[4096];

int main(int argc, char **argv)
{
	long count;
	int file;

	if (argc != 4)
		return 2;
	count = atol(argv[2]);
	file = open(argv[3], O_RDONLY);
	if (file < 0)
		die(argv[3]);
	while (asked()) {
		double begin = now_ns();

		for (long i = 0; i < count; i++) {
			if (!strcmp(argv[1], "getpid")) {
				syscall(SYS_getpid);
			} else if (!strcmp(argv[1], "read")) {
				if (pread(file, data, sizeof(data), 0) < 0)
					die("pread");
			} else {
				int fd = open(argv[3], O_RDONLY);

				if (fd < 0 || read(fd, data, 1) != 1 || close(fd))
					die("open");
			}
		}
		answer((now_ns() - begin) / count);
	}
	return 0;
}
