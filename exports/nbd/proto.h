/* The numbers of the NBD protocol (NetworkBlockDevice/nbd, doc/proto.md). All fields are big endian. */
#ifndef NBD_PROTO_H
#define NBD_PROTO_H

#include <stdint.h>

/* ---- handshake ---- */

#define NBD_MAGIC     UINT64_C(0x4e42444d41474943) /* "NBDMAGIC" */
#define NBD_IHAVEOPT  UINT64_C(0x49484156454f5054) /* "IHAVEOPT" */
#define NBD_REP_MAGIC UINT64_C(0x0003e889045565a9)

enum { NBD_FLAG_FIXED_NEWSTYLE = 1, NBD_FLAG_NO_ZEROES = 2 };     /* handshake flags */
enum { NBD_FLAG_C_FIXED_NEWSTYLE = 1, NBD_FLAG_C_NO_ZEROES = 2 }; /* client flags */

enum nbd_option {
    NBD_OPT_EXPORT_NAME = 1,
    NBD_OPT_ABORT = 2,
    NBD_OPT_LIST = 3,
    NBD_OPT_STARTTLS = 5,
    NBD_OPT_INFO = 6,
    NBD_OPT_GO = 7,
    NBD_OPT_STRUCTURED_REPLY = 8,
    NBD_OPT_LIST_META_CONTEXT = 9,
    NBD_OPT_SET_META_CONTEXT = 10,
    NBD_OPT_EXTENDED_HEADERS = 11,
};

enum nbd_rep {
    NBD_REP_ACK = 1,
    NBD_REP_SERVER = 2,
    NBD_REP_INFO = 3,
    NBD_REP_META_CONTEXT = 4,
};
#define NBD_REP_ERR(n) (UINT32_C(0x80000000) + (n))
enum nbd_rep_err {
    NBD_ERR_UNSUP = 1,
    NBD_ERR_POLICY = 2,
    NBD_ERR_INVALID = 3,
    NBD_ERR_PLATFORM = 4,
    NBD_ERR_TLS_REQD = 5,
    NBD_ERR_UNKNOWN = 6,
    NBD_ERR_SHUTDOWN = 7,
    NBD_ERR_BLOCK_SIZE_REQD = 8,
    NBD_ERR_TOO_BIG = 9,
};

enum nbd_info { NBD_INFO_EXPORT, NBD_INFO_NAME, NBD_INFO_DESCRIPTION, NBD_INFO_BLOCK_SIZE };

enum nbd_export_flag {
    NBD_FLAG_HAS_FLAGS = 1 << 0,
    NBD_FLAG_READ_ONLY = 1 << 1,
    NBD_FLAG_SEND_FLUSH = 1 << 2,
    NBD_FLAG_SEND_FUA = 1 << 3,
    NBD_FLAG_ROTATIONAL = 1 << 4,
    NBD_FLAG_SEND_TRIM = 1 << 5,
    NBD_FLAG_SEND_WRITE_ZEROES = 1 << 6,
    NBD_FLAG_SEND_DF = 1 << 7,
    NBD_FLAG_CAN_MULTI_CONN = 1 << 8,
    NBD_FLAG_SEND_RESIZE = 1 << 9,
    NBD_FLAG_SEND_CACHE = 1 << 10,
    NBD_FLAG_SEND_FAST_ZERO = 1 << 11,
    NBD_FLAG_BLOCK_STAT_PAYLOAD = 1 << 12,
};

#define NBD_MAX_STRING 4096 /* bytes of a name */

/* ---- transmission ---- */

#define NBD_REQUEST_MAGIC          UINT32_C(0x25609513)
#define NBD_EXTENDED_REQUEST_MAGIC UINT32_C(0x21e41c71)
#define NBD_SIMPLE_REPLY_MAGIC     UINT32_C(0x67446698)
#define NBD_STRUCTURED_REPLY_MAGIC UINT32_C(0x668e33ef)
#define NBD_EXTENDED_REPLY_MAGIC   UINT32_C(0x6e8a278c)

enum {
    NBD_REQUEST_BYTES = 28,
    NBD_EXTENDED_REQUEST_BYTES = 32,
    NBD_SIMPLE_REPLY_BYTES = 16,
    NBD_STRUCTURED_REPLY_BYTES = 20,
    NBD_EXTENDED_REPLY_BYTES = 32,
};

enum nbd_cmd {
    NBD_CMD_READ = 0,
    NBD_CMD_WRITE = 1,
    NBD_CMD_DISC = 2,
    NBD_CMD_FLUSH = 3,
    NBD_CMD_TRIM = 4,
    NBD_CMD_CACHE = 5,
    NBD_CMD_WRITE_ZEROES = 6,
    NBD_CMD_BLOCK_STATUS = 7,
};

enum nbd_cmd_flag {
    NBD_CMD_FLAG_FUA = 1 << 0,
    NBD_CMD_FLAG_NO_HOLE = 1 << 1,
    NBD_CMD_FLAG_DF = 1 << 2,
    NBD_CMD_FLAG_REQ_ONE = 1 << 3,
    NBD_CMD_FLAG_FAST_ZERO = 1 << 4,
    NBD_CMD_FLAG_PAYLOAD_LEN = 1 << 5,
};

enum { NBD_REPLY_FLAG_DONE = 1 };
enum nbd_chunk {
    NBD_CHUNK_NONE = 0,
    NBD_CHUNK_OFFSET_DATA = 1,
    NBD_CHUNK_OFFSET_HOLE = 2,
    NBD_CHUNK_BLOCK_STATUS = 5,
    NBD_CHUNK_BLOCK_STATUS_EXT = 6,
    NBD_CHUNK_ERROR = (1 << 15) + 1,
    NBD_CHUNK_ERROR_OFFSET = (1 << 15) + 2,
};

enum { NBD_STATE_HOLE = 1, NBD_STATE_ZERO = 2 }; /* base:allocation */
enum { NBD_STATE_DIRTY = 1 };                    /* qemu:dirty-bitmap:... */

enum nbd_errno {
    NBD_EPERM = 1,
    NBD_EIO = 5,
    NBD_ENOMEM = 12,
    NBD_EINVAL = 22,
    NBD_ENOSPC = 28,
    NBD_EOVERFLOW = 75,
    NBD_ENOTSUP = 95,
    NBD_ESHUTDOWN = 108,
};

#endif
