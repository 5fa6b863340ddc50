#include "describe.h"

#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "base/options.h"

json_t *describe_image(const char *name, bool image_opts, struct error **err)
{
    if (image_opts)
        return name[0] == '{' ? opts_parse_json(name, err) : opts_parse_keyval(name, NULL, err);
    if (strncmp(name, "json:", 5) == 0)
        return opts_parse_json(name + 5, err);
    json_t *desc = json_pack("{s:s}", "filename", name);
    if (!desc)
        error_set(err, EINVAL, "the file name is not UTF-8");
    return desc;
}

void describe_push_filename_down(json_t *desc)
{
    json_t *file = json_object_get(desc, "file"), *name = json_object_get(desc, "filename");

    if (!json_is_object(file) || !name)
        return;
    if (!json_object_get(file, "filename"))
        json_object_set(file, "filename", name);
    json_object_del(desc, "filename");
}
