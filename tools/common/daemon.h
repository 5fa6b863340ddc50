/* Going to the background, and a file with the process id. */
#ifndef TOOLS_COMMON_DAEMON_H
#define TOOLS_COMMON_DAEMON_H

#include <stdbool.h>

struct error;

/* Before there are threads. In the parent it does not return: it ends when the child is ready or has failed. */
int daemon_begin(struct error **err);
/* In the child: the parent may go. pid_file may be NULL. */
int daemon_ready(const char *pid_file, bool forked, struct error **err);
void daemon_end(void);

#endif
