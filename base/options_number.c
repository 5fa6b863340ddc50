/* Sizes, numbers and switches as one spells them on a command line. */
#include <ctype.h>
#include <errno.h>
#include <string.h>
#include <strings.h>

#include "base/error.h"
#include "base/options.h"
#include "options_number.h"

static int digit_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = (char)tolower((unsigned char)c);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : 99;
}

/* Digits of a base from *text, at least one; moves *text past them. */
static int parse_digits(const char **text, unsigned base, uint64_t *out)
{
    const char *p = *text;
    uint64_t value = 0;

    while (digit_value(*p) < (int)base) {
        if (__builtin_mul_overflow(value, (uint64_t)base, &value) ||
            __builtin_add_overflow(value, (uint64_t)digit_value(*p), &value))
            return -ERANGE;
        p++;
    }
    if (p == *text)
        return -EINVAL;
    *text = p;
    *out = value;
    return 0;
}

static bool take_hex_prefix(const char **text)
{
    if ((*text)[0] == '0' && ((*text)[1] == 'x' || (*text)[1] == 'X')) {
        *text += 2;
        return true;
    }
    return false;
}

int number_parse(const char *text, uint64_t *out)
{
    unsigned base = take_hex_prefix(&text) ? 16 : 10;
    uint64_t value;
    int r = parse_digits(&text, base, &value);

    if (r < 0)
        return r;
    if (*text)
        return -EINVAL;
    *out = value;
    return 0;
}

/* The power of two that a suffix stands for: "k", "K", "KiB", "b", "". Negative when unknown. */
static int suffix_shift(const char *suffix)
{
    static const char letters[] = "bkmgtpe";
    const char *at;

    if (!*suffix)
        return 0;
    at = strchr(letters, tolower((unsigned char)*suffix));
    if (!at)
        return -1;
    if (suffix[1] && (at == letters || strcasecmp(suffix + 1, "ib") != 0))
        return -1;
    return (int)(at - letters) * 10;
}

/* The digits after the point as a fraction of 1 << shift, rounded down. Digits past the 18th weigh
 * nothing that 2^60 could show and are only read. */
static int parse_fraction(const char **text, uint64_t *numerator, uint64_t *denominator)
{
    const char *start = *text;

    *numerator = 0;
    *denominator = 1;
    for (; isdigit((unsigned char)**text); ++*text) {
        if (*denominator < UINT64_C(1000000000000000000)) {
            *numerator = *numerator * 10 + (uint64_t)(**text - '0');
            *denominator *= 10;
        }
    }
    return *text == start ? -EINVAL : 0;
}

int size_parse(const char *text, uint64_t *out)
{
    uint64_t value, numerator = 0, denominator = 1;
    int shift, r;

    if (take_hex_prefix(&text)) {
        r = parse_digits(&text, 16, out);
        return r == 0 && *text ? -EINVAL : r;
    }
    r = parse_digits(&text, 10, &value);
    if (r == 0 && *text == '.') {
        text++;
        r = parse_fraction(&text, &numerator, &denominator);
    }
    if (r < 0)
        return r;
    shift = suffix_shift(text);
    if (shift < 0 || (numerator && shift == 0))
        return -EINVAL;
    if (shift && value >> (64 - shift))
        return -ERANGE;
    value <<= shift;
    /* No carry: the fraction is less than one unit. */
    *out = value + (uint64_t)(((unsigned __int128)numerator << shift) / denominator);
    return 0;
}

int opts_parse_size(const char *text, uint64_t *out, struct error **err)
{
    int r = size_parse(text, out);

    if (r == -ERANGE) {
        return error_set(err, ERANGE, "size '%s' is too large: the limit is 16E less one byte",
                         text);
    }
    if (r < 0) {
        return error_set(err, EINVAL,
                         "'%s' is not a size: write bytes, or a number with k, M, G, T, P or E "
                         "for powers of 1024, such as 64k or 1.5G",
                         text);
    }
    return 0;
}

int opts_parse_bool(const char *text, bool *out)
{
    static const struct {
        const char *word;
        bool value;
    } words[] = {
        { "on", true },   { "yes", true }, { "true", true },   { "y", true },
        { "off", false }, { "no", false }, { "false", false }, { "n", false },
    };

    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        if (strcmp(text, words[i].word) == 0) {
            *out = words[i].value;
            return 0;
        }
    }
    return -EINVAL;
}
