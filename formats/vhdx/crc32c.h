/* CRC-32C (Castagnoli), the checksum of every structure in a VHDX file. */
#ifndef VHDX_CRC32C_H
#define VHDX_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* Goes on from a checksum; of nothing it is 0. */
uint32_t crc32c(uint32_t crc, const void *data, size_t len);

#endif
