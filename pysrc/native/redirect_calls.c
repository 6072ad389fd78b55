// SPDX-License-Identifier: GPL-2.0
/* Builds the requests that no row can describe: scattered buffers, messages, select, transfers of any size. */
#include "redirect_internal.h"

/* ---- scattered buffers ---- */

static int read_iov(struct mx_redirect *r, uint64_t address, uint64_t count, uint64_t *total)
{
	struct internal *in = r->internal;
	uint64_t i;

	*total = 0;
	if (count > MAX_IOV)
		return -EINVAL;
	if (in->n_guest_iov + count > sizeof(in->guest_iov) / sizeof(in->guest_iov[0]))
		return -EMSGSIZE;
	if (peek(r, &in->guest_iov[in->n_guest_iov], address, count * sizeof(struct iovec)))
		return -EFAULT;
	for (i = 0; i < count; i++) {
		size_t size = in->guest_iov[in->n_guest_iov + i].iov_len;

		if (size > SSIZE_MAX || *total + size > SSIZE_MAX)
			return -EINVAL;
		/* Only one alone is cut before it is looked at. */
		if (!is_users((uint64_t)in->guest_iov[in->n_guest_iov + i].iov_base,
			      count == 1 ? min64(size, MAX_RW_COUNT) : size))
			return -EFAULT;
		*total += size;
	}
	in->n_guest_iov += count;
	return 0;
}

/* The part [skip, skip + size) of guest iovecs first..first+count, into in->window. */
static uint32_t cut_iov(struct internal *in, uint32_t first, uint32_t count, uint64_t skip, uint64_t size)
{
	uint32_t n = 0, i;

	for (i = first; i < first + count && size; i++) {
		struct iovec part = in->guest_iov[i];

		if (skip >= part.iov_len) {
			skip -= part.iov_len;
			continue;
		}
		part.iov_base = (char *)part.iov_base + skip;
		part.iov_len = min64(part.iov_len - skip, size);
		skip = 0;
		size -= part.iov_len;
		in->window[n++] = part;
	}
	return n;
}

static int gather(struct mx_redirect *r, uint32_t at, uint32_t first, uint32_t count, uint64_t skip, uint64_t size)
{
	struct internal *in = r->internal;
	uint32_t n = cut_iov(in, first, count, skip, size);
	struct iovec here = { area(in, at), size };

	if (!size)
		return 0;
	return process_vm_readv(r->pid, &here, 1, in->window, n, 0) == (ssize_t)size ? 0 : -EFAULT;
}

int scatter(struct mx_redirect *r, const char *from, uint32_t first, uint32_t count, uint64_t skip, uint64_t size)
{
	struct internal *in = r->internal;
	uint32_t n = cut_iov(in, first, count, skip, size);
	struct iovec here = { (void *)from, size };

	if (!size)
		return 0;
	return process_vm_writev(r->pid, &here, 1, in->window, n, 0) == (ssize_t)size ? 0 : -EFAULT;
}

/* readv, preadv, preadv2 and the writing ones: one buffer there, scattered here. */
static int build_vector(struct mx_redirect *r)
{
	struct internal *in = r->internal;
	const uint64_t *original = r->args;
	uint64_t args[6] = { original[0], 0, 0, 0, 0, 0 };
	int second = r->nr == SYS_preadv2 || r->nr == SYS_pwritev2;
	int at_position = second || r->nr == SYS_preadv || r->nr == SYS_pwritev;
	uint64_t iov[2];
	int64_t iov_at = 0, at;
	int nr, error;

	in->n_guest_iov = 0;
	error = read_iov(r, original[1], original[2], &in->total);
	if (error)
		return error;
	in->chunk = min64(in->total - in->done, CHUNK);
	/* Of nothing at all: the file is never asked, as by a read or write of 0 bytes. */
	if (second || !in->total)
		nr = r->nr;
	else if (at_position)
		nr = in->writes ? SYS_pwrite64 : SYS_pread64;
	else
		nr = in->writes ? SYS_write : SYS_read;
	if (second)
		iov_at = place_data(in, sizeof(iov));
	if (in->writes) {
		at = place_data(in, in->chunk);
		if (at < 0)
			return at;
		error = gather(r, at, 0, in->n_guest_iov, in->done, in->chunk);
		if (error)
			return error;
		end_data(in);
		begin_out(in);
	} else {
		end_data(in);
		begin_out(in);
		in->used = in->out_offset;
		at = place(in, in->chunk);
		if (at < 0)
			return at;
		in->has_var = 1;
		in->var = (struct segment){
			.offset = at, .size = in->chunk, .parts = in->n_guest_iov, .length_segment = -1
		};
	}
	if (second) {
		iov[0] = 0;
		iov[1] = in->chunk;
		memcpy(area(in, iov_at), iov, sizeof(iov));
		args[2] = 1;
		error = relocate_arg(in, 1, iov_at);
		if (!error)
			error = relocate(in, iov_at, at);
		args[5] = original[5];
	} else {
		args[2] = in->chunk;
		error = in->total ? relocate_arg(in, 1, at) : 0;
	}
	if (error)
		return error;
	if (at_position) {
		args[3] = original[3];
		if (args[3] != UINT64_MAX)
			args[3] += in->done;
	}
	return seal(r, nr, args, in->writes ? 0 : in->chunk, !in->writes, 1, 0);
}

/* ---- messages on sockets ---- */

struct message {
	uint64_t name;
	uint32_t name_size, pad;
	uint64_t iov, n_iov;
	uint64_t control, control_size;
	uint32_t flags, pad2;
	uint32_t size, pad3; /* only in arrays */
};
#define MESSAGE_SIZE 56

static int build_send(struct mx_redirect *r, int many)
{
	struct internal *in = r->internal;
	uint64_t args[6], total, count = 1;
	struct message messages[MAX_MESSAGES];
	uint32_t first[MAX_MESSAGES + 1];
	size_t step = many ? sizeof(struct message) : MESSAGE_SIZE;
	int64_t head, at, iov_at;
	uint32_t i, skipped;
	int error;

	memcpy(args, r->args, sizeof(args));
	memset(messages, 0, sizeof(messages));
	if (many) {
		if ((uint32_t)args[2] > MAX_MESSAGES)
			args[2] = MAX_MESSAGES; /* fewer may always be sent than was asked */
		count = (uint32_t)args[2];
	}
	if (peek(r, messages, args[1], count * step))
		return -EFAULT;
	in->n_guest_iov = 0;
	for (i = 0; i < count; i++) {
		struct message *m = &messages[i];

		first[i] = in->n_guest_iov;
		error = read_iov(r, m->iov, m->n_iov, &total);
		if (error && i && many) {
			args[2] = count = i; /* the call will fail at that one next time */
			break;
		}
		if (error)
			return error;
		if (m->name_size > INT_MAX || m->control_size > MAX_CONTROL)
			return m->name_size > INT_MAX ? -EINVAL : -ENOBUFS;
		if (m->name_size > 128)
			m->name_size = 128;
		if (!many) {
			in->total = total;
			in->chunk = min64(total - in->done, CHUNK);
		}
	}
	first[i] = in->n_guest_iov;
	/* The data first, the array last: the array comes back with its counts. */
	for (i = 0; i < count; i++) {
		struct message *m = &messages[i];
		uint32_t k;

		skipped = many ? 0 : in->done;
		for (total = 0, k = first[i]; k < first[i + 1]; k++)
			total += in->guest_iov[k].iov_len;
		if (!many)
			total = in->chunk;
		if (many && total > CHUNK / 2)
			return -EMSGSIZE;
		if (in->done)
			m->control = m->control_size = 0; /* went with the first part */
		at = place_data(in, total);
		if (at < 0)
			return at;
		error = gather(r, at, first[i], first[i + 1] - first[i], skipped, total);
		if (error)
			return error;
		iov_at = place_data(in, 16);
		if (iov_at < 0)
			return iov_at;
		memcpy(area(in, iov_at), &(uint64_t[2]){ 0, total }, 16);
		error = relocate(in, iov_at, at);
		if (error)
			return error;
		m->iov = iov_at;
		m->n_iov = 1;
		if (m->name) {
			at = add_in(in, m->name, m->name_size);
			if (at < 0)
				return at;
			m->name = at + 1;
		}
		if (m->control) {
			at = add_in(in, m->control, m->control_size);
			if (at < 0)
				return at;
			m->control = at + 1;
		}
	}
	error = fetch(r);
	if (error)
		return error;
	begin_out(in);
	head = place_data(in, count * step);
	if (head < 0)
		return head;
	for (i = 0; i < count; i++) {
		struct message m = messages[i];
		uint32_t base = head + i * step;

		error = relocate(in, base + 16, m.iov);
		if (!error && m.name)
			error = relocate(in, base, m.name - 1);
		if (!error && m.control)
			error = relocate(in, base + 32, m.control - 1);
		if (error)
			return error;
		memcpy(area(in, base), &m, step);
		if (many) {
			error = add_segment(in, args[1] + i * step + MESSAGE_SIZE, base + MESSAGE_SIZE, 4, -1, i + 1);
			if (error < 0)
				return error;
		}
	}
	end_data(in);
	in->fixed_end = many ? in->used : in->out_offset;
	error = relocate_arg(in, 1, head);
	if (error)
		return error;
	return seal(r, r->nr, args, 0, 0, 1, 0);
}

static int build_receive(struct mx_redirect *r, int many)
{
	struct internal *in = r->internal;
	uint64_t args[6], total, count = 1, sum = 0;
	struct message messages[MAX_MESSAGES];
	uint64_t totals[MAX_MESSAGES];
	uint32_t first[MAX_MESSAGES + 1];
	size_t step = many ? sizeof(struct message) : MESSAGE_SIZE;
	int64_t head, at, iov_at[MAX_MESSAGES];
	uint32_t i;
	int error;

	memcpy(args, r->args, sizeof(args));
	memset(messages, 0, sizeof(messages));
	if (many) {
		if ((uint32_t)args[2] > MAX_MESSAGES)
			args[2] = MAX_MESSAGES;
		count = (uint32_t)args[2];
	}
	if (peek(r, messages, args[1], count * step))
		return -EFAULT;
	in->n_guest_iov = 0;
	for (i = 0; i < count; i++) {
		struct message *m = &messages[i];

		first[i] = in->n_guest_iov;
		error = read_iov(r, m->iov, m->n_iov, &total);
		if ((error || sum + total > MX_MAX_AREA / 4) && i) {
			args[2] = count = i;
			break;
		}
		if (error)
			return error;
		if (m->name_size > INT_MAX)
			return -EINVAL;
		if (m->name_size > 128)
			m->name_size = 128;
		if (m->control_size > MAX_CONTROL)
			m->control_size = MAX_CONTROL;
		if (!many) {
			in->total = total;
			in->chunk = total = min64(total - in->done, CHUNK);
		}
		totals[i] = total;
		sum += total;
	}
	first[i] = in->n_guest_iov;
	for (i = 0; i < count; i++) {
		iov_at[i] = place_data(in, 16);
		if (iov_at[i] < 0)
			return iov_at[i];
		memcpy(area(in, iov_at[i]), &(uint64_t[2]){ 0, totals[i] }, 16);
	}
	begin_out(in);
	head = place_data(in, count * step);
	if (head < 0)
		return head;
	for (i = 0; i < count; i++) {
		uint32_t base = head + i * step;

		error = relocate(in, base + 16, iov_at[i]);
		if (error)
			return error;
		memcpy(area(in, base), &messages[i], step);
	}
	if (many && args[4]) { /* the timeout is updated */
		error = add_updates(r, args, 4, 16);
		if (!error)
			error = fetch(r);
		if (error)
			return error;
	}
	end_data(in);
	for (i = 0; i < count; i++) {
		struct message *m = &messages[i];
		uint32_t base = head + i * step;
		uint64_t address = args[1] + i * step;
		int name_word, control_word, size_word = -1;

		name_word = add_segment(in, address + 8, base + 8, 4, -1, i + 1);
		control_word = add_segment(in, address + 40, base + 40, 8, -1, i + 1);
		if (name_word < 0 || control_word < 0 || add_segment(in, address + 48, base + 48, 4, -1, i + 1) < 0)
			return -E2BIG;
		if (many) {
			size_word = add_segment(in, address + 56, base + 56, 4, -1, i + 1);
			if (size_word < 0)
				return -E2BIG;
		}
		if (m->name) {
			at = place(in, m->name_size);
			if (at < 0 || relocate(in, base, at) ||
			    add_segment(in, m->name, at, m->name_size, name_word, i + 1) < 0)
				return -E2BIG;
		}
		if (m->control) {
			at = place(in, m->control_size);
			if (at < 0 || relocate(in, base + 32, at) ||
			    add_segment(in, m->control, at, m->control_size, control_word, i + 1) < 0)
				return -E2BIG;
		}
		if (!many)
			continue;
		at = place(in, totals[i]);
		error = at < 0 ? -E2BIG : relocate(in, iov_at[i], at);
		if (!error)
			error = add_segment(in, 0, at, totals[i], size_word, i + 1);
		if (error < 0)
			return error;
		in->segments[error].first = first[i];
		in->segments[error].parts = first[i + 1] - first[i];
	}
	in->fixed_end = (in->used + 7) & ~7u;
	if (!many) {
		in->used = in->fixed_end;
		at = place(in, in->chunk);
		if (at < 0)
			return at;
		error = relocate(in, iov_at[0], at);
		if (error)
			return error;
		in->has_var = 1;
		in->var = (struct segment){
			.offset = at, .size = in->chunk, .parts = in->n_guest_iov, .length_segment = -1
		};
	}
	error = relocate_arg(in, 1, head);
	if (error)
		return error;
	apply_deadline(r, args);
	return seal(r, r->nr, args, many ? 0 : in->chunk, !many, 1, 0);
}

/* ---- select ---- */

static int build_select(struct mx_redirect *r, int pselect)
{
	struct internal *in = r->internal;
	uint64_t args[6];
	uint64_t mask[2];
	int32_t n = r->args[0];
	uint64_t size;
	int64_t at, mask_at;
	int i, error;

	memcpy(args, r->args, sizeof(args));
	if (n < 0)
		return -EINVAL;
	if (n > MAX_FD_SET)
		n = MAX_FD_SET;
	if (pselect && args[5]) {
		if (peek(r, mask, args[5], sizeof(mask)))
			return -EFAULT;
		args[5] = 0;
		at = mask[0] ? place_data(in, sizeof(mask)) : 0;
		mask_at = mask[0] ? add_in(in, mask[0], SIGSET) : 0;
		if (at < 0 || mask_at < 0)
			return -ENOMEM;
		if (mask[0]) {
			memcpy(area(in, at), mask, sizeof(mask));
			error = relocate(in, at, mask_at);
			if (!error)
				error = relocate_arg(in, 5, at);
			if (error)
				return error;
		}
	}
	size = (n + 63) / 64 * 8;
	begin_out(in);
	for (i = 1; i < 5; i++) {
		if (!args[i])
			continue;
		error = add_updates(r, args, i, i < 4 ? size : 16);
		if (error)
			return error;
	}
	error = fetch(r);
	if (error)
		return error;
	end_data(in);
	in->fixed_end = (in->used + 7) & ~7u;
	apply_deadline(r, args);
	/* The time left is written also when it fails. */
	return seal(r, r->nr, args, 0, 0, 0, MX_REQ_OUT_ON_ERROR);
}

/* ---- one buffer of any size ---- */

static int build_transfer(struct mx_redirect *r)
{
	struct internal *in = r->internal;
	uint64_t args[6];

	memcpy(args, r->args, sizeof(args));
	in->total = args[2];
	if (in->total > SSIZE_MAX)
		return -EINVAL; /* not what the kernel would make of it, but never a success */
	if (!is_users(args[1], in->total))
		return -EFAULT;
	in->chunk = min64(in->total - in->done, CHUNK);
	args[1] += in->done;
	args[2] = in->chunk;
	if (r->nr == SYS_pread64 || r->nr == SYS_pwrite64)
		args[3] += in->done;
	return build_shapes(r, r->nr, args, in->call);
}

int build(struct mx_redirect *r)
{
	struct internal *in = r->internal;
	uint64_t args[6], faults[2];

	begin_request(r);
	switch (in->call->special) {
	case MX_SPECIAL_READV:
	case MX_SPECIAL_WRITEV:
		return build_vector(r);
	case MX_SPECIAL_TRANSFER:
		return build_transfer(r);
	case MX_SPECIAL_SENDMSG:
	case MX_SPECIAL_SENDMMSG:
		return build_send(r, in->call->special == MX_SPECIAL_SENDMMSG);
	case MX_SPECIAL_RECVMSG:
	case MX_SPECIAL_RECVMMSG:
		return build_receive(r, in->call->special == MX_SPECIAL_RECVMMSG);
	case MX_SPECIAL_SELECT:
	case MX_SPECIAL_PSELECT:
		return build_select(r, in->call->special == MX_SPECIAL_PSELECT);
	case MX_SPECIAL_EXIT: /* of which the kernel takes one argument: abi.h, MX_LAST_TIMES */
		memcpy(args, r->args, sizeof(args));
		if (cpu_used(r, &args[1], &args[2], faults))
			args[1] = args[2] = 0;
		return build_shapes(r, r->nr, args, in->call);
	default:
		memcpy(args, r->args, sizeof(args));
		return build_shapes(r, r->nr, args, in->call);
	}
}

/* Is the descriptor a regular file?  Only then has a read of many pieces no end before the
 * file's: a pipe or a terminal gives what it has. */
int build_mode(struct mx_redirect *r)
{
	struct internal *in = r->internal;
	uint64_t args[6] = { r->args[0], 0, 0, 0, 0, 0 };
	int64_t at;
	int error;

	in->purpose = FOR_MODE;
	begin_request(r);
	begin_out(in);
	at = place(in, sizeof(struct stat));
	in->fixed_end = (in->used + 7) & ~7u;
	error = relocate_arg(in, 1, at);
	if (!error)
		error = seal(r, SYS_fstat, args, 0, 0, 1, 0);
	if (error)
		in->purpose = FOR_GUEST;
	return error;
}
