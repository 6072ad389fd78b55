/* SPDX-License-Identifier: GPL-2.0 */
/*
 * mosix.h: how a program in C or C++ speaks to mosix about itself, when it runs under mosrun.
 *
 * Each function is one open of a file of /proc/self that only jobs have: mosix(7), "Interface for
 * programs".  open(3) will not do: it drops or changes flags and the third argument.  In a program
 * that is no job all of them return -1 with errno ENOENT.
 */
#ifndef MOSIX_H
#define MOSIX_H

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The value of /proc/self/{name}, at most 32 bits of it; -1 with errno: EACCES, it can only be
 * written. */
static inline long mosix_read(const char *path)
{
	return syscall(SYS_open, path, 0L, 0L);
}

/* 0; -1 with errno: EACCES, it can only be read; EINVAL, no such value. */
static inline long mosix_write(const char *path, unsigned int value)
{
	return syscall(SYS_open, path, (long)(O_WRONLY | O_CREAT), (unsigned long)value);
}

/* Sets it and returns what it was; -1 as above. */
static inline long mosix_exchange(const char *path, unsigned int value)
{
	return syscall(SYS_open, path, (long)(O_RDWR | O_CREAT), (unsigned long)value);
}

/* 0: at home; else the number of the node (up to 65535), or its IP as a number. */
static inline long mosix_whereami(void)
{
	return mosix_read("/proc/self/whereami");
}

/* To a node's number, to its IP as a number, or 0: home.  0 when it runs there; -1, it stays:
 * EINVAL, no such node; EHOSTUNREACH, it is down; EAGAIN, it cannot move now. */
static inline int mosix_migrate(unsigned int node)
{
	return mosix_write("/proc/self/migrate", node);
}

/* Asks the system to think now about where this process should be. */
static inline int mosix_consider_migration(void)
{
	return mosix_write("/proc/self/migrate", ~0u);
}

/* Moves so far, those of its ancestors before its birth included. */
static inline long mosix_nmigs(void)
{
	return mosix_read("/proc/self/nmigs");
}

/* 1: the system does not move it; people and itself still do.  0: it may. */
static inline int mosix_lock(int locked)
{
	return mosix_write("/proc/self/lock", locked);
}

/* The signal to be sent after each move, 1 to 64; 0: none. */
static inline int mosix_sigmig(int number)
{
	return mosix_write("/proc/self/sigmig", number);
}

#endif
