// SPDX-License-Identifier: GPL-2.0
/* The smallest serving half: calls without data, until the call socket ends. */
#include <asm/unistd.h>
#include <linux/errno.h>

#include "agent.h"

long mx_redirected(long nr, const uint64_t *args);

__asm__(
	".pushsection .text,\"ax\"\n"
	".globl mx_redirected, mx_call_return\n"
	".hidden mx_redirected, mx_call_return\n"
	"mx_redirected:\n"
	"	mov %rdi, %rax\n"
	"	mov %rsi, %r11\n"
	"	mov 0(%r11), %rdi\n"
	"	mov 8(%r11), %rsi\n"
	"	mov 16(%r11), %rdx\n"
	"	mov 24(%r11), %r10\n"
	"	mov 32(%r11), %r8\n"
	"	mov 40(%r11), %r9\n"
	"	syscall\n"
	"mx_call_return:\n"
	"	ret\n"
	"	.popsection\n");

void serve(struct mx_agent_state *state)
{
	struct mx_request request;

	for (;;) {
		struct mx_reply reply = { 0 };
		long n = mx_syscall(__NR_recvfrom, state->call_fd, (long)&request, sizeof(request),
				    0x100, 0, 0);

		if (n == -EINTR)
			continue;
		if (n != sizeof(request))
			return;
		state->cancelled = 0;
		state->current_id = request.id;
		reply.id = request.id;
		reply.result = mx_redirected(request.nr, request.args);
		reply.flags = state->cancelled ? MX_REP_CANCELLED : 0;
		state->current_id = 0;
		state->calls++;
		mx_syscall(__NR_sendto, state->call_fd, (long)&reply, sizeof(reply), 0x4000, 0, 0);
	}
}
