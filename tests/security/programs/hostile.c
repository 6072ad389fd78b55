// SPDX-License-Identifier: GPL-2.0
/*
 * A program that does as it is told, around every library: a line is one order, and its result
 * the answer.
 *
 *   64 NR A B C D E F    the system call, by the instruction
 *   x32 NR …             with the bit of x32
 *   32 NR A B C D E      by int 0x80
 *   vdso                 where it is: the address of its first page
 *   write ADDRESS        a byte there: 0, or the signal that it gave
 *   end                  exits with 0
 *
 * Numbers in hex; a result in decimal.  `buffer` and `name` as an argument stand for addresses.
 */
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>

static char name[] = "/etc/passwd";
static char buffer[4096];
static sigjmp_buf faulted;

static long call64(uint64_t nr, const uint64_t *a)
{
	register uint64_t r10 __asm__("r10") = a[3];
	register uint64_t r8 __asm__("r8") = a[4];
	register uint64_t r9 __asm__("r9") = a[5];
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(nr), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
}

static long call32(uint64_t nr, const uint64_t *a)
{
	int result;

	__asm__ volatile("int $0x80"
			 : "=a"(result)
			 : "a"((uint32_t)nr), "b"(a[0]), "c"(a[1]), "d"(a[2]), "S"(a[3]), "D"(a[4])
			 : "memory", "r8", "r9", "r10", "r11");
	return result;
}

static void on_fault(int number)
{
	siglongjmp(faulted, number);
}

static int write_there(uintptr_t address)
{
	int number = sigsetjmp(faulted, 1);

	if (!number)
		*(volatile char *)address = 1;
	return number;
}

int main(void)
{
	char line[512];

	signal(SIGSEGV, on_fault);
	signal(SIGBUS, on_fault);
	signal(SIGSYS, on_fault);
	setvbuf(stdout, NULL, _IOLBF, 0);
	puts("ready");
	while (fgets(line, sizeof(line), stdin)) {
		char *how = strtok(line, " \n");
		uint64_t words[7] = { 0 };
		char *word;
		int n = 0;

		while (n < 7 && (word = strtok(NULL, " \n"))) {
			if (!strcmp(word, "buffer"))
				words[n++] = (uintptr_t)buffer;
			else if (!strcmp(word, "name"))
				words[n++] = (uintptr_t)name;
			else
				words[n++] = strtoull(word, NULL, 16);
		}
		if (!how || !strcmp(how, "end"))
			return 0;
		if (!strcmp(how, "64"))
			printf("%ld\n", call64(words[0], words + 1));
		else if (!strcmp(how, "x32"))
			printf("%ld\n", call64(words[0] | 0x40000000, words + 1));
		else if (!strcmp(how, "32"))
			printf("%ld\n", call32(words[0], words + 1));
		else if (!strcmp(how, "vdso"))
			printf("%lu\n", getauxval(AT_SYSINFO_EHDR));
		else if (!strcmp(how, "write"))
			printf("%d\n", write_there(words[0]));
		else
			return 2;
	}
	return 0;
}
