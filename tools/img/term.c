#include "term.h"

#include <langinfo.h>
#include <locale.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

unsigned term_columns(int fd)
{
    const char *columns = getenv("COLUMNS");
    if (columns) {
        long n = strtol(columns, NULL, 10);
        if (n >= 20 && n <= 1000)
            return (unsigned)n;
    }
    struct winsize size;
    if (ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col >= 20)
        return size.ws_col;
    return 80;
}

bool term_utf8(void)
{
    /* The program itself stays in the C locale: only this question is asked of the user's. */
    static int known = -1;
    if (known < 0) {
        locale_t user = newlocale(LC_CTYPE_MASK, "", (locale_t)0);
        known = user && strcmp(nl_langinfo_l(CODESET, user), "UTF-8") == 0;
        if (user)
            freelocale(user);
    }
    return known;
}

bool term_colors(int fd)
{
    const char *no = getenv("NO_COLOR"), *kind = getenv("TERM");
    if (no && *no)
        return false;
    return isatty(fd) && kind && strcmp(kind, "dumb") != 0;
}
