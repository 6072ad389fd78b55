/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Which pages of a stopped process hold data, and sending them.  Called by
 * image/capture.py; never touches a process that runs.
 */
#ifndef MOSIX_PAGES_H
#define MOSIX_PAGES_H

#include <stdint.h>
#include <stddef.h>

/* cffi: begin */
struct mx_range {
	uint64_t start;
	uint64_t size;
};

/*
 * The pages of [*start, end) that are present or swapped and not the zero page, as
 * merged ranges.  Returns how many (at most max) and moves *start to where it stopped;
 * -ENOTSUP: there are guard regions, which reading would trip over.  Uses PAGEMAP_SCAN,
 * or the entries of pagemap where that is missing or `plain` asks for it.
 */
long mx_page_scan(int pagemap_fd, uint64_t *start, uint64_t end, struct mx_range *out, long max, int plain);

/*
 * How many bytes from `start` can be read, up to size: a mapping of a file ends with
 * the file.  mem_fd: /proc/PID/mem or -1 (then memory without read permission counts
 * as unreadable).
 */
long mx_readable(int pid, int mem_fd, uint64_t start, uint64_t size);

/*
 * Sends the ranges, raw and in order, to a blocking descriptor.  Bytes sent, or -errno.
 * -EFAULT: memory that should be there is not.
 */
int64_t mx_send_pages(int pid, int mem_fd, int fd, const struct mx_range *ranges, long count);

/* get_robust_list(2) of another thread */
int mx_get_robust_list(int tid, uint64_t *head, uint64_t *length);
/* cffi: end */

#endif
