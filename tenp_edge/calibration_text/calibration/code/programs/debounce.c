/*
 * debounce.c - eight push buttons on one port, vertical counters.
 *
 * Called from the 5 ms timer interrupt. A button counts as changed after four
 * equal samples in a row (20 ms), which is longer than any bounce I have seen
 * on these tact switches (worst: 11 ms on the grey ones).
 *
 * The counters are "vertical": bit i of cnt0 and cnt1 together form the 2-bit
 * counter of button i, so all eight run in a dozen instructions.
 */
#include <stdint.h>

static volatile uint8_t state;      /* debounced level, 1 = pressed  */
static volatile uint8_t pressed;    /* edges not yet read by main()  */
static uint8_t cnt0 = 0xFF, cnt1 = 0xFF;

void debounce_tick(uint8_t raw)
{
    uint8_t diff = state ^ raw;         /* which buttons disagree?     */

    cnt0 = (uint8_t)~(cnt0 & diff);     /* count down, or reload to 3  */
    cnt1 = cnt0 ^ (cnt1 & diff);
    diff &= cnt0 & cnt1;                /* wrapped: four in a row      */
    state ^= diff;
    pressed |= state & diff;
}

/* Read and clear. On the target, wrap this in cli()/sei(): the interrupt can
 * set a bit between the load and the store. */
uint8_t debounce_take(uint8_t mask)
{
    uint8_t hit = pressed & mask;
    pressed &= (uint8_t)~hit;
    return hit;
}

#ifdef TEST_ON_HOST
#include <assert.h>
#include <stdio.h>

int main(void)
{
    /* button 2 bounces for a while, then settles */
    const uint8_t samples[] = {0, 4, 0, 4, 4, 0, 4, 4, 4};
    for (unsigned i = 0; i < sizeof samples; i++)
        debounce_tick(samples[i]);
    assert(debounce_take(0xFF) == 0);    /* only three equal so far */
    debounce_tick(4);
    assert(debounce_take(0xFF) == 4);
    assert(debounce_take(0xFF) == 0);    /* taken once */

    for (int i = 0; i < 4; i++)          /* release makes no edge */
        debounce_tick(0);
    assert(state == 0 && debounce_take(0xFF) == 0);
    puts("debounce ok");
    return 0;
}
#endif
