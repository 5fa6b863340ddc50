/* The real time clock and its 128 bytes of CMOS memory at ports 70 and 71. Source: Motorola MC146818 data sheet. UTC. */
#ifndef DEVICES_RTC_H
#define DEVICES_RTC_H

#include <stdint.h>

struct clock;
struct irq;
struct ports;
struct rtc;

struct rtc *rtc_new(struct ports *ports, struct clock *clock, const struct irq *out);
void rtc_free(struct rtc *r);
void rtc_reset(struct rtc *r); /* interrupts off; time and memory stay, as by the battery */
/* What firmware finds in its memory: bytes from 0x0e on. */
void rtc_set_memory(struct rtc *r, unsigned at, uint8_t value);

#endif
