/* A VGA as far as text goes: registers, planes, and the screen as text. */
#ifndef DEVICES_VGA_H
#define DEVICES_VGA_H

struct device;

/* The text on the screen of this device (UTF-8, lines without trailing blanks), to be freed; "" in graphics modes or when the
 * device is no VGA; NULL: no memory. */
char *vga_text(struct device *d);

#endif
