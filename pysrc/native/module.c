// SPDX-License-Identifier: GPL-2.0
#include "module.h"

#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>

#define PAGE 4096UL

static_assert(sizeof(struct mx_range) == sizeof(struct mosix_run) &&
		      offsetof(struct mx_range, size) == offsetof(struct mosix_run, size),
	      "ranges are given to the module as they are");

int64_t mx_module_send(int device, int pid, int fd, const struct mx_range *ranges, long count)
{
	uint64_t done = 0; /* bytes of ranges[at] that have gone: a signal may interrupt an order */
	int64_t total = 0;
	long at = 0;

	while (at < count) {
		struct mx_range rest = { ranges[at].start + (done & ~(PAGE - 1)),
					 ranges[at].size - (done & ~(PAGE - 1)) };
		struct mosix_send_pages order = {
			.pid = pid,
			.fd = fd,
			.runs = (uintptr_t)(done ? &rest : &ranges[at]),
			.count = done ? 1 : (uint32_t)(count - at < MOSIX_MOST_RUNS ? count - at : MOSIX_MOST_RUNS),
			.skip = (uint32_t)(done % PAGE),
		};

		if (ioctl(device, MOSIX_IOC_SEND_PAGES, &order) && errno != EINTR)
			return errno == EPERM && total ? -EIO : -errno;
		total += (int64_t)order.sent;
		done += order.sent;
		while (at < count && done >= ranges[at].size)
			done -= ranges[at++].size;
	}
	return total;
}

int mx_module_vmas(int device, struct mosix_vmas *order)
{
	return ioctl(device, MOSIX_IOC_VMAS, order) ? -errno : 0;
}

long mx_module_pages(int device, int pid, struct mx_range *ranges, long count, long *at, int dirty,
		     struct mx_range *out, long max)
{
	long n = 0;

	while (*at < count && n < max) {
		struct mx_range *range = &ranges[*at];
		uint64_t end = range->start + range->size;
		struct mosix_find_pages order = {
			.pid = pid,
			.flags = dirty ? MOSIX_PAGES_DIRTY : 0,
			.start = range->start,
			.end = end,
			.runs = (uintptr_t)&out[n],
			.count = (uint32_t)(max - n),
		};

		if (ioctl(device, MOSIX_IOC_FIND_PAGES, &order))
			return -errno;
		range->start = order.start;
		range->size = end - order.start;
		if (!range->size)
			++*at;
		if (n && order.count && out[n - 1].start + out[n - 1].size == out[n].start) {
			out[n - 1].size += out[n].size;
			memmove(&out[n], &out[n + 1], --order.count * sizeof(*out));
		}
		n += order.count;
	}
	return n;
}
