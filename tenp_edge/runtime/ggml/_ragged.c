/* Experts of any width for a few tokens at once, as three custom nodes of a ggml graph.
 *
 *   ids, weights, x -> prepare (sort pairs by expert, quantise x)
 *                   -> gate_up (h = act(gate x, up x), in units of rows, first come first served;
 *                               who finishes an expert quantises its h as the down kernel wants it)
 *                   -> down    (y of every pair, then the weighted sum of a token in slot order)
 *
 * The dot products and quantisers are ggml's own, passed in as pointers, so every number is the one
 * that llama.cpp computes. A pair is one (token, slot) of the router's choice. ggml puts a barrier
 * between nodes; inside a node no thread ever waits for another. No ggml header is needed: struct
 * tensor repeats the fields up to data, and the Python side has checked that they lie there.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

#include "_columns.h"

#define KINDS 6
/* Rows that a thread takes at once. Long runs of memory are read faster than short ones, but every
 * thread should come back UNITS_PER_THREAD times, so that none waits long for the last. */
#define LEAST_ROWS 16
#define MOST_ROWS 128
#define UNITS_PER_THREAD 8
/* Rows that more tokens than a kernel takes use one after the other, while they lie in the cache. */
#define SHARED_ROWS 32

struct tensor {
    int32_t type;
    void *buffer;
    int64_t ne[4];
    size_t nb[4];
    int32_t op;
    int32_t op_params[16];
    int32_t flags;
    struct tensor *src[10];
    struct tensor *view_src;
    size_t view_offs;
    void *data;
};

typedef void (*dot_fn)(int n, float *s, size_t bs, const void *x, size_t bx, const void *y,
                       size_t by, int nrc);
typedef void (*quantise_fn)(const float *x, void *y, int64_t n);
typedef void (*activation_fn)(int n, float *y, const float *gate, const float *up);

/* One expert: its matrices (gate may be none) and biases (or none) as they lie in the file, and the
 * kernels of their types. One of width 0 has no matrices: what it gives is its down_bias, or
 * nothing. */
struct expert {
    const char *gate, *up, *down;
    const float *gate_bias, *up_bias, *down_bias;
    dot_fn gate_dot, up_dot, down_dot;
    rows_fn gate_rows, up_rows, down_rows; /* none where there is no such kernel */
    quantise_fn quantise_h;
    int64_t gate_row, up_row, down_row; /* bytes of a row */
    int64_t width;
    int32_t gate_kind, up_kind; /* which of the quantised x */
    float scale;                /* of its output */
    int32_t unused;
};

/* Memory that the layers share, for at most max_tokens tokens. */
struct scratch {
    char *x[KINDS];
    float *h, *y;
    char *hq;
    int32_t *count, *start, *active; /* [experts] */
    int32_t *pair;                   /* [pairs] token * used + slot, sorted by expert */
    atomic_int *done;                /* [experts] rows of h that are there */
    int64_t h_stride, hq_stride;     /* floats, bytes */
    int32_t active_count;
    int32_t active_rows; /* sum of the active experts' widths */
    atomic_int next_gate_up, next_down;
};

struct layer {
    struct expert *experts;
    struct scratch *scratch;
    activation_fn activation;
    quantise_fn quantise_x[KINDS];
    int64_t x_row[KINDS]; /* bytes of a quantised x */
    int32_t kinds, hidden, expert_count, used;
};

static void own_swiglu(int n, float *y, const float *gate, const float *up) {
    for (int i = 0; i < n; i++) y[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
}

/* gpt-oss', as ggml_swiglu_oai computes it with the constants that llama.cpp has in its code. */
static void swiglu_oai(int n, float *y, const float *gate, const float *up) {
    const float alpha = 1.702f, limit = 7.0f;
    for (int i = 0; i < n; i++) {
        float g = gate[i] < limit ? gate[i] : limit;
        float u = up[i] < -limit ? -limit : up[i] > limit ? limit : up[i];
        y[i] = g / (1.0f + expf(alpha * -g)) * (u + 1.0f);
    }
}

/* GELU of every float16, by its bits: ggml's own table. */
static const float *gelu_table;

/* The bits of x, which is between -10 and 10, rounded to a float16 (to even, as hardware does). */
static uint16_t half_bits(float x) {
    uint32_t bits, sign;
    memcpy(&bits, &x, sizeof bits);
    sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits >= 0x38800000) /* 2^-14, the least normal one */
        return (uint16_t)(sign | (((bits + 0xfff + (bits >> 13 & 1)) >> 13) - 0x1c000));
    float small = fabsf(x) + 0.5f; /* the last bit of 0.5 is that of a subnormal float16 */
    memcpy(&bits, &small, sizeof bits);
    return (uint16_t)(sign | (bits - 0x3f000000));
}

/* gelu(gate) * up as ggml_vec_geglu_f32 computes it. */
static void geglu(int n, float *y, const float *gate, const float *up) {
    for (int i = 0; i < n; i++) {
        float g = gate[i];
        if (g > -10.0f && g < 10.0f) g = gelu_table[half_bits(g)];
        y[i] = g <= -10.0f ? 0.0f : g * up[i];
    }
}

/* relu(up)^2, of experts that have no gate. */
static void relu2(int n, float *y, const float *gate, const float *up) {
    (void)gate;
    for (int i = 0; i < n; i++) {
        float u = up[i] > 0.0f ? up[i] : 0.0f;
        y[i] = u * u;
    }
}

static void add_bias(float *values, const float *bias, int first, int last) {
    if (bias)
        for (int r = first; r < last; r++) values[r - first] += bias[r];
}

static int least(int a, int b) { return a < b ? a : b; }

/* Rows of a unit when `threads` share `rows`. */
static int unit_rows(int rows, int threads) {
    int share = rows / (threads * UNITS_PER_THREAD) / LEAST_ROWS * LEAST_ROWS;
    return share < LEAST_ROWS ? LEAST_ROWS : least(share, MOST_ROWS);
}

/* Tokens that go through a unit's rows together stream them; others go through it in blocks. */
static int block_rows(int tokens, rows_fn several) {
    return tokens > (several ? MOST_COLUMNS : 1) ? SHARED_ROWS : MOST_ROWS;
}

static int32_t chosen(const struct tensor *ids, int token, int slot) {
    return *(const int32_t *)((const char *)ids->data + token * ids->nb[1] + slot * ids->nb[0]);
}

static float weight_of(const struct tensor *weights, int token, int slot) {
    return *(const float *)((const char *)weights->data + token * weights->nb[1] +
                            slot * weights->nb[0]);
}

static void sort_pairs(const struct layer *l, const struct tensor *ids, int tokens) {
    struct scratch *s = l->scratch;
    memset(s->count, 0, sizeof(int32_t) * l->expert_count);
    for (int t = 0; t < tokens; t++)
        for (int k = 0; k < l->used; k++) s->count[chosen(ids, t, k)]++;
    int32_t next = 0;
    s->active_count = s->active_rows = 0;
    for (int e = 0; e < l->expert_count; e++) {
        s->start[e] = next;
        next += s->count[e];
        if (!s->count[e]) continue;
        s->active[s->active_count++] = e;
        s->active_rows += (int32_t)l->experts[e].width;
        atomic_store(&s->done[e], 0);
    }
    for (int t = 0; t < tokens; t++)
        for (int k = 0; k < l->used; k++) s->pair[s->start[chosen(ids, t, k)]++] = t * l->used + k;
    for (int e = 0; e < l->expert_count; e++) s->start[e] -= s->count[e];
    atomic_store(&s->next_gate_up, 0);
    atomic_store(&s->next_down, 0);
}

/* sources: x [hidden, tokens], ids [used, tokens] */
static void prepare(struct tensor *dst, int ith, int nth, void *user) {
    const struct layer *l = user;
    const struct tensor *x = dst->src[0], *ids = dst->src[1];
    int tokens = (int)x->ne[1];
    if (ith == 0) sort_pairs(l, ids, tokens);
    int jobs = tokens * l->kinds;
    /* Thread 0 sorts, so the others begin with x. */
    for (int job = nth - 1 - ith; job < jobs; job += nth) {
        int token = job / l->kinds, kind = job % l->kinds;
        const float *row = (const float *)((const char *)x->data + token * x->nb[1]);
        l->quantise_x[kind](row, l->scratch->x[kind] + token * l->x_row[kind], l->hidden);
    }
}

/* Rows first .. last of a matrix times a column each: out[c][r - first]. */
static void multiply(dot_fn dot, rows_fn several, const char *matrix, int64_t row_bytes, int n,
                     const char *const *columns, int count, int first, int last, float *const *out) {
    if (several && count > 1 && n <= 256 * MOST_BLOCKS) {
        several(n, matrix + first * row_bytes, row_bytes, last - first, columns, count, out);
        return;
    }
    for (int c = 0; c < count; c++)
        for (int r = first; r < last; r++)
            dot(n, &out[c][r - first], 0, matrix + r * row_bytes, 0, columns[c], 0, 1);
}

static void gate_up_block(const struct layer *l, const struct expert *x, int q, int count, int row,
                          int stop) {
    struct scratch *s = l->scratch;
    const char *gx[MOST_COLUMNS] = {0}, *ux[MOST_COLUMNS] = {0};
    float gate[MOST_COLUMNS][MOST_ROWS], up[MOST_COLUMNS][MOST_ROWS];
    float *gates[MOST_COLUMNS] = {0}, *ups[MOST_COLUMNS] = {0};
    for (int c = 0; c < count; c++) {
        int token = s->pair[q + c] / l->used;
        gx[c] = s->x[x->gate_kind] + token * l->x_row[x->gate_kind];
        ux[c] = s->x[x->up_kind] + token * l->x_row[x->up_kind];
        gates[c] = gate[c], ups[c] = up[c];
    }
    if (x->gate)
        multiply(x->gate_dot, x->gate_rows, x->gate, x->gate_row, l->hidden, gx, count, row, stop,
                 gates);
    multiply(x->up_dot, x->up_rows, x->up, x->up_row, l->hidden, ux, count, row, stop, ups);
    for (int c = 0; c < count; c++) {
        add_bias(gate[c], x->gate_bias, row, stop);
        add_bias(up[c], x->up_bias, row, stop);
        l->activation(stop - row, s->h + (q + c) * s->h_stride + row, gate[c], up[c]);
    }
}

static void gate_up_unit(const struct layer *l, int e, int first, int last) {
    struct scratch *s = l->scratch;
    const struct expert *x = &l->experts[e];
    int end = s->start[e] + s->count[e], block = block_rows(s->count[e], x->up_rows);
    for (int row = first; row < last; row += block)
        for (int q = s->start[e]; q < end; q += MOST_COLUMNS)
            gate_up_block(l, x, q, least(end - q, MOST_COLUMNS), row, least(row + block, last));
}

static void quantise(const struct layer *l, int e) {
    struct scratch *s = l->scratch;
    const struct expert *x = &l->experts[e];
    for (int q = s->start[e]; q < s->start[e] + s->count[e]; q++)
        x->quantise_h(s->h + q * s->h_stride, s->hq + q * s->hq_stride, x->width);
}

static void gate_up(struct tensor *dst, int ith, int nth, void *user) {
    (void)dst, (void)ith;
    const struct layer *l = user;
    struct scratch *s = l->scratch;
    int base = 0, a = 0, rows = unit_rows(s->active_rows, nth);
    for (;;) {
        int unit = atomic_fetch_add(&s->next_gate_up, 1), units = 0;
        for (; a < s->active_count; a++, base += units) {
            units = ((int)l->experts[s->active[a]].width + rows - 1) / rows;
            if (unit < base + units) break;
        }
        if (a == s->active_count) return;
        int e = s->active[a], first = (unit - base) * rows;
        int width = (int)l->experts[e].width, last = least(first + rows, width);
        gate_up_unit(l, e, first, last);
        if (atomic_fetch_add(&s->done[e], last - first) + last - first == width) quantise(l, e);
    }
}

static void down_block(const struct layer *l, const struct expert *x, int q, int count, int row,
                       int stop) {
    struct scratch *s = l->scratch;
    const char *h[MOST_COLUMNS];
    float *y[MOST_COLUMNS];
    for (int c = 0; c < count; c++) {
        h[c] = s->hq + (q + c) * s->hq_stride;
        y[c] = s->y + (size_t)s->pair[q + c] * l->hidden + row;
        if (!x->width) memset(y[c], 0, sizeof(float) * (stop - row));
    }
    if (x->width)
        multiply(x->down_dot, x->down_rows, x->down, x->down_row, (int)x->width, h, count, row,
                 stop, y);
    for (int c = 0; c < count; c++) {
        add_bias(y[c], x->down_bias, row, stop);
        for (int r = row; r < stop; r++) y[c][r - row] *= x->scale;
    }
}

static void down_unit(const struct layer *l, int e, int first, int last) {
    struct scratch *s = l->scratch;
    const struct expert *x = &l->experts[e];
    int end = s->start[e] + s->count[e], block = block_rows(s->count[e], x->down_rows);
    for (int row = first; row < last; row += block)
        for (int q = s->start[e]; q < end; q += MOST_COLUMNS)
            down_block(l, x, q, least(end - q, MOST_COLUMNS), row, least(row + block, last));
}

/* dst [hidden, tokens]; sources: x, ids, weights [used, tokens] */
static void down(struct tensor *dst, int ith, int nth, void *user) {
    (void)ith;
    const struct layer *l = user;
    struct scratch *s = l->scratch;
    const struct tensor *weights = dst->src[2];
    int tokens = (int)dst->ne[1], rows = unit_rows(l->hidden, nth);
    for (;;) {
        int first = atomic_fetch_add(&s->next_down, 1) * rows;
        if (first >= l->hidden) return;
        int last = least(first + rows, l->hidden);
        for (int a = 0; a < s->active_count; a++) down_unit(l, s->active[a], first, last);
        for (int t = 0; t < tokens; t++) {
            float *sum = (float *)((char *)dst->data + t * dst->nb[1]);
            for (int k = 0; k < l->used; k++) {
                const float *y = s->y + (size_t)(t * l->used + k) * l->hidden;
                float weight = weight_of(weights, t, k);
                for (int r = first; r < last; r++) {
                    float product = weight * y[r];
                    sum[r] = k ? sum[r] + product : product;
                }
            }
        }
    }
}

/* A matrix outside the experts, times a few columns. */
struct product {
    const char *matrix;
    quantise_fn quantise;
    dot_fn dot;
    rows_fn several;
    char *x;
    int64_t row_bytes, x_row;
    int32_t length, rows;
    atomic_int next;
    int32_t unused;
};

/* source: x [length, tokens] */
static void product_prepare(struct tensor *dst, int ith, int nth, void *user) {
    struct product *p = user;
    const struct tensor *x = dst->src[0];
    if (ith == 0) atomic_store(&p->next, 0);
    for (int token = ith; token < (int)x->ne[1]; token += nth)
        p->quantise((const float *)((const char *)x->data + token * x->nb[1]),
                    p->x + token * p->x_row, p->length);
}

/* dst [rows, tokens] */
static void product(struct tensor *dst, int ith, int nth, void *user) {
    (void)ith;
    struct product *p = user;
    int tokens = (int)dst->ne[1], rows = unit_rows(p->rows, nth);
    for (;;) {
        int first = atomic_fetch_add(&p->next, 1) * rows, last = least(first + rows, p->rows);
        if (first >= p->rows) return;
        for (int t = 0; t < tokens; t += MOST_COLUMNS) {
            const char *columns[MOST_COLUMNS];
            float *out[MOST_COLUMNS];
            int count = least(tokens - t, MOST_COLUMNS);
            for (int c = 0; c < count; c++) {
                columns[c] = p->x + (t + c) * p->x_row;
                out[c] = (float *)((char *)dst->data + (t + c) * dst->nb[1]) + first;
            }
            multiply(p->dot, p->several, p->matrix, p->row_bytes, p->length, columns, count, first,
                     last, out);
        }
    }
}

/* dst [rows, tokens]; sources: x (length, tokens), packed as the matrix' type wants it, and the
 * matrix. How many tokens there are is known when the graph runs. Units of rows stay in the cache
 * while all columns go through them. */
static void packed_product(struct tensor *dst, int ith, int nth, void *user) {
    rows_fn several = (rows_fn)user;
    const struct tensor *x = dst->src[0], *matrix = dst->src[1];
    int tokens = (int)x->ne[1], all = (int)matrix->ne[1], rows = unit_rows(all, nth);
    for (int first = ith * rows; first < all; first += nth * rows)
        for (int t = 0; t < tokens; t += MOST_COLUMNS) {
            const char *columns[MOST_COLUMNS];
            float *out[MOST_COLUMNS];
            int count = least(tokens - t, MOST_COLUMNS);
            for (int c = 0; c < count; c++) {
                columns[c] = (const char *)x->data + (t + c) * x->nb[1];
                out[c] = (float *)((char *)dst->data + (t + c) * dst->nb[1]) + first;
            }
            several((int)x->ne[0], (const char *)matrix->data + first * matrix->nb[1],
                    (int64_t)matrix->nb[1], least(rows, all - first), columns, count, out);
        }
}

/* found[name] = address; releases `found` where that fails. */
static int keep(PyObject *found, const char *name, uintptr_t address) {
    PyObject *number = PyLong_FromUnsignedLongLong(address);
    int failed = !number || PyDict_SetItemString(found, name, number);
    Py_XDECREF(number);
    if (failed) Py_DECREF(found);
    return !failed;
}

static PyObject *addresses(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    static const struct {
        const char *name;
        uintptr_t address;
    } operations[] = {
        {"prepare", (uintptr_t)prepare},
        {"gate_up", (uintptr_t)gate_up},
        {"down", (uintptr_t)down},
        {"product_prepare", (uintptr_t)product_prepare},
        {"product", (uintptr_t)product},
        {"packed_product", (uintptr_t)packed_product},
        {"silu", (uintptr_t)own_swiglu},
        {"swiglu_oai", (uintptr_t)swiglu_oai},
        {"gelu_tanh", (uintptr_t)geglu},
        {"relu2", (uintptr_t)relu2},
    };
    PyObject *found = PyDict_New();
    for (size_t i = 0; found && i < sizeof operations / sizeof *operations; i++)
        if (!keep(found, operations[i].name, operations[i].address)) return NULL;
    return found;
}

static PyObject *columns(PyObject *self, PyObject *most) {
    (void)self;
    long level = PyLong_AsLong(most);
    if (level == -1 && PyErr_Occurred()) return NULL;
    PyObject *found = PyDict_New();
    for (const struct named_rows *k = kernels_of_columns((int)level); found && k->name; k++)
        if (!keep(found, k->name, (uintptr_t)k->rows)) return NULL;
    return found;
}

static PyObject *use_gelu_table(PyObject *self, PyObject *address) {
    (void)self;
    void *found = PyLong_AsVoidPtr(address);
    if (found == NULL && PyErr_Occurred()) return NULL;
    gelu_table = found;
    Py_RETURN_NONE;
}

static PyObject *sizes(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    return Py_BuildValue("(nnnn)", (Py_ssize_t)sizeof(struct expert),
                         (Py_ssize_t)sizeof(struct scratch), (Py_ssize_t)sizeof(struct layer),
                         (Py_ssize_t)sizeof(struct product));
}

static PyMethodDef methods[] = {
    {"addresses", addresses, METH_NOARGS, "Address of every custom operation."},
    {"columns", columns, METH_O,
     "Addresses of the kernels for several columns by type: 2, the best of this processor; 1, at "
     "most AVX2; 0, none."},
    {"sizes", sizes, METH_NOARGS, "Bytes of struct expert, scratch, layer and product."},
    {"use_gelu_table", use_gelu_table, METH_O, "Floats by the bits of a float16, at an address."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_ragged", "Experts of any width on ggml's kernels.", -1, methods,
    NULL,                  NULL,      NULL,                                       NULL};

PyMODINIT_FUNC PyInit__ragged(void) { return PyModule_Create(&module); }
