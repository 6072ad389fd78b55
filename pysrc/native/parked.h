/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Calls that wait in mosix.ko instead of behind a seccomp listener.  For the two who serve calls,
 * redirect.c and listener.c: a request of /dev/mosix looks to them like a notification, and is
 * answered as one.  What a request means is said in mosix_uapi.h.
 */
#ifndef MOSIX_PARKED_H
#define MOSIX_PARKED_H

#include <errno.h>
#include <linux/audit.h>
#include <linux/ioctl.h>
#include <linux/seccomp.h>
#include <stdint.h>
#include <unistd.h>

#include "mosix_uapi.h"

static inline struct seccomp_notif mx_parked_notif(const struct mosix_request *request)
{
	return (struct seccomp_notif){
		.id = request->id,
		.pid = request->tid,
		.data = {
			.nr = request->nr,
			.arch = AUDIT_ARCH_X86_64,
			.instruction_pointer = request->ip,
			.args = { request->args[0], request->args[1], request->args[2], request->args[3],
				  request->args[4], request->args[5] },
		},
	};
}

static inline struct mosix_reply mx_parked_reply(uint64_t id, int64_t result, int go_on)
{
	return (struct mosix_reply){
		.id = id,
		.result = go_on ? 0 : result,
		.flags = go_on ? MOSIX_RUN_NATIVELY : 0,
	};
}

/* 0 or -errno (-ENOENT: the caller has been killed). */
static inline int mx_parked_answer(int device, struct mosix_reply reply)
{
	while (write(device, &reply, sizeof(reply)) < 0)
		if (errno != EINTR)
			return -errno;
	return 0;
}

#endif
