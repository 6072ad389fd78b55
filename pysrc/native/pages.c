// SPDX-License-Identifier: GPL-2.0
#include "pages.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define PAGE 4096UL

/* <linux/fs.h> of kernel 6.7, which Debian 12's headers lack */
struct page_region {
	uint64_t start;
	uint64_t end;
	uint64_t categories;
};

struct pm_scan_arg {
	uint64_t size;
	uint64_t flags;
	uint64_t start;
	uint64_t end;
	uint64_t walk_end;
	uint64_t vec;
	uint64_t vec_len;
	uint64_t max_pages;
	uint64_t category_inverted;
	uint64_t category_mask;
	uint64_t category_anyof_mask;
	uint64_t return_mask;
};

#define MX_PAGEMAP_SCAN _IOWR('f', 16, struct pm_scan_arg)
#define IS_PRESENT (1 << 3)
#define IS_SWAPPED (1 << 4)
#define IS_PFNZERO (1 << 5)
#define IS_GUARD (1 << 8) /* since 6.15 */

#define ENTRY_PRESENT (1ULL << 63)
#define ENTRY_SWAPPED (1ULL << 62)
#define ENTRY_GUARD (1ULL << 58)

#define SCAN_BATCH 512

static long add_range(struct mx_range *out, long n, uint64_t start, uint64_t end)
{
	if (n && out[n - 1].start + out[n - 1].size == start) {
		out[n - 1].size += end - start;
		return n;
	}
	out[n].start = start;
	out[n].size = end - start;
	return n + 1;
}

static long scan_ioctl(int fd, uint64_t *start, uint64_t end, struct mx_range *out, long max)
{
	static int no_guard; /* the kernel does not know IS_GUARD: it has no guard regions to report */
	struct page_region regions[SCAN_BATCH];
	long n = 0;

	while (*start < end && n < max) {
		struct pm_scan_arg arg = {
			.size = sizeof(arg),
			.start = *start,
			.end = end,
			.vec = (uint64_t)regions,
			.vec_len = max - n < SCAN_BATCH ? (uint64_t)(max - n) : SCAN_BATCH,
			.category_inverted = IS_PFNZERO,
			.category_mask = IS_PFNZERO,
			.category_anyof_mask = IS_PRESENT | IS_SWAPPED,
			.return_mask = IS_PRESENT | (no_guard ? 0 : IS_GUARD),
		};
		long got = ioctl(fd, MX_PAGEMAP_SCAN, &arg);

		if (got < 0) {
			if (errno == EINVAL && !no_guard) {
				no_guard = 1;
				continue;
			}
			return -errno;
		}
		for (long i = 0; i < got; i++) {
			if (regions[i].categories & IS_GUARD)
				return -ENOTSUP;
			n = add_range(out, n, regions[i].start, regions[i].end);
		}
		if (arg.walk_end <= *start)
			break;
		*start = arg.walk_end;
	}
	return n;
}

static long scan_entries(int fd, uint64_t *start, uint64_t end, struct mx_range *out, long max)
{
	uint64_t entries[SCAN_BATCH];
	long n = 0;

	while (*start < end) {
		size_t pages = (end - *start) / PAGE;
		ssize_t got;

		if (pages > SCAN_BATCH)
			pages = SCAN_BATCH;
		got = pread(fd, entries, pages * 8, (off_t)(*start / PAGE * 8));
		if (got < 8)
			return got < 0 ? -errno : -EFAULT;
		for (long i = 0; i < got / 8; i++) {
			if (entries[i] & ENTRY_GUARD)
				return -ENOTSUP;
			if (entries[i] & (ENTRY_PRESENT | ENTRY_SWAPPED)) {
				if (n == max && out[n - 1].start + out[n - 1].size != *start)
					return n;
				n = add_range(out, n, *start, *start + PAGE);
			}
			*start += PAGE;
		}
	}
	return n;
}

long mx_page_scan(int pagemap_fd, uint64_t *start, uint64_t end, struct mx_range *out, long max, int plain)
{
	long n;

	if (max < 1)
		return -EINVAL;
	if (!plain) {
		n = scan_ioctl(pagemap_fd, start, end, out, max);
		if (n != -ENOTTY && n != -EINVAL)
			return n;
	}
	return scan_entries(pagemap_fd, start, end, out, max);
}

static long read_some(int pid, int mem_fd, uint64_t addr, void *buf, size_t size)
{
	struct iovec local = { buf, size }, remote = { (void *)addr, size };
	ssize_t n = process_vm_readv(pid, &local, 1, &remote, 1, 0);

	/* process_vm_readv obeys the protection, /proc/PID/mem does not */
	if (n < 0 && errno == EFAULT && mem_fd >= 0) {
		n = pread(mem_fd, buf, size, (off_t)addr);
		if (n < 0 && errno == EIO)
			errno = EFAULT;
	}
	return n < 0 ? -errno : n;
}

long mx_readable(int pid, int mem_fd, uint64_t start, uint64_t size)
{
	uint64_t low = 0, high = size / PAGE; /* pages below low can be read, those from high on not */
	char byte;

	if (!high)
		return 0;
	if (read_some(pid, mem_fd, start + (high - 1) * PAGE, &byte, 1) == 1)
		return (long)size;
	high--;
	while (low < high) {
		uint64_t mid = (low + high) / 2;
		long n = read_some(pid, mem_fd, start + mid * PAGE, &byte, 1);

		if (n == 1)
			low = mid + 1;
		else if (n == 0 || n == -EFAULT)
			high = mid;
		else
			return n;
	}
	return (long)(low * PAGE);
}

/* ---- sending ---- */

/*
 * Small enough to stay in the CPU's cache between the copy from the process and the copy
 * into the socket.  A second thread reading ahead was measured to gain nothing.
 */
#define PIECE (256UL << 10)
#define MAX_IOV 256

struct position {
	const struct mx_range *ranges;
	long count;
	long range;
	uint64_t offset;
};

/* Fills one piece from the position on; bytes, 0 at the end, or -errno. */
static long fill_piece(int pid, int mem_fd, struct position *p, char *buffer)
{
	size_t filled = 0;

	while (filled < PIECE && p->range < p->count) {
		struct iovec remote[MAX_IOV];
		struct iovec local = { buffer + filled, 0 };
		uint64_t offset = p->offset;
		long range = p->range, got;
		int n = 0;

		while (n < MAX_IOV && range < p->count && filled + local.iov_len < PIECE) {
			uint64_t left = p->ranges[range].size - offset;
			size_t part = PIECE - filled - local.iov_len;

			if (part > left)
				part = left;
			remote[n].iov_base = (void *)(p->ranges[range].start + offset);
			remote[n].iov_len = part;
			local.iov_len += part;
			n++;
			offset += part;
			if (offset == p->ranges[range].size) {
				range++;
				offset = 0;
			}
		}
		got = process_vm_readv(pid, &local, 1, remote, (unsigned long)n, 0);
		if (got < 0 && errno != EFAULT)
			return -errno;
		if (got <= 0) {
			size_t part = remote[0].iov_len < PAGE ? remote[0].iov_len : PAGE;

			got = read_some(pid, mem_fd, (uint64_t)remote[0].iov_base, buffer + filled, part);
			if (got <= 0)
				return got ? got : -EFAULT;
		}
		filled += (size_t)got;
		for (uint64_t step = (uint64_t)got; step;) {
			uint64_t left = p->ranges[p->range].size - p->offset;

			if (step < left) {
				p->offset += step;
				break;
			}
			step -= left;
			p->range++;
			p->offset = 0;
		}
	}
	return (long)filled;
}

static int send_all(int fd, const char *data, size_t size)
{
	while (size) {
		ssize_t n = write(fd, data, size);

		if (n < 0) {
			if (errno == EINTR)
				continue;
			return -errno;
		}
		data += n;
		size -= (size_t)n;
	}
	return 0;
}

int64_t mx_send_pages(int pid, int mem_fd, int fd, const struct mx_range *ranges, long count)
{
	struct position at = { .ranges = ranges, .count = count };
	int64_t total = 0;
	char *buffer;

	for (long i = 0; i < count; i++)
		if (!ranges[i].size)
			return -EINVAL;
	buffer = malloc(PIECE);
	if (!buffer)
		return -ENOMEM;
	for (;;) {
		long n = fill_piece(pid, mem_fd, &at, buffer);
		int error = n < 0 ? (int)n : send_all(fd, buffer, (size_t)n);

		if (error)
			total = error;
		if (error || !n)
			break;
		total += n;
	}
	free(buffer);
	return total;
}

int mx_get_robust_list(int tid, uint64_t *head, uint64_t *length)
{
	void *at = NULL;
	size_t len = 0;

	if (syscall(SYS_get_robust_list, tid, &at, &len))
		return -errno;
	*head = (uint64_t)at;
	*length = len;
	return 0;
}
