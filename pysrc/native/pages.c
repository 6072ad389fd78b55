// SPDX-License-Identifier: GPL-2.0
#include "pages.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
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

/* ---- sending: one thread reads ahead while the caller's sends ---- */

#define PIECE (1UL << 20)
#define RING 4
#define MAX_IOV 256

struct pipeline {
	int pid;
	int mem_fd;
	const struct mx_range *ranges;
	long count;
	char *buffers;
	size_t filled[RING];
	unsigned int head;   /* pieces read */
	unsigned int tail;   /* pieces sent */
	int error;           /* the reader's */
	int done;            /* the reader has read all, or the sender gave up */
	pthread_mutex_t lock;
	pthread_cond_t moved;
	long range;          /* reader's position */
	uint64_t offset;
};

/* Fills one piece from the reader's position on; bytes, 0 at the end, or -errno. */
static long fill_piece(struct pipeline *p, char *buffer)
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
		got = process_vm_readv(p->pid, &local, 1, remote, (unsigned long)n, 0);
		if (got < 0 && errno != EFAULT)
			return -errno;
		if (got <= 0) {
			size_t part = remote[0].iov_len < PAGE ? remote[0].iov_len : PAGE;

			got = read_some(p->pid, p->mem_fd, (uint64_t)remote[0].iov_base, buffer + filled, part);
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

static void *read_ahead(void *arg)
{
	struct pipeline *p = arg;
	long n;

	do {
		unsigned int slot;

		pthread_mutex_lock(&p->lock);
		while (p->head - p->tail == RING && !p->done)
			pthread_cond_wait(&p->moved, &p->lock);
		slot = p->head % RING;
		n = p->done ? 0 : 1;
		pthread_mutex_unlock(&p->lock);
		if (n)
			n = fill_piece(p, p->buffers + slot * PIECE);
		pthread_mutex_lock(&p->lock);
		if (n > 0) {
			p->filled[slot] = (size_t)n;
			p->head++;
		} else {
			p->error = (int)n;
			p->done = 1;
		}
		pthread_cond_signal(&p->moved);
		pthread_mutex_unlock(&p->lock);
	} while (n > 0);
	return NULL;
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

static int64_t send_simple(struct pipeline *p, int fd)
{
	int64_t total = 0;

	for (;;) {
		long n = fill_piece(p, p->buffers);
		int error;

		if (n <= 0)
			return n ? n : total;
		error = send_all(fd, p->buffers, (size_t)n);
		if (error)
			return error;
		total += n;
	}
}

static int64_t send_pipelined(struct pipeline *p, int fd)
{
	pthread_t reader;
	int64_t total = 0;
	int error = 0;

	if (pthread_create(&reader, NULL, read_ahead, p))
		return send_simple(p, fd);
	pthread_mutex_lock(&p->lock);
	for (;;) {
		unsigned int slot = p->tail % RING;

		while (p->head == p->tail && !p->done)
			pthread_cond_wait(&p->moved, &p->lock);
		if (p->head == p->tail)
			break;
		pthread_mutex_unlock(&p->lock);
		error = send_all(fd, p->buffers + slot * PIECE, p->filled[slot]);
		pthread_mutex_lock(&p->lock);
		if (error) {
			p->done = 1;
			pthread_cond_signal(&p->moved);
			break;
		}
		total += (int64_t)p->filled[slot];
		p->tail++;
		pthread_cond_signal(&p->moved);
	}
	if (!error)
		error = p->error;
	pthread_mutex_unlock(&p->lock);
	pthread_join(reader, NULL);
	return error ? error : total;
}

int64_t mx_send_pages(int pid, int mem_fd, int fd, const struct mx_range *ranges, long count)
{
	struct pipeline p = {
		.pid = pid,
		.mem_fd = mem_fd,
		.ranges = ranges,
		.count = count,
		.lock = PTHREAD_MUTEX_INITIALIZER,
		.moved = PTHREAD_COND_INITIALIZER,
	};
	uint64_t size = 0;
	int64_t result;

	for (long i = 0; i < count; i++) {
		if (!ranges[i].size)
			return -EINVAL;
		size += ranges[i].size;
	}
	p.buffers = mmap(NULL, RING * PIECE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p.buffers == MAP_FAILED)
		return -errno;
	/* a thread costs more than it saves for a few pieces */
	result = size > 4 * PIECE ? send_pipelined(&p, fd) : send_simple(&p, fd);
	munmap(p.buffers, RING * PIECE);
	return result;
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
