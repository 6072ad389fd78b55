/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Which opens are the program's words to mosix: mosix(7), "Interface for programs".
 *
 * One text for the three that must agree: the filter that mosrun installs at home (front.c), the
 * thread that serves it (listener.c) and the redirector of a guest (redirect.c).  Flags that any
 * library call adds (O_CLOEXEC, O_LARGEFILE) make an ordinary open of it.
 */
#ifndef MOSIX_INTERFACE_H
#define MOSIX_INTERFACE_H

#include <fcntl.h>
#include <string.h>

#define MX_INTERFACE_READ 0
#define MX_INTERFACE_WRITE (O_WRONLY | O_CREAT)
#define MX_INTERFACE_EXCHANGE (O_RDWR | O_CREAT)

#define MX_INTERFACE_DIRECTORY "/proc/self/"
/* Longer than any of the names, with its end. */
#define MX_INTERFACE_NAME 16

static inline int mx_interface_flags(unsigned int flags)
{
	return flags == MX_INTERFACE_READ || flags == MX_INTERFACE_WRITE || flags == MX_INTERFACE_EXCHANGE;
}

#define MX_INTERFACE_NAMES                                                                                         \
	"migrate", "lock", "whereami", "nmigs", "sigmig", "unsupportok", "glob", "needmem", "cpujob", "decayrate", \
		"localtime", "clear"

/* The name of the special file behind `path`, or NULL.  Those of the manual that are not here
 * are not served yet: they are opened like any other path, and do not exist. */
static inline const char *mx_interface_name(const char *path)
{
	static const char *const names[] = { MX_INTERFACE_NAMES };
	size_t prefix = sizeof(MX_INTERFACE_DIRECTORY) - 1, i;

	if (strncmp(path, MX_INTERFACE_DIRECTORY, prefix))
		return NULL;
	for (i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (!strcmp(path + prefix, names[i]))
			return names[i];
	return NULL;
}

#endif
