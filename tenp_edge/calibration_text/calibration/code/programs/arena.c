#include <assert.h>
#include <stdalign.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Region allocator: allocate freely, free everything at once.
 * Blocks are chained; a request larger than the block size gets its own. */

typedef struct block {
    struct block *next;
    size_t used, size;
    alignas(max_align_t) unsigned char data[];
} block;

typedef struct {
    block *head;
    size_t block_size;
    size_t total;      /* bytes handed out, for statistics */
} arena;

static block *new_block(size_t size, block *next)
{
    block *b = malloc(offsetof(block, data) + size);
    if (!b) {
        perror("arena");
        exit(EXIT_FAILURE);
    }
    *b = (block){ .next = next, .used = 0, .size = size };
    return b;
}

void *arena_alloc(arena *a, size_t n, size_t align)
{
    assert(align && (align & (align - 1)) == 0);
    if (a->head) {
        size_t at = (a->head->used + align - 1) & ~(align - 1);
        if (at <= a->head->size && n <= a->head->size - at) {
            a->head->used = at + n;
            a->total += n;
            return a->head->data + at;
        }
    }
    /* data[] is max-aligned, so offset 0 suits any sane alignment */
    size_t size = n > a->block_size ? n : a->block_size;
    a->head = new_block(size, a->head);
    a->head->used = n;
    a->total += n;
    return a->head->data;
}

char *arena_strdup(arena *a, const char *s)
{
    size_t n = strlen(s) + 1;
    return memcpy(arena_alloc(a, n, 1), s, n);
}

void arena_free(arena *a)
{
    for (block *b = a->head; b;) {
        block *next = b->next;
        free(b);
        b = next;
    }
    a->head = NULL;
    a->total = 0;
}

/* --- a use: reverse the lines of stdin ---------------------------------- */

struct line { const char *text; struct line *prev; };

int main(void)
{
    arena a = { .block_size = 1 << 16 };
    struct line *last = NULL;
    char buf[4096];

    while (fgets(buf, sizeof buf, stdin)) {
        struct line *l = arena_alloc(&a, sizeof *l, alignof(struct line));
        assert((uintptr_t)l % alignof(struct line) == 0);
        l->text = arena_strdup(&a, buf);
        l->prev = last;
        last = l;
    }
    for (; last; last = last->prev)
        fputs(last->text, stdout);
    fprintf(stderr, "%zu bytes in arena\n", a.total);
    arena_free(&a);
    return 0;
}
