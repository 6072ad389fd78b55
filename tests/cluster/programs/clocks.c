/*
 * Reads all clocks, CPU numbers and random bytes through the functions of its vdso, found by its
 * symbol table as a libc does, until the file named by the argument exists; compares them with
 * the system calls and with what it read before.  Says what was wrong, how often, 0 if nothing.
 */
#include <elf.h>
#include <errno.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

typedef long function(long, long, long, long, long);

static const char *const names[] = {
	"__vdso_clock_gettime", "__vdso_gettimeofday", "time", "__vdso_clock_getres", "getcpu", "getrandom"
};
enum { GETTIME, GETTIMEOFDAY, TIME, GETRES, GETCPU, GETRANDOM, FUNCTIONS };
static function *call[FUNCTIONS];

static const clockid_t clocks[] = { CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_MONOTONIC_COARSE, CLOCK_MONOTONIC_RAW,
				    CLOCK_REALTIME,  CLOCK_TAI,	     CLOCK_REALTIME_COARSE };
enum { REALTIME = 4 };
/* The same of both, one after the other. */
static const clockid_t strict[] = { CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_REALTIME };
#define NS 1000000000LL
#define CLOCKS (sizeof(clocks) / sizeof(clocks[0]))

static void find_functions(void)
{
	const char *base = (const char *)getauxval(AT_SYSINFO_EHDR), *strings = NULL;
	const Elf64_Ehdr *eh = (const void *)base;
	const Elf64_Phdr *ph = (const void *)(base + eh->e_phoff);
	const Elf64_Sym *symbols = NULL;
	const Elf64_Dyn *dynamic = NULL;
	const uint32_t *hash = NULL;

	for (int i = 0; i < eh->e_phnum; i++)
		if (ph[i].p_type == PT_DYNAMIC)
			dynamic = (const void *)(base + ph[i].p_offset);
	for (; dynamic->d_tag; dynamic++) {
		if (dynamic->d_tag == DT_STRTAB)
			strings = base + dynamic->d_un.d_ptr;
		if (dynamic->d_tag == DT_SYMTAB)
			symbols = (const void *)(base + dynamic->d_un.d_ptr);
		if (dynamic->d_tag == DT_HASH)
			hash = (const void *)(base + dynamic->d_un.d_ptr);
	}
	for (uint32_t i = 0; hash && i < hash[1]; i++)
		for (int f = 0; f < FUNCTIONS; f++)
			if (!strcmp(strings + symbols[i].st_name, names[f]))
				call[f] = (function *)(base + symbols[i].st_value);
}

static int64_t now(clockid_t clock)
{
	struct timespec t = { -1, 0 };

	if (call[GETTIME](clock, (long)&t, 0, 0, 0))
		return -1;
	return t.tv_sec * NS + t.tv_nsec;
}

static int64_t asked(clockid_t clock)
{
	struct timespec t = { -1, 0 };

	syscall(SYS_clock_gettime, clock, &t);
	return t.tv_sec * NS + t.tv_nsec;
}

/* What vgetrandom wants its state to be: 0, or a negative error. */
static long random_params(unsigned int *params)
{
	memset(params, 0xee, 16 * sizeof(*params));
	return call[GETRANDOM] ? call[GETRANDOM](0, 0, 0, (long)params, -1) : -ENOSYS;
}

int main(int argc, char **argv)
{
	int64_t last[CLOCKS], values[CLOCKS], before;
	long rounds = 0, back[CLOCKS] = { 0 }, jumps = 0, wrong = 0, early = 0, state_wrong = 0;
	unsigned int params[16], again[16];
	void *state = NULL;
	int cpus = sysconf(_SC_NPROCESSORS_CONF);

	(void)argc;
	find_functions();
	for (int f = 0; f < FUNCTIONS - 1; f++)
		if (!call[f])
			return printf("no %s\n", names[f]), 1;
	if (!random_params(params))
		state = mmap(NULL, 4096, params[1], params[2], -1, 0);
	if (state == MAP_FAILED)
		return printf("no state for random numbers\n"), 1;
	for (unsigned int i = 0; i < CLOCKS; i++)
		last[i] = now(clocks[i]);
	printf("ready\n");
	fflush(stdout);
	do {
		for (int i = 0; i < 200; i++, rounds++) {
			struct timespec t, resolution = { 9, 9 };
			struct timeval tv = { 0, 0 };
			time_t seconds = 0;
			unsigned int cpu = ~0u;
			unsigned char bytes[32] = { 0 }, sum = 0;

			for (unsigned int c = 0; c < CLOCKS; c++) {
				values[c] = now(clocks[c]);
				back[c] += values[c] < last[c];
				jumps += values[c] - last[c] > 60 * NS;
				last[c] = values[c];
			}
			for (unsigned int c = 0; c < sizeof(strict) / sizeof(strict[0]); c++) {
				before = now(strict[c]);
				values[0] = asked(strict[c]);
				values[1] = now(strict[c]);
				early += values[0] < before || values[1] < values[0];
			}
			last[REALTIME] = now(CLOCK_REALTIME);
			wrong += call[GETTIMEOFDAY]((long)&tv, 0, 0, 0, 0) != 0;
			wrong += tv.tv_sec * NS + tv.tv_usec * 1000 < last[REALTIME] - 1000;
			wrong += call[TIME]((long)&seconds, 0, 0, 0, 0) != seconds;
			wrong += seconds < last[REALTIME] / NS - 1 || seconds > last[REALTIME] / NS + 60;
			wrong += call[GETRES](CLOCK_REALTIME, (long)&resolution, 0, 0, 0) != 0;
			wrong += resolution.tv_sec != 0 || resolution.tv_nsec == 9;
			wrong += now(CLOCK_PROCESS_CPUTIME_ID) < 0 || now(CLOCK_THREAD_CPUTIME_ID) < 0;
			wrong += call[GETTIME](77, (long)&t, 0, 0, 0) != -EINVAL;
			wrong += call[GETCPU]((long)&cpu, 0, 0, 0, 0) != 0 || cpu >= (unsigned int)cpus;
			if (state) {
				wrong += call[GETRANDOM]((long)bytes, sizeof(bytes), 0, (long)state, params[0]) !=
					 sizeof(bytes);
				for (unsigned int b = 0; b < sizeof(bytes); b++)
					sum |= bytes[b];
				wrong += !sum;
			}
		}
		/* Where it is not to be used it must not pretend. */
		if (!random_params(again))
			state_wrong += memcmp(params, again, sizeof(params)) != 0;
	} while (access(argv[1], F_OK));
	printf("back");
	for (unsigned int c = 0; c < CLOCKS; c++)
		printf(" %ld", back[c]);
	printf(" jumps %ld wrong %ld early %ld state %ld\n", jumps, wrong, early, state_wrong);
	return rounds == 0;
}
