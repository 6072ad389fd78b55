// SPDX-License-Identifier: GPL-2.0
/* A process that serves redirected calls with its own files, like a ghost: links agent_serve.c.
 * usage: agent_host CALL_FD.  Exits 90 when the call socket ends. */
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#include "agent.h"

/* The tests' deputy finds it by its name. */
struct mx_agent_state host_state = { .control_fd = -1 };

int main(int argc, char **argv)
{
	int fd = argc > 1 ? atoi(argv[1]) : -1;

	host_state.call_fd = dup2(fd, 900);
	close(fd);
	serve(&host_state);
	return 90;
}
