// SPDX-License-Identifier: GPL-2.0
/* Whether pages are given to a socket by kernel_sendpage(); else by MSG_SPLICE_PAGES. */
#include <linux/net.h>

int probe(struct socket *socket, struct page *page);
int probe(struct socket *socket, struct page *page)
{
	return kernel_sendpage(socket, page, 0, 1, 0);
}
