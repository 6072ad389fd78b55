// SPDX-License-Identifier: GPL-2.0
/*
 * mosrun: asks mosd to make this very process a job, then executes the program.
 *
 * The program inherits everything as it came from the shell: environment, signal mask and
 * dispositions, limits, descriptors.  So nothing here changes any of them, options are parsed
 * by mosd, and what is opened is close-on-exec and above standard error.  Own failures exit
 * with 125; 126 and 127 are env(1)'s.  Without mosd the same parser, run as a program, says what
 * is wrong with the options or prints the help.
 *
 * Request: a 4-byte length, then msgpack {"t": "launch", "argv": [bin...], "columns": n};
 * standard error rides along.  Answer: a 4-byte length, then msgpack
 * [what, number, deputy, text] (mosix.node.requests.LaunchAnswer).  An answer PREPARE, which asks
 * us into the cgroup of the job and to install a filter that tells of opens of
 * /proc/self/{special} and of questions for CPU time, may come before the one that tells what to do.
 */
#include "interface.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define LAUNCH_FAILED 125
#define NOT_EXECUTABLE 126
#define NOT_FOUND 127

/* Options come first and are short: what is behind this many bytes is the program's. */
#define MAX_ARGV_BYTES (192u << 10)
#define MAX_ARGV_WORDS 8192u
#define MAX_ANSWER (64u << 10)
#define RUN_DIR "/run/mosix"
#define PARSER "mosix.cli.mosrun"
#ifndef MOSIX_PYTHON
#define MOSIX_PYTHON "python3"
#endif

/* SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV: a signal does not end a call that was received. */
#define FILTER_WAIT_KILLABLE (1u << 5)

enum { EXECUTE = 0, TO_STDOUT = 1, TO_STDERR = 2, PREPARE = 3, EXECUTE_AS = 4 };

struct buffer {
	unsigned char *data;
	size_t size;
	size_t room;
};

struct answer {
	uint64_t what;
	uint64_t number;
	uint64_t deputy;
	const char *text;
	size_t text_size;
};

static void complain(const char *what, const char *why, const char *hint)
{
	fprintf(stderr, "mosrun: %s%s%s%s%s%s\n", what, *why ? ": " : "", why, *hint ? " (" : "", hint,
		*hint ? ")" : "");
}

static __attribute__((noreturn)) void fail(const char *what, const char *why, const char *hint)
{
	complain(what, why, hint);
	exit(LAUNCH_FAILED);
}

static void put(struct buffer *b, const void *data, size_t size)
{
	if (size > b->room - b->size) {
		size_t room = (b->size + size) * 2;
		unsigned char *grown = realloc(b->data, room);

		if (!grown)
			fail("out of memory", "", "");
		b->data = grown;
		b->room = room;
	}
	memcpy(b->data + b->size, data, size);
	b->size += size;
}

static void put_byte(struct buffer *b, unsigned int value)
{
	unsigned char byte = value;

	put(b, &byte, 1);
}

/* A msgpack type byte followed by a big-endian 32-bit number. */
static void put_u32(struct buffer *b, unsigned int type, uint32_t value)
{
	unsigned char bytes[5] = { type, value >> 24, value >> 16, value >> 8, value };

	put(b, bytes, sizeof(bytes));
}

/* A string shorter than 32 bytes. */
static void put_name(struct buffer *b, const char *name)
{
	put_byte(b, 0xa0 | strlen(name));
	put(b, name, strlen(name));
}

static uint32_t columns(void)
{
	const char *said = getenv("COLUMNS");
	struct winsize size;
	int n = said ? atoi(said) : 0;
	int fd;

	for (fd = 1; n <= 0 && fd <= 2; fd++)
		if (ioctl(fd, TIOCGWINSZ, &size) == 0)
			n = size.ws_col;
	return n > 0 && n < 10000 ? n : 80;
}

static void build_request(struct buffer *b, int argc, char **argv)
{
	uint32_t words = 0;
	uint32_t length;
	size_t bytes = 0;
	int i;

	for (i = 1; i < argc && words < MAX_ARGV_WORDS; i++, words++) {
		bytes += strlen(argv[i]) + 5;
		/* The first word always goes, cut if it must be: mosd only looks at its start. */
		if (bytes > MAX_ARGV_BYTES && words)
			break;
	}
	put(b, "\0\0\0\0", 4);
	put_byte(b, 0x83); /* a map of 3 */
	put_name(b, "t");
	put_name(b, "launch");
	put_name(b, "columns");
	put_u32(b, 0xce, columns());
	put_name(b, "argv");
	put_u32(b, 0xdd, words);
	for (i = 1; i <= (int)words; i++) {
		size_t size = strlen(argv[i]);

		if (size > MAX_ARGV_BYTES)
			size = MAX_ARGV_BYTES;
		put_u32(b, 0xc6, size);
		put(b, argv[i], size);
	}
	length = b->size - 4;
	memcpy(b->data, &length, 4);
}

/*
 * There is no mosd to parse the options.  Starting Python takes a while, so a command line that
 * begins with a program is not parsed at all.
 */
static __attribute__((noreturn)) void parse_without_mosd(int argc, char **argv, const char *why)
{
	char width[12];
	char **command;
	int n = 0;

	if (argc < 2 || argv[1][0] == '-') {
		command = calloc(argc + 6, sizeof(*command));
		if (!command)
			fail("out of memory", "", "");
		snprintf(width, sizeof(width), "%u", columns());
		command[n++] = MOSIX_PYTHON;
		command[n++] = "-P"; /* never import from the current directory */
		command[n++] = "-m";
		command[n++] = PARSER;
		command[n++] = width;
		command[n++] = (char *)why;
		memcpy(command + n, argv + 1, (argc > 1 ? argc - 1 : 0) * sizeof(*command));
		execvp(command[0], command);
	}
	fail("mosd does not run here", why, "start it as root: mosd --detach");
}

/* A socket above the standard descriptors, which stay closed if they were. */
static int connect_mosd(const char *path, int argc, char **argv)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int low, fd;

	if (strlen(path) >= sizeof(address.sun_path))
		fail("the path of mosd's socket is too long", path, "see MOSIX_RUN_DIR");
	strcpy(address.sun_path, path);
	low = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (low < 0)
		fail("no socket", strerror(errno), "");
	fd = low;
	if (low < 3) {
		fd = fcntl(low, F_DUPFD_CLOEXEC, 3);
		if (fd < 0)
			fail("no socket", strerror(errno), "");
		close(low);
	}
	while (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
		if (errno == EINTR)
			continue;
		if (errno == EISCONN)
			break;
		parse_without_mosd(argc, argv, strerror(errno));
	}
	return fd;
}

/* Sends it all; descriptor `with`, if it is open, rides along. */
static void send_with(int fd, const void *data, size_t size, int with)
{
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int))];
	} control = { 0 };
	struct iovec iov;
	struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1 };
	size_t sent = 0;

	if (with >= 0 && fcntl(with, F_GETFD) >= 0) {
		struct cmsghdr *header;

		message.msg_control = &control;
		message.msg_controllen = sizeof(control.space);
		header = CMSG_FIRSTHDR(&message);
		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(header), &with, sizeof(int));
	}
	while (sent < size) {
		ssize_t n;

		iov.iov_base = (char *)data + sent;
		iov.iov_len = size - sent;
		n = sendmsg(fd, &message, MSG_NOSIGNAL);
		if (n < 0) {
			if (errno == EINTR)
				continue;
			fail("mosd closed the connection", strerror(errno), "see mosd's log");
		}
		sent += n;
		message.msg_control = NULL;
		message.msg_controllen = 0;
	}
}

/* Fills `data`; a descriptor that comes with its first byte goes to *passed. */
static void receive(int fd, void *data, size_t size, int *passed)
{
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int))];
	} control = { 0 };
	struct iovec iov = { data, size };
	struct msghdr message = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control.space),
	};
	ssize_t n;

	do {
		n = recvmsg(fd, &message, MSG_WAITALL | MSG_CMSG_CLOEXEC);
	} while (n < 0 && errno == EINTR);
	if (n > 0 && message.msg_controllen && control.header.cmsg_type == SCM_RIGHTS)
		memcpy(passed, CMSG_DATA(&control.header), sizeof(int));
	while (n > 0 && (size_t)n < size) {
		ssize_t more = recv(fd, (char *)data + n, size - n, MSG_WAITALL);

		if (more < 0 && errno == EINTR)
			continue;
		n = more > 0 ? n + more : more;
	}
	if (n <= 0)
		fail("mosd closed the connection", n < 0 ? strerror(errno) : "", "see mosd's log");
}

/* Big-endian number of `size` bytes at *at. */
static uint64_t take(const unsigned char **at, const unsigned char *end, size_t size)
{
	uint64_t value = 0;

	if ((size_t)(end - *at) < size)
		fail("mosd's answer is malformed", "", "are mosrun and mosd of one version?");
	while (size--)
		value = value << 8 | *(*at)++;
	return value;
}

static uint64_t take_number(const unsigned char **at, const unsigned char *end)
{
	unsigned int type = take(at, end, 1);

	if (type < 0x80)
		return type;
	if (type >= 0xcc && type <= 0xcf)
		return take(at, end, (size_t)1 << (type - 0xcc));
	fail("mosd's answer is malformed", "", "are mosrun and mosd of one version?");
}

static void parse_answer(struct answer *a, const unsigned char *at, const unsigned char *end)
{
	unsigned int type;

	if (take(&at, end, 1) != 0x94) /* an array of 4 */
		fail("mosd's answer is malformed", "", "are mosrun and mosd of one version?");
	a->what = take_number(&at, end);
	a->number = take_number(&at, end);
	a->deputy = take_number(&at, end);
	type = take(&at, end, 1);
	if (type >= 0xa0 && type <= 0xbf)
		a->text_size = type & 0x1f;
	else if (type >= 0xd9 && type <= 0xdb)
		a->text_size = take(&at, end, (size_t)1 << (type - 0xd9));
	else
		a->text_size = SIZE_MAX;
	if (a->text_size > (size_t)(end - at))
		fail("mosd's answer is malformed", "", "are mosrun and mosd of one version?");
	a->text = (const char *)at;
}

static void receive_answer(int fd, struct answer *answer, int *passed)
{
	unsigned char *data;
	uint32_t size;

	receive(fd, &size, sizeof(size), passed);
	if (!size || size > MAX_ANSWER)
		fail("mosd's answer is malformed", "", "are mosrun and mosd of one version?");
	data = malloc(size);
	if (!data)
		fail("out of memory", "", "");
	receive(fd, data, size, passed);
	parse_answer(answer, data, data + size);
}

/*
 * Makes us a member of the cgroup.  A thread that moves itself need not wait for an RCU grace
 * period as everybody else must who moves a process.  mosd looks whether it has worked, and does it
 * itself if not.
 */
static void join(int directory)
{
	int tasks = openat(directory, "tasks", O_WRONLY | O_CLOEXEC);

	if (tasks >= 0) {
		ssize_t ignored = write(tasks, "0", 1);

		(void)ignored;
		close(tasks);
	}
	close(directory);
}

/* Notifies of opens with the flags of interface.h, of questions for the caller's CPU time and of
 * nothing else.  The new descriptor, or -errno; *unprivileged: set-user-ID programs will run
 * without their privilege. */
static int install_filter(int *unprivileged)
{
	const uint32_t flags_of_open = offsetof(struct seccomp_data, args[1]);
	const uint32_t flags_of_openat = offsetof(struct seccomp_data, args[2]);
	const uint32_t clock_or_who = offsetof(struct seccomp_data, args[0]);
	const int of_cpu_time = 5;
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 0, 19),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_openat, 13, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_open, 10, 0),
		/* of_cpu_time */
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clock_gettime, 2, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getrusage, 4, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_times, 14, 13),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, clock_or_who),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, CLOCK_PROCESS_CPUTIME_ID, 12, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, CLOCK_THREAD_CPUTIME_ID, 11, 10),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, clock_or_who),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, RUSAGE_SELF, 9, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, RUSAGE_THREAD, 8, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)RUSAGE_CHILDREN, 7, 6),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, flags_of_open),
		BPF_STMT(BPF_JMP | BPF_JA, 1),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, flags_of_openat),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, MX_INTERFACE_READ, 3, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, MX_INTERFACE_WRITE, 2, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, MX_INTERFACE_EXCHANGE, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
	};
	struct sock_fprog program = { sizeof(code) / sizeof(code[0]), code };
	unsigned int flags = SECCOMP_FILTER_FLAG_NEW_LISTENER | FILTER_WAIT_KILLABLE;
	long fd;

	_Static_assert(sizeof(code) / sizeof(code[0]) == 23, "the jumps are counted");
	for (;;) {
		fd = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
		if (fd >= 0)
			return fd;
		if (errno == EINVAL && flags & FILTER_WAIT_KILLABLE) { /* before Linux 5.19 */
			flags &= ~FILTER_WAIT_KILLABLE;
			/* A signal would make a call fail that cannot. */
			code[of_cpu_time] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
		} else if (errno == EACCES && !*unprivileged && !prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
			*unprivileged = 1;
		else
			return -errno;
	}
}

/* A filter without no_new_privs needs CAP_SYS_ADMIN; under it a set-user-ID program runs, but
 * as its caller: then it is said. */
static void warn_of_setuid(const char *name)
{
	const char *path = strchr(name, '/') ? "" : getenv("PATH");
	char file[4096];
	struct stat st;

	while (path) {
		const char *end = strchrnul(path, ':');

		if (snprintf(file, sizeof(file), "%.*s%s%s", (int)(end - path), path, end > path ? "/" : "", name) <
			    (int)sizeof(file) &&
		    !stat(file, &st) && S_ISREG(st.st_mode) && !access(file, X_OK)) {
			if ((st.st_mode & S_ISUID && st.st_uid != geteuid()) ||
			    (st.st_mode & (S_ISGID | S_IXGRP)) == (S_ISGID | S_IXGRP))
				complain(name, "runs without the privilege of its set-user-ID bit",
					 "mosrun --no-interface keeps it");
			return;
		}
		path = *end ? end + 1 : NULL;
	}
}

static void prepare(int fd, int directory, int interface, int *unprivileged)
{
	int listener = -1;

	if (directory >= 0)
		join(directory);
	if (interface)
		listener = install_filter(unprivileged);
	send_with(fd, "", 1, listener);
	if (listener >= 0)
		close(listener);
	else if (interface)
		complain("no files /proc/self/{special}",
			 listener == -EBUSY ? "another program serves such files here" : strerror(-listener),
			 "--no-interface leaves them out");
}

int main(int argc, char **argv)
{
	const char *run_dir = getenv("MOSIX_RUN_DIR");
	struct buffer request = { 0 };
	struct answer answer;
	char path[4096];
	int directory = -1;
	int fd, error, unprivileged = 0;
	char **program;

	if (!run_dir || !*run_dir)
		run_dir = RUN_DIR;
	if (snprintf(path, sizeof(path), "%s/control", run_dir) >= (int)sizeof(path))
		fail("the path of mosd's socket is too long", run_dir, "see MOSIX_RUN_DIR");
	/*
	 * Where Yama forbids it by default, the deputy may trace us: it may have to before the
	 * exec, when its PID is not known here yet.  EINVAL without Yama.
	 */
	prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
	build_request(&request, argc, argv);
	fd = connect_mosd(path, argc, argv);
	send_with(fd, request.data, request.size, 2);
	receive_answer(fd, &answer, &directory);
	if (answer.what == PREPARE) {
		prepare(fd, directory, answer.number, &unprivileged);
		receive_answer(fd, &answer, &directory);
	}
	if (answer.what != EXECUTE && answer.what != EXECUTE_AS) {
		FILE *out = answer.what == TO_STDOUT ? stdout : stderr;

		if (fwrite(answer.text, 1, answer.text_size, out) != answer.text_size || fflush(out))
			return LAUNCH_FAILED;
		return answer.number;
	}
	if (answer.number + (answer.what == EXECUTE_AS) >= (uint64_t)argc - 1)
		fail("mosd's answer is malformed", "", "are mosrun and mosd of one version?");
	prctl(PR_SET_PTRACER, (unsigned long)answer.deputy, 0, 0, 0);
	program = argv + 1 + answer.number;
	if (unprivileged)
		warn_of_setuid(program[0]);
	execvp(program[0], program + (answer.what == EXECUTE_AS));
	error = errno;
	complain(program[0], strerror(error), "");
	return error == ENOENT ? NOT_FOUND : NOT_EXECUTABLE;
}
