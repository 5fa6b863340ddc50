/* Objects beside the graph: credentials and secrets that descriptions name by their id (--object).
 *
 * They are added before the first node is opened, and stay.
 */
#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/options.h"
#include "block/block.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static json_t *objects; /* by id; under lock */

static const char *text_of(const json_t *o, const char *key)
{
    return json_string_value(json_object_get(o, key));
}

static bool is_known(const char *type)
{
    static const char *const types[] = {
        "secret",       "secret_keyring", "tls-creds-x509", "tls-creds-psk", "tls-creds-anon",
        "authz-simple", "authz-list",     "authz-pam",      "iothread",      "throttle-group",
    };

    for (size_t i = 0; i < sizeof(types) / sizeof(*types); i++)
        if (!strcmp(types[i], type))
            return true;
    return false;
}

int blk_object_add(const char *spec, struct error **err)
{
    _cleanup_json_ json_t *o =
        spec[0] == '{' ? opts_parse_json(spec, err) : opts_parse_keyval(spec, "qom-type", err);

    if (!o)
        return -EINVAL;
    const char *type = text_of(o, "qom-type"), *id = text_of(o, "id");
    if (!type || !is_known(type))
        return error_set(err, EINVAL, "there is no kind of object '%s'", type ? type : "");
    if (!id || !*id)
        return error_set(err, EINVAL, "an object needs a name: %s,id=NAME", type);
    LOCK_SCOPE(&lock);
    if (!objects)
        objects = json_object();
    if (json_object_get(objects, id))
        return error_set(err, EEXIST, "there is an object '%s' already", id);
    return json_object_set(objects, id, o) < 0 ? error_set(err, ENOMEM, "out of memory") : 0;
}

const char *blk_object_text(const char *id, const char *key)
{
    LOCK_SCOPE(&lock);
    return text_of(json_object_get(objects, id), key);
}
