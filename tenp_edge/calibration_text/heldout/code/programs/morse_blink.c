/* Blink a message in Morse code without blocking: call morse_poll() from the
 * main loop with a millisecond counter, write its result to the LED pin. */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define UNIT_MS 120u

/* Bits after the leading 1 are the signs, 1 = dash: 'A' .- is 1 01. */
static const uint8_t code[26] = {
    0x05, 0x18, 0x1A, 0x0C, 0x02, 0x12, 0x0E, 0x10, 0x04, 0x17, 0x0D, 0x14, 0x07,
    0x06, 0x0F, 0x16, 0x1D, 0x0A, 0x08, 0x03, 0x09, 0x11, 0x0B, 0x19, 0x1B, 0x1C,
};

struct morse {
    const char *text;       /* rest of the message, A-Z and space */
    uint8_t mask;           /* bit of the sign being sent, 0 = between letters */
    bool on;
    uint32_t until;
};

void morse_start(struct morse *m, const char *text, uint32_t now)
{
    *m = (struct morse){ .text = text, .until = now };
}

static uint8_t top_sign(uint8_t c)
{
    uint8_t mask = 0x80;
    while (!(c & mask))
        mask >>= 1;
    return mask >> 1;
}

/* Returns the LED level. The message is over when *m->text == 0 and it is dark. */
bool morse_poll(struct morse *m, uint32_t now)
{
    if ((int32_t)(now - m->until) < 0)      /* survives counter overflow */
        return m->on;

    if (m->on) {                            /* a sign just ended */
        m->on = false;
        m->mask >>= 1;
        if (!m->mask)
            m->text++;
        m->until += UNIT_MS * (m->mask ? 1 : 3);
        return false;
    }
    if (!*m->text)
        return false;
    if (*m->text == ' ') {                  /* 3 units have passed, 4 more make 7 */
        m->text++;
        m->until += 4 * UNIT_MS;
        return false;
    }
    uint8_t c = code[*m->text - 'A'];
    if (!m->mask)
        m->mask = top_sign(c);
    m->on = true;
    m->until += UNIT_MS * ((c & m->mask) ? 3 : 1);
    return true;
}

int main(void)
{
    struct morse m;
    char line[128] = "";
    morse_start(&m, "SOS A", 0);
    for (uint32_t t = 0; t < 45; t++)       /* one sample per unit */
        strcat(line, morse_poll(&m, t * UNIT_MS) ? "#" : ".");
    puts(line);
    return strcmp(line, "#.#.#...###.###.###...#.#.#.......#.###......") != 0;
}
