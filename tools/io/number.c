#include "number.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io.h"

/* The power of two that a suffix letter stands for; -1 when it is none. */
static int suffix_shift(char letter)
{
    static const char letters[] = "bkmgtpe";
    const char *at = letter ? strchr(letters, tolower((unsigned char)letter)) : letters;
    return at ? 10 * (int)(at - letters) : -1;
}

static int add(uint64_t whole, double fraction, int shift, int64_t *out)
{
    if (whole > (uint64_t)INT64_MAX >> shift)
        return -ERANGE;
    uint64_t value = (whole << shift) + (uint64_t)(fraction * (double)(UINT64_C(1) << shift) + 0.5);
    if (value > INT64_MAX)
        return -ERANGE;
    *out = (int64_t)value;
    return 0;
}

static int parse_hex(const char *text, int64_t *out)
{
    if (!isxdigit((unsigned char)text[2]))
        return -EINVAL;
    char *end;
    errno = 0;
    uint64_t whole = strtoull(text, &end, 16);
    if (errno)
        return -errno;
    int shift = suffix_shift(*end);
    if (shift < 0 || (*end && end[1]))
        return -EINVAL;
    if (*end)
        complain("warning: Using a multiplier suffix on hex numbers is deprecated: %s", text);
    return add(whole, 0, shift, out);
}

static int parse(const char *text, int64_t *out)
{
    if (*text == '+')
        text++;
    if (!isdigit((unsigned char)*text))
        return -EINVAL;
    if (text[0] == '0' && (text[1] == 'x' || text[1] == 'X'))
        return parse_hex(text, out);
    char *end;
    errno = 0;
    uint64_t whole = strtoull(text, &end, 10);
    if (errno)
        return -errno;
    double fraction = 0;
    if (*end == '.') {
        double weight = 0.1;
        for (end++; isdigit((unsigned char)*end); end++, weight /= 10)
            fraction += weight * (*end - '0');
    }
    int shift = suffix_shift(*end);
    if (shift < 0 || (*end && end[1]) || (fraction > 0 && shift == 0))
        return -EINVAL;
    return add(whole, fraction, shift, out);
}

bool number_size(const char *text, int64_t *out)
{
    int r = parse(text, out);
    if (r == -ERANGE)
        printf("Parsing error: argument too large -- %s\n", text);
    else if (r < 0)
        printf("Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- %s\n",
               text);
    return r == 0;
}

bool number_pattern(const char *text, int *out)
{
    char *end;
    long value = strtol(text, &end, 0);
    if (end == text || *end || value < 0 || value > 255) {
        printf("%s is not a valid pattern byte\n", text);
        return false;
    }
    *out = (int)value;
    return true;
}

struct number_text number_human(double bytes)
{
    static const char *const unit[] = { "bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
    struct number_text text;
    size_t i = 0;
    for (; bytes >= 1024 && i < 6; i++)
        bytes /= 1024;
    char value[32];
    int n = snprintf(value, sizeof(value), i ? "%.3f" : "%f", bytes);
    /* A whole number goes without its point. */
    char *point = strchr(value, '.');
    if (n > 0 && point && strspn(point + 1, "0") == strlen(point + 1))
        *point = '\0';
    snprintf(text.s, sizeof(text.s), "%s %s", value, unit[i]);
    return text;
}
