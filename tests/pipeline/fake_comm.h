/* Test-only communicator: the members of a group are threads of one process. A message is copied by the receiver while
 * it waits, and only then is the sender's wait over (rendezvous at its strictest). Every wait has a deadline, so that a
 * deadlock is a failed test and not a hang. */
#ifndef TESTS_PIPELINE_FAKE_COMM_H
#define TESTS_PIPELINE_FAKE_COMM_H

#include "megac/base/comm.h"

typedef struct fake_group fake_group;

fake_group *fake_group_create(int size);
void fake_group_destroy(fake_group *group);
mc_comm fake_group_member(fake_group *group, int rank);
/* Sends whose receiver never came, or receives still open: 0 after a clean run. */
int fake_group_unfinished(fake_group *group);

#endif
