/* A matrix' rows times several columns at once, to the last bit as ggml's dot products: _columns.c */
#pragma once
#include <stdint.h>

#define MOST_COLUMNS 8
#define MOST_BLOCKS 64 /* of 256 values: longer rows are ggml's */

/* out[c][r] = row r times column c, for `count` columns of n values */
typedef void (*rows_fn)(int n, const char *matrix, int64_t row_bytes, int rows,
                        const char *const *columns, int count, float *const *out);

struct named_rows {
    const char *name;
    rows_fn rows; /* none where this processor lacks the instructions */
};
/* By ggml's name of the type; the last has no name. */
const struct named_rows *kernels_of_columns(int level);
