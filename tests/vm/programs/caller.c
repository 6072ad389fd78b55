// SPDX-License-Identifier: GPL-2.0
/*
 * Makes system calls as it is told, one line of standard input each, and prints what came of them:
 *   call NR [A0 [A1 [A2 [A3]]]]   (an argument "buf": 64 bytes of ours; "text:...": a string)
 *                                 -> result errno handled "content of buf"
 *   handler FLAGS                 handle SIGUSR1 with these sa_flags -> ok
 *   fork                          a child makes getppid -> its result
 *   threads N COUNT               each of N threads makes COUNT getppid -> how many gave 42
 *   exec                          become this program anew -> ready
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static char buffer[64];
static volatile int handled;
static int count;

static void handle(int number)
{
	(void)number;
	handled++;
}

static void *call_often(void *result)
{
	for (int i = 0; i < count; i++)
		*(long *)result += syscall(SYS_getppid) == 42;
	return NULL;
}

static long argument(const char *word)
{
	if (!strcmp(word, "buf"))
		return (long)buffer;
	if (!strncmp(word, "text:", 5))
		return (long)(word + 5);
	return strtol(word, NULL, 0);
}

static void make_call(char *words)
{
	long numbers[5] = { 0 }, result;
	char *word = strtok(words, " ");

	for (int i = 0; word && i < 5; i++, word = strtok(NULL, " "))
		numbers[i] = argument(word);
	memset(buffer, 0, sizeof(buffer));
	errno = 0;
	result = syscall(numbers[0], numbers[1], numbers[2], numbers[3], numbers[4]);
	printf("%ld %d %d \"%s\"\n", result, errno, handled, buffer);
	handled = 0;
}

static void fork_child(void)
{
	int status;
	pid_t pid = fork();

	if (pid == 0)
		_exit((int)syscall(SYS_getppid));
	waitpid(pid, &status, 0);
	printf("%d\n", WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status));
}

static void run_threads(int n)
{
	pthread_t threads[16];
	long results[16] = { 0 }, sum = 0;

	for (int i = 0; i < n; i++)
		pthread_create(&threads[i], NULL, call_often, &results[i]);
	for (int i = 0; i < n; i++) {
		pthread_join(threads[i], NULL);
		sum += results[i];
	}
	printf("%ld\n", sum);
}

int main(int argc, char **argv)
{
	char line[256];
	struct sigaction action = { .sa_handler = handle };

	(void)argc;
	setvbuf(stdout, NULL, _IOLBF, 0);
	puts("ready");
	while (fgets(line, sizeof(line), stdin)) {
		char *rest = line + strcspn(line, " \n");
		int more = *rest == ' ';

		line[strcspn(line, "\n")] = 0;
		*rest = 0;
		rest += more;
		if (!strcmp(line, "call")) {
			make_call(rest);
		} else if (!strcmp(line, "handler")) {
			action.sa_flags = (int)strtol(rest, NULL, 0);
			sigaction(SIGUSR1, &action, NULL);
			puts("ok");
		} else if (!strcmp(line, "fork")) {
			fork_child();
		} else if (!strcmp(line, "threads")) {
			char *end;
			int n = (int)strtol(rest, &end, 0);

			count = atoi(end);
			run_threads(n > 16 ? 16 : n);
		} else if (!strcmp(line, "exec")) {
			execv("/proc/self/exe", argv);
			return 1;
		}
	}
	return 0;
}
