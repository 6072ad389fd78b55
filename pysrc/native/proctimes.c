// SPDX-License-Identifier: GPL-2.0
/*
 * The reading of mx_proc_times.  mosd does this every second: in Python the calls would cost a
 * tenth of what is done around them.
 */
#include "proctimes.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int by_number(const void *a, const void *b)
{
	int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;

	return (x > y) - (x < y);
}

/* Reads "ran waited slices"; 0 if it has ended. */
static int read_times(int proc, const char *path, struct mx_times *times)
{
	char text[128], *end;
	int fd = openat(proc, path, O_RDONLY | O_CLOEXEC);
	ssize_t size;

	if (fd < 0)
		return 0;
	size = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (size <= 0)
		return 0;
	text[size] = 0;
	times->ran = strtoull(text, &end, 10);
	times->waited = strtoull(end, NULL, 10);
	return end != text;
}

static long add(int proc, const char *path, int32_t thread, struct mx_times *out, long room, long found)
{
	struct mx_times times = { .thread = thread };

	if (!read_times(proc, path, &times))
		return found;
	if (found < room)
		out[found] = times;
	return found + 1;
}

/* The threads of a process that has several */
static long add_all(int proc, const char *process, struct mx_times *out, long room, long found)
{
	char path[96];
	struct dirent *entry;
	DIR *threads;
	int fd;

	snprintf(path, sizeof(path), "%.20s/task", process);
	fd = openat(proc, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return found;
	threads = fdopendir(fd);
	if (!threads) {
		close(fd);
		return found;
	}
	while ((entry = readdir(threads))) {
		if (entry->d_name[0] < '1' || entry->d_name[0] > '9')
			continue;
		snprintf(path, sizeof(path), "%.20s/task/%.20s/schedstat", process, entry->d_name);
		found = add(proc, path, atoi(entry->d_name), out, room, found);
	}
	closedir(threads);
	return found;
}

long mx_proc_times(const char *proc, const int32_t *skip, int skipped, struct mx_times *out, long room)
{
	DIR *all = opendir(proc);
	struct dirent *entry;
	struct stat status;
	char path[64];
	long found = 0;

	if (!all)
		return -errno;
	while ((entry = readdir(all))) {
		int32_t pid = entry->d_name[0] >= '1' && entry->d_name[0] <= '9' ? atoi(entry->d_name) : 0;

		if (!pid || bsearch(&pid, skip, skipped, sizeof(*skip), by_number))
			continue;
		snprintf(path, sizeof(path), "%d/task", pid);
		/* It has a link for each thread, and two of its own. */
		if (fstatat(dirfd(all), path, &status, 0) || status.st_nlink < 3)
			continue;
		if (status.st_nlink > 3) {
			found = add_all(dirfd(all), entry->d_name, out, room, found);
			continue;
		}
		snprintf(path, sizeof(path), "%d/schedstat", pid);
		found = add(dirfd(all), path, pid, out, room, found);
	}
	closedir(all);
	return found;
}
