/* Experts of any width for a few tokens at once, as four custom nodes of a ggml graph.
 *
 *   ids, weights, x -> prepare  (sort pairs by expert, quantise x)
 *                   -> gate_up  (h = silu(gate x) * up x, in units of rows, first come first served)
 *                   -> quantise (h as the down matrix's kernel wants it)
 *                   -> down     (y of every pair, then the weighted sum of a token in slot order)
 *
 * The dot products and quantisers are ggml's own, passed in as pointers, so every number is the one
 * that llama.cpp computes. A pair is one (token, slot) of the router's choice. ggml puts a barrier
 * between nodes. No ggml header is needed: struct tensor repeats the fields up to data, and the
 * Python side has checked that they lie there.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

#define KINDS 6
#define GATE_UP_ROWS 32
#define DOWN_ROWS 64
#define BLOCK 16

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
typedef void (*swiglu_fn)(int n, float *y, const float *gate, const float *up);

/* One expert: its matrices as they lie in the file, and the kernels of their types. */
struct expert {
    const char *gate, *up, *down;
    dot_fn gate_dot, up_dot, down_dot;
    quantise_fn quantise_h;
    int64_t gate_row, up_row, down_row; /* bytes of a row */
    int64_t width;
    int32_t gate_kind, up_kind; /* which of the quantised x */
};

/* Memory that the layers share, for at most max_tokens tokens. */
struct scratch {
    char *x[KINDS];
    float *h, *y;
    char *hq;
    int32_t *count, *start, *active; /* [experts] */
    int32_t *pair;                   /* [pairs] token * used + slot, sorted by expert */
    int64_t h_stride, hq_stride;     /* floats, bytes */
    int32_t active_count;
    atomic_int next_gate_up, next_down;
};

struct layer {
    struct expert *experts;
    struct scratch *scratch;
    swiglu_fn swiglu;
    quantise_fn quantise_x[KINDS];
    int64_t x_row[KINDS]; /* bytes of a quantised x */
    int32_t kinds, hidden, expert_count, used;
};

static void own_swiglu(int n, float *y, const float *gate, const float *up) {
    for (int i = 0; i < n; i++) y[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
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
    s->active_count = 0;
    for (int e = 0; e < l->expert_count; e++) {
        s->start[e] = next;
        next += s->count[e];
        if (s->count[e]) s->active[s->active_count++] = e;
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

static void gate_up_unit(const struct layer *l, int e, int first, int last) {
    struct scratch *s = l->scratch;
    const struct expert *x = &l->experts[e];
    int end = s->start[e] + s->count[e];
    for (int row = first; row < last; row += BLOCK) {
        int stop = row + BLOCK < last ? row + BLOCK : last;
        for (int q = s->start[e]; q < end; q++) {
            int token = s->pair[q] / l->used;
            const char *gx = s->x[x->gate_kind] + token * l->x_row[x->gate_kind];
            const char *ux = s->x[x->up_kind] + token * l->x_row[x->up_kind];
            float gate[BLOCK], up[BLOCK];
            for (int r = row; r < stop; r++)
                x->gate_dot(l->hidden, &gate[r - row], 0, x->gate + r * x->gate_row, 0, gx, 0, 1);
            for (int r = row; r < stop; r++)
                x->up_dot(l->hidden, &up[r - row], 0, x->up + r * x->up_row, 0, ux, 0, 1);
            l->swiglu(stop - row, s->h + q * s->h_stride + row, gate, up);
        }
    }
}

static void gate_up(struct tensor *dst, int ith, int nth, void *user) {
    (void)dst, (void)ith, (void)nth;
    const struct layer *l = user;
    struct scratch *s = l->scratch;
    int base = 0, a = 0;
    for (;;) {
        int unit = atomic_fetch_add(&s->next_gate_up, 1), units = 0;
        for (; a < s->active_count; a++, base += units) {
            units = ((int)l->experts[s->active[a]].width + GATE_UP_ROWS - 1) / GATE_UP_ROWS;
            if (unit < base + units) break;
        }
        if (a == s->active_count) return;
        int e = s->active[a], first = (unit - base) * GATE_UP_ROWS;
        int width = (int)l->experts[e].width;
        gate_up_unit(l, e, first, first + GATE_UP_ROWS < width ? first + GATE_UP_ROWS : width);
    }
}

static void quantise(struct tensor *dst, int ith, int nth, void *user) {
    (void)dst;
    const struct layer *l = user;
    struct scratch *s = l->scratch;
    for (int a = 0; a < s->active_count; a++) {
        int e = s->active[a];
        const struct expert *x = &l->experts[e];
        for (int q = s->start[e]; q < s->start[e] + s->count[e]; q++)
            if (q % nth == ith)
                x->quantise_h(s->h + q * s->h_stride, s->hq + q * s->hq_stride, x->width);
    }
}

static void down_unit(const struct layer *l, int e, int first, int last) {
    struct scratch *s = l->scratch;
    const struct expert *x = &l->experts[e];
    int end = s->start[e] + s->count[e];
    for (int row = first; row < last; row += BLOCK) {
        int stop = row + BLOCK < last ? row + BLOCK : last;
        for (int q = s->start[e]; q < end; q++) {
            float *y = s->y + (size_t)s->pair[q] * l->hidden;
            const char *h = s->hq + q * s->hq_stride;
            for (int r = row; r < stop; r++)
                x->down_dot((int)x->width, &y[r], 0, x->down + r * x->down_row, 0, h, 0, 1);
        }
    }
}

/* dst [hidden, tokens]; sources: x, ids, weights [used, tokens] */
static void down(struct tensor *dst, int ith, int nth, void *user) {
    (void)ith, (void)nth;
    const struct layer *l = user;
    struct scratch *s = l->scratch;
    const struct tensor *weights = dst->src[2];
    int tokens = (int)dst->ne[1];
    for (;;) {
        int first = atomic_fetch_add(&s->next_down, 1) * DOWN_ROWS;
        if (first >= l->hidden) return;
        int last = first + DOWN_ROWS < l->hidden ? first + DOWN_ROWS : l->hidden;
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

static PyObject *addresses(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    return Py_BuildValue(
        "{s:K,s:K,s:K,s:K,s:K}", "prepare", (unsigned long long)(uintptr_t)prepare, "gate_up",
        (unsigned long long)(uintptr_t)gate_up, "quantise",
        (unsigned long long)(uintptr_t)quantise, "down", (unsigned long long)(uintptr_t)down,
        "swiglu", (unsigned long long)(uintptr_t)own_swiglu);
}

static PyObject *sizes(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    return Py_BuildValue("(nnn)", (Py_ssize_t)sizeof(struct expert),
                         (Py_ssize_t)sizeof(struct scratch), (Py_ssize_t)sizeof(struct layer));
}

static PyMethodDef methods[] = {
    {"addresses", addresses, METH_NOARGS, "Address of every custom operation."},
    {"sizes", sizes, METH_NOARGS, "Bytes of struct expert, scratch and layer."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_ragged", "Experts of any width on ggml's kernels.", -1, methods,
    NULL,                  NULL,      NULL,                                       NULL};

PyMODINIT_FUNC PyInit__ragged(void) { return PyModule_Create(&module); }
