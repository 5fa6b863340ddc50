/* Names of keys, as `sendkey` has them, and their scan codes. */
#ifndef DEVICES_KEYS_H
#define DEVICES_KEYS_H

#include <stdint.h>

enum { KEY_EXTENDED = 0x100 }; /* an E0 goes before */

/* The key's number: its code of set 1, perhaps KEY_EXTENDED. 0: there is none of that name. */
uint16_t key_find(const char *name);
uint8_t key_set1(uint16_t key);
uint8_t key_set2(uint16_t key);

#endif
