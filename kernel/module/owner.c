// SPDX-License-Identifier: GPL-2.0
/*
 * Owners: who serves the redirected calls of which tasks.  The verdict names an owner by its number;
 * numbers are given out in turn, so that a stale one does not soon name somebody else.
 */
#include <linux/slab.h>
#include <linux/xarray.h>

#include "mosix.h"

#define LAST_NUMBER 0xffffff /* 24 bits of a verdict */

static DEFINE_XARRAY_ALLOC1(owners);
static u32 next_number = 1;
static atomic_t count;

struct mosix_owner *mosix_owner_new(u32 sets)
{
	struct mosix_owner *owner = kzalloc(sizeof(*owner), GFP_KERNEL_ACCOUNT);
	int error;

	if (!owner)
		return ERR_PTR(-ENOMEM);
	owner->sets = sets;
	kref_init(&owner->refs);
	spin_lock_init(&owner->lock);
	INIT_LIST_HEAD(&owner->calls);
	init_waitqueue_head(&owner->readers);
	error = xa_alloc_cyclic(&owners, &owner->number, owner, XA_LIMIT(1, LAST_NUMBER), &next_number, GFP_KERNEL);
	if (error < 0) {
		kfree(owner);
		return ERR_PTR(error);
	}
	atomic_inc(&count);
	return owner;
}

/* NULL when there is none. */
struct mosix_owner *mosix_owner_get(u32 number)
{
	struct mosix_owner *owner;

	rcu_read_lock();
	owner = xa_load(&owners, number);
	if (owner && !kref_get_unless_zero(&owner->refs))
		owner = NULL;
	rcu_read_unlock();
	return owner;
}

static void release(struct kref *refs)
{
	struct mosix_owner *owner = container_of(refs, struct mosix_owner, refs);

	kfree_rcu(owner, rcu);
}

void mosix_owner_put(struct mosix_owner *owner)
{
	kref_put(&owner->refs, release);
}

/* Its file is closed: whoever is parked goes on as its verdict says, nobody comes any more. */
void mosix_owner_close(struct mosix_owner *owner)
{
	xa_erase(&owners, owner->number);
	mosix_park_orphan_all(owner);
	atomic_dec(&count);
	mosix_owner_put(owner);
}

u32 mosix_owners(void)
{
	return atomic_read(&count);
}
