// SPDX-License-Identifier: GPL-2.0
/* Builds one request for the agent: its area, relocations and segments, from the shapes of the table's rows. */
#include "redirect_internal.h"

/* ---- small things ---- */

int64_t now_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec * NS + t.tv_nsec;
}

int64_t guest_now(const struct mx_redirect *r)
{
	return now_ns(CLOCK_MONOTONIC) + r->monotonic_offset_ns;
}

/* Dates are this node's, not home's. */
int date_is_nodes(const struct mx_redirect *r)
{
	return !r->clock || r->clock->direct & 1u << CLOCK_REALTIME;
}

struct timespec timespec_of(int64_t ns)
{
	struct timespec t = { ns / NS, ns % NS };

	return t;
}

int grow(char **buffer, size_t *room, size_t size)
{
	char *larger;

	if (size <= *room)
		return 0;
	size = (size + 65535) & ~(size_t)65535;
	larger = realloc(*buffer, size);
	if (!larger)
		return -ENOMEM;
	*buffer = larger;
	*room = size;
	return 0;
}

void shrink(char **buffer, size_t *room)
{
	if (*room > KEEP_BUFFER) {
		free(*buffer);
		*buffer = NULL;
		*room = 0;
	}
}

uint64_t min64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* Kernels look at the whole of a buffer before they cut a read or write to what they can do. */
int is_users(uint64_t address, uint64_t size)
{
	return size <= USER_END && address <= USER_END - size;
}

/* ---- the guest's memory ---- */

int peek(const struct mx_redirect *r, void *to, uint64_t address, size_t size)
{
	struct iovec here = { to, size }, there = { (void *)address, size };

	if (!size)
		return 0;
	return process_vm_readv(r->pid, &here, 1, &there, 1, 0) == (ssize_t)size ? 0 : -EFAULT;
}

int poke(const struct mx_redirect *r, uint64_t address, const void *from, size_t size)
{
	struct iovec here = { (void *)from, size }, there = { (void *)address, size };

	return process_vm_writev(r->pid, &here, 1, &there, 1, 0) == (ssize_t)size ? 0 : -EFAULT;
}

/* ---- building a request ---- */

char *area(const struct internal *in, uint32_t offset)
{
	return in->buffer + HEAD + offset;
}

/* Room for `size` bytes in the area; a negative errno when it would be too large. */
int64_t place(struct internal *in, uint64_t size)
{
	uint32_t at = (in->used + 7) & ~7u;

	if (size > MX_MAX_AREA || at + size > MX_MAX_AREA)
		return -ENOMEM;
	in->used = at + size;
	return at;
}

int64_t place_data(struct internal *in, uint64_t size)
{
	int64_t at = place(in, size);

	if (at >= 0 && grow(&in->buffer, &in->room, HEAD + in->used + 8) < 0)
		return -ENOMEM;
	return at;
}

int relocate(struct internal *in, uint32_t at, uint32_t to)
{
	if (in->n_relocs == MX_MAX_RELOCS)
		return -E2BIG;
	in->relocs[in->n_relocs++] = (struct mx_reloc){ at, to };
	return 0;
}

int relocate_arg(struct internal *in, int arg, uint32_t to)
{
	in->arg_offset[arg] = to;
	return relocate(in, MX_RELOC_ARG | arg, to);
}

/* Guest bytes into the area; fetched by fetch(), all of them in one system call. */
int64_t add_in(struct internal *in, uint64_t address, uint64_t size)
{
	int64_t at = place_data(in, size);

	if (at < 0 || !size)
		return at;
	if (in->n_from == MAX_SEGMENTS)
		return -E2BIG;
	in->from[in->n_from] = (struct iovec){ (void *)address, size };
	in->from_at[in->n_from++] = at;
	return at;
}

int fetch(const struct mx_redirect *r)
{
	struct internal *in = r->internal;
	struct iovec here[MAX_SEGMENTS];
	size_t wanted = 0;
	int i;

	if (!in->n_from)
		return 0;
	for (i = 0; i < in->n_from; i++) {
		here[i] = (struct iovec){ area(in, in->from_at[i]), in->from[i].iov_len };
		wanted += in->from[i].iov_len;
	}
	i = in->n_from;
	in->n_from = 0;
	return process_vm_readv(r->pid, here, i, in->from, i, 0) == (ssize_t)wanted ? 0 : -EFAULT;
}

/* The first and the last byte of a buffer, to be read and written back. */
static int add_ends(struct iovec *ends, int n, uint64_t address, uint64_t size)
{
	if (!size)
		return n;
	ends[n++] = (struct iovec){ (void *)address, 1 };
	if (size > 1)
		ends[n++] = (struct iovec){ (void *)(address + size - 1), 1 };
	return n;
}

/* Could the call write all that it may?  The guest waits, and nobody else has its memory. */
int can_write(struct mx_redirect *r)
{
	struct internal *in = r->internal;
	struct iovec *ends = in->ends, here = { in->end_bytes, 0 };
	uint32_t i;
	int n = 0;

	for (i = 0; i < (uint32_t)in->n_segments; i++)
		if (!in->segments[i].parts)
			n = add_ends(ends, n, in->segments[i].address, in->segments[i].size);
	if (in->has_var && !in->var.parts)
		n = add_ends(ends, n, in->var.address, in->var.size);
	if ((in->has_var && in->var.parts) || in->call->special == MX_SPECIAL_RECVMMSG)
		for (i = 0; i < in->n_guest_iov && n + 2 < MAX_IOV; i++)
			n = add_ends(ends, n, (uint64_t)in->guest_iov[i].iov_base, in->guest_iov[i].iov_len);
	if (!n)
		return 1;
	here.iov_len = n;
	return process_vm_readv(r->pid, &here, 1, ends, n, 0) == n &&
	       process_vm_writev(r->pid, &here, 1, ends, n, 0) == n;
}

int add_segment(struct internal *in, uint64_t address, uint32_t offset, uint32_t size, int length_segment, int message)
{
	if (in->n_segments == MAX_SEGMENTS)
		return -E2BIG;
	in->segments[in->n_segments] = (struct segment){
		.address = address,
		.offset = offset,
		.size = size,
		.length_segment = length_segment,
		.message = message,
	};
	return in->n_segments++;
}

static int64_t add_string(const struct mx_redirect *r, uint64_t address, uint32_t longest)
{
	struct internal *in = r->internal;
	uint32_t size = 0;
	int64_t at = place(in, 0);

	for (;;) {
		uint32_t piece = 4096 - (address + size) % 4096;
		char *end;

		if (piece > longest - size)
			piece = longest - size;
		if (!piece)
			return -ENAMETOOLONG;
		if (grow(&in->buffer, &in->room, HEAD + at + size + piece + 8) < 0)
			return -ENOMEM;
		if (peek(r, area(in, at + size), address + size, piece))
			return -EFAULT;
		end = memchr(area(in, at + size), 0, piece);
		if (end) {
			in->used = end + 1 - area(in, 0);
			return at;
		}
		size += piece;
	}
}

static const char *skip_slashes(const char *p)
{
	for (;;) {
		if (*p == '/')
			p++;
		else if (p[0] == '.' && (p[1] == '/' || !p[1]))
			p++;
		else
			return p;
	}
}

static const char *after(const char *p, const char *name)
{
	size_t n = strlen(name);

	if (strncmp(p, name, n) || (p[n] && p[n] != '/'))
		return NULL;
	return skip_slashes(p + n);
}

static int names_own_body(const struct mx_redirect *r, const char *path)
{
	char pid[16];
	const char *p, *q;

	if (path[0] != '/' || !(p = after(skip_slashes(path), "proc")))
		return 0;
	snprintf(pid, sizeof(pid), "%d", r->home_pid);
	if (!(q = after(p, "self")) && !(q = after(p, "thread-self")) && !(q = after(p, pid)))
		return 0;
	p = after(q, "task");
	if (p && (p = after(p, pid)))
		q = p;
	return mx_is_own_proc(q, strcspn(q, "/"));
}

/* Is the open that is being made the program's word to mosix?  Then r->asked is its name. */
static int asks(struct mx_redirect *r, int nr, const uint64_t *args, const char *path)
{
	const char *name;

	if (!r->interface || (nr != SYS_open && nr != SYS_openat) ||
	    !mx_interface_flags(args[nr == SYS_openat ? 2 : 1]))
		return 0;
	name = mx_interface_name(path);
	if (name)
		strcpy(r->asked, name);
	return !!name;
}

static uint64_t length_of(const struct mx_shape *shape, const uint64_t *args)
{
	uint64_t n;

	if (shape->length_arg == MX_NO_ARG)
		return shape->size;
	n = args[shape->length_arg];
	if (shape->unit > 1)
		n = (uint32_t)n; /* counts are ints */
	if (n > SSIZE_MAX / 2)
		return UINT64_MAX;
	return shape->size + n * (shape->unit ? shape->unit : 1);
}

void begin_request(struct mx_redirect *r)
{
	struct internal *in = r->internal;
	int i;

	in->used = in->data_size = in->out_offset = in->fixed_end = 0;
	in->n_relocs = in->n_from = in->n_segments = in->has_var = 0;
	in->request = NULL;
	for (i = 0; i < 6; i++)
		in->arg_offset[i] = UINT32_MAX;
}

/* The area is laid out: in, updated, written, and last what the result counts. */
int seal(struct mx_redirect *r, int nr, const uint64_t *args, uint32_t out_var, uint16_t out_unit, int fd_mask,
	 int flags)
{
	struct internal *in = r->internal;
	struct mx_request *q;
	size_t head = sizeof(*q) + in->n_relocs * sizeof(struct mx_reloc);
	int error = fetch(r);

	if (!error && in->purpose == FOR_GUEST && !in->done && !can_write(r))
		error = -EFAULT;
	if (error)
		return error;
	if (grow(&in->buffer, &in->room, HEAD + in->data_size + 8) < 0)
		return -ENOMEM;
	q = (struct mx_request *)(in->buffer + HEAD - head);
	memcpy(q + 1, in->relocs, in->n_relocs * sizeof(struct mx_reloc));
	*q = (struct mx_request){
		.size = in->n_relocs * sizeof(struct mx_reloc) + in->data_size,
		.nr = nr,
		.flags = flags | (in->again || in->done || in->purpose == FOR_MODE ? MX_REQ_AGAIN : 0),
		.id = ++r->id,
		.signals = r->signals,
		.data_size = in->data_size,
		.area_size = (in->used + 7) & ~7u,
		.out_offset = in->out_offset,
		.out_fixed = in->fixed_end - in->out_offset,
		.out_var = out_var,
		.out_unit = out_unit,
		.n_relocs = in->n_relocs,
		.fd_mask = fd_mask,
	};
	memcpy(q->args, args, sizeof(q->args));
	in->request = q;
	in->sent = 0;
	in->resent = 0;
	in->received = 0;
	in->written = 0;
	in->to_send = head + in->data_size;
	return 0;
}

void begin_out(struct internal *in)
{
	in->out_offset = in->fixed_end = (in->used + 7) & ~7u;
}

void end_data(struct internal *in)
{
	in->data_size = in->used;
}

/* ---- relative timeouts ---- */

static int64_t timeout_ns(int kind, uint64_t arg, const void *memory)
{
	int64_t pair[2];

	if (kind == MX_TIMEOUT_MILLISECONDS)
		return (int32_t)arg < 0 ? -1 : (int32_t)arg * 1000000LL;
	memcpy(pair, memory, sizeof(pair));
	if (kind == MX_TIMEOUT_TIMEVAL)
		pair[1] *= 1000;
	if (pair[0] < 0 || pair[1] < 0 || pair[0] > INT64_MAX / NS / 4)
		return -1; /* the ghost's kernel says EINVAL, or it is for ever */
	return pair[0] * NS + pair[1];
}

static void set_timeout(int kind, uint64_t *arg, void *memory, int64_t left)
{
	int64_t pair[2];

	if (kind == MX_TIMEOUT_MILLISECONDS) {
		*arg = (left + 999999) / 1000000;
		return;
	}
	pair[0] = left / NS;
	pair[1] = kind == MX_TIMEOUT_TIMEVAL ? left % NS / 1000 : left % NS;
	memcpy(memory, pair, sizeof(pair));
}

/* A new timeout becomes a deadline; one that was interrupted by a move gets what is left. */
void apply_deadline(struct mx_redirect *r, uint64_t *args)
{
	struct internal *in = r->internal;
	const struct mx_descriptor *d = in->call;
	void *memory = NULL;
	int64_t left;

	if (d->timeout == MX_TIMEOUT_NONE)
		return;
	if (d->timeout != MX_TIMEOUT_MILLISECONDS) {
		if (in->arg_offset[d->timeout_arg] == UINT32_MAX)
			return;
		memory = area(in, in->arg_offset[d->timeout_arg]);
	}
	if (in->deadline) {
		left = in->deadline - guest_now(r);
		set_timeout(d->timeout, &args[d->timeout_arg], memory, left > 0 ? left : 0);
		return;
	}
	left = timeout_ns(d->timeout, args[d->timeout_arg], memory);
	if (left > 0)
		in->deadline = guest_now(r) + left;
}

/* ---- calls described by shapes ---- */

int add_updates(struct mx_redirect *r, const uint64_t *args, int i, uint64_t size)
{
	struct internal *in = r->internal;
	int64_t at = add_in(in, args[i], size);
	int error;

	if (at < 0)
		return at;
	error = add_segment(in, args[i], at, size, -1, 0);
	if (error < 0)
		return error;
	return relocate_arg(in, i, at);
}

static int find_segment(const struct internal *in, uint64_t address)
{
	int i;

	for (i = 0; i < in->n_segments; i++)
		if (in->segments[i].address == address)
			return i;
	return -1;
}

/* A buffer whose capacity stands in an updated word that was fetched already. */
static int add_length_at(struct mx_redirect *r, const uint64_t *args, int i, const struct mx_shape *shape)
{
	struct internal *in = r->internal;
	int word = find_segment(in, args[shape->length_arg]);
	int32_t capacity;
	int64_t at;
	int error;

	if (word < 0)
		return -EFAULT;
	memcpy(&capacity, area(in, in->segments[word].offset), 4);
	if (capacity < 0)
		return -EINVAL;
	if (capacity > (int32_t)MAX_CONTROL) {
		capacity = MAX_CONTROL;
		memcpy(area(in, in->segments[word].offset), &capacity, 4);
	}
	at = place(in, capacity);
	if (at < 0)
		return at;
	error = add_segment(in, args[i], at, capacity, word, 0);
	if (error < 0)
		return error;
	return relocate_arg(in, i, at);
}

/* Two results in one place: which is written last, only the kernel knows. */
static int overlap(const struct internal *in)
{
	int i, k;

	for (i = 1; i < in->n_segments; i++)
		for (k = 0; k < i; k++) {
			const struct segment *a = &in->segments[i], *b = &in->segments[k];

			if (a->address < b->address + b->size && b->address < a->address + a->size)
				return 1;
		}
	return 0;
}

int build_shapes(struct mx_redirect *r, int nr, uint64_t *args, const struct mx_descriptor *d)
{
	struct internal *in = r->internal;
	uint64_t original[6], size;
	uint32_t out_var = 0;
	uint16_t out_unit = 0;
	int fd_mask = 0, error, i;
	int64_t at;

	memcpy(original, args, sizeof(original));
	for (i = 0; i < d->n_args; i++) {
		const struct mx_shape *shape = &d->args[i];

		if (shape->kind == MX_ARG_FD)
			fd_mask |= 1 << i;
		if (shape->kind >= MX_ARG_PATH && original[i] >= USER_END)
			return -EFAULT; /* even where nothing is read or written */
		if (shape->kind < MX_ARG_PATH || shape->kind > MX_ARG_IN || !original[i])
			continue;
		if (shape->kind == MX_ARG_IN)
			at = add_in(in, original[i], length_of(shape, original));
		else
			at = add_string(r, original[i], shape->size);
		if (at == -ENAMETOOLONG && shape->kind == MX_ARG_STRING)
			at = -EINVAL;
		if (at < 0)
			return at;
		if (shape->kind == MX_ARG_OPEN_PATH && names_own_body(r, area(in, at)))
			return MX_EV_HOME;
		if (shape->kind == MX_ARG_OPEN_PATH && asks(r, nr, original, area(in, at)))
			return MX_EV_ASKS;
		error = relocate_arg(in, i, at);
		if (error)
			return error;
	}
	begin_out(in);
	for (i = 0; i < d->n_args; i++) {
		if (d->args[i].kind != MX_ARG_INOUT || !original[i])
			continue;
		error = add_updates(r, original, i, length_of(&d->args[i], original));
		if (error)
			return error;
	}
	error = fetch(r);
	if (error)
		return error;
	end_data(in);
	for (i = 0; i < d->n_args; i++) {
		const struct mx_shape *shape = &d->args[i];

		if (!original[i])
			continue;
		if (shape->kind == MX_ARG_OUT) {
			size = length_of(shape, original);
			at = place(in, size);
			error = at < 0 ? (int)at : add_segment(in, original[i], at, size, -1, 0);
			if (error >= 0)
				error = relocate_arg(in, i, at);
		} else if (shape->kind == MX_ARG_OUT_LENGTH_AT) {
			error = add_length_at(r, original, i, shape);
		} else {
			continue;
		}
		if (error < 0)
			return error;
	}
	if (overlap(in))
		return -EINVAL;
	in->fixed_end = in->used > in->out_offset ? (in->used + 7) & ~7u : in->out_offset;
	for (i = 0; i < d->n_args; i++) {
		const struct mx_shape *shape = &d->args[i];

		if (shape->kind != MX_ARG_OUT_RESULT || !original[i])
			continue;
		size = min64(length_of(shape, original), CHUNK);
		if (shape->unit > 1 && (int32_t)original[shape->length_arg] < 0)
			size = shape->size; /* refused by the kernel: what is cut must not be positive */
		else if (shape->length_arg != MX_NO_ARG && original[shape->length_arg] > CHUNK &&
			 d->special != MX_SPECIAL_TRANSFER)
			return -EMSGSIZE; /* an int, perhaps, which is negative */
		else if (shape->length_arg != MX_NO_ARG && original[shape->length_arg] > CHUNK)
			args[shape->length_arg] = (CHUNK - shape->size) / shape->unit;
		in->used = in->fixed_end;
		at = place(in, size);
		if (at < 0)
			return at;
		in->has_var = 1;
		in->var = (struct segment){ .address = original[i], .offset = at, .size = size, .length_segment = -1 };
		in->fixed_end += shape->size;
		out_var = size - shape->size;
		out_unit = shape->unit;
		error = relocate_arg(in, i, at);
		if (error)
			return error;
	}
	apply_deadline(r, args);
	return seal(r, nr, args, out_var, out_unit, fd_mask,
		    d->special == MX_SPECIAL_ON_ERROR ? MX_REQ_OUT_ON_ERROR : 0);
}
