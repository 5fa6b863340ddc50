/* The text parsers: key=value lists, JSON descriptions, sizes, and filling a struct from them.
 *
 * The first byte chooses the parser. What was parsed must survive being written as JSON and parsed
 * again. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/options.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct sample {
    bool first, flag;
    uint64_t size, number;
    char *name, *nested;
    int choice;
};

static const struct opt_choice choices[] = { { "on", 1 }, { "off", 2 }, { NULL, 0 } };

static const struct opt_def table[] = {
    { .name = "flag", .type = OPT_BOOL, .at = offsetof(struct sample, flag) },
    { .name = "size",
      .type = OPT_SIZE,
      .at = offsetof(struct sample, size),
      .def = "64k",
      .min = 512,
      .max = 1 << 21 },
    { .name = "number", .type = OPT_NUMBER, .at = offsetof(struct sample, number) },
    { .name = "name", .type = OPT_STRING, .at = offsetof(struct sample, name), .def = "x" },
    { .name = "file.filename", .type = OPT_STRING, .at = offsetof(struct sample, nested) },
    { .name = "choice",
      .type = OPT_ENUM,
      .at = offsetof(struct sample, choice),
      .choices = choices },
    OPT_END,
};

static void must(bool condition)
{
    if (!condition)
        abort();
}

/* An object that came out of a parser goes through the JSON parser unchanged. */
static void round_trip(json_t *object)
{
    _cleanup_free_ char *text = json_dumps(object, JSON_COMPACT);
    _cleanup_error_ struct error *err = NULL;
    _cleanup_json_ json_t *again = text ? opts_parse_json(text, &err) : NULL;

    must(again && json_equal(object, again));
}

static void fill(json_t *object)
{
    _cleanup_error_ struct error *err = NULL;
    struct sample sample = { 0 };
    int r = opts_take(table, object, &sample, &err);

    if (r == 0) {
        must(!err && sample.size >= 512 && sample.size <= 1 << 21 && sample.name);
        r = opts_refuse_rest(table, object, "fuzz", &err);
        opts_free(table, &sample);
    }
    must((r < 0) == (err != NULL));
    must(!sample.name && !sample.nested);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    _cleanup_free_ char *text = size ? strndup((const char *)data + 1, size - 1) : NULL;
    _cleanup_error_ struct error *err = NULL;
    _cleanup_json_ json_t *object = NULL;
    uint64_t bytes;

    if (!text)
        return 0;
    switch (data[0] % 4) {
    case 0:
        object = opts_parse_keyval(text, NULL, &err);
        break;
    case 1:
        object = opts_parse_keyval(text, "file", &err);
        break;
    case 2:
        object = opts_parse_json(text, &err);
        break;
    default:
        must((opts_parse_size(text, &bytes, &err) < 0) == (err != NULL));
        return 0;
    }
    must((object != NULL) == (err == NULL));
    if (object) {
        round_trip(object);
        fill(object);
    }
    return 0;
}
