/* Several columns at once.
 *
 * A row of weights costs as much to unpack as to multiply, so several tokens share what is
 * unpacked. The numbers are those of ggml's dot product to the last bit: integers are exact in any
 * order, and the floats are added as ggml adds them. Python has compared both before one of these
 * is used.
 *
 * First the types with blocks of 256, whose columns are Q8_K, then those with blocks of 32. Each
 * has a row function for AVX2 and one for AVX-512 VNNI, of a type and a number of columns that the
 * compiler knows.
 */
#include "_columns.h"
#include <stddef.h>
#include <string.h>

#if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))
#include <immintrin.h>

struct q4_k { /* 256 weights, ggml's block_q4_K */
    uint16_t d, dmin;
    uint8_t scales[12], qs[128];
};
struct q5_k { /* block_q5_K */
    uint16_t d, dmin;
    uint8_t scales[12], qh[32], qs[128];
};
struct q6_k { /* block_q6_K */
    uint8_t ql[128], qh[64];
    int8_t scales[16];
    uint16_t d;
};
struct q8_k { /* ggml's block_q8_K */
    float d;
    int8_t qs[256];
    int16_t bsums[16];
};
struct iq4_xs { /* block_iq4_xs */
    uint16_t d, scales_h;
    uint8_t scales_l[4], qs[128];
};
enum type { Q4_K, Q5_K, Q6_K, IQ4_XS };

#define AVX2 __attribute__((target("avx2,fma,f16c")))
#define VNNI __attribute__((target("avx2,fma,f16c,avx512f,avx512vl,avx512bw,avx512vnni")))
#define INLINE static inline __attribute__((always_inline))

/* -- rows -------------------------------------------------------------------------------------- */

/* A block: codes of 32 weights each, their factors (of 32 each in types with minima, else of 16),
 * minima of 32 weights each, and what both are multiplied by. */
struct unpacked {
    __m256i q[8], scales;
    __m128i minima;
    __m128 factors; /* the block's, and that of the minima */
};

AVX2 INLINE __m256i load(const void *from) { return _mm256_loadu_si256((const __m256i *)from); }

/* The 6-bit scales and minima of a block as 16-bit numbers: scales below, minima above. The first
 * four of each lie in one piece, the others have their upper two bits there. */
AVX2 INLINE __m256i six_bits(const uint8_t *packed) {
    const __m128i all = _mm_loadu_si128((const __m128i *)packed); /* 12, and of the codes behind */
    const __m128i a = _mm_srlv_epi32(_mm_shuffle_epi32(all, 0x50), _mm_set_epi32(2, 0, 2, 0));
    const __m128i b = _mm_srlv_epi32(_mm_shuffle_epi32(all, 0xaa), _mm_set_epi32(4, 0, 0, 0));
    const __m128i six = _mm_set_epi32(0x30303030, 0x3f3f3f3f, 0x30303030, 0x3f3f3f3f);
    const __m128i four = _mm_set_epi32(0x0f0f0f0f, 0, 0x0f0f0f0f, 0);
    return _mm256_cvtepu8_epi16(_mm_or_si128(_mm_and_si128(a, six), _mm_and_si128(b, four)));
}

/* Both float16 factors of a block, which lie side by side. */
AVX2 INLINE void two_factors(const uint16_t *halves, struct unpacked *u) {
    int bits;
    memcpy(&bits, halves, 4);
    u->factors = _mm_cvtph_ps(_mm_cvtsi32_si128(bits));
}

AVX2 INLINE void unpack_q4_k(const struct q4_k *x, struct unpacked *u) {
    const __m256i low = _mm256_set1_epi8(15);
    for (int j = 0; j < 4; j++) {
        const __m256i bits = load(x->qs + 32 * j);
        u->q[2 * j] = _mm256_and_si256(bits, low);
        u->q[2 * j + 1] = _mm256_and_si256(_mm256_srli_epi16(bits, 4), low);
    }
    u->scales = six_bits(x->scales);
    u->minima = _mm256_extracti128_si256(u->scales, 1);
    two_factors(&x->d, u);
}

AVX2 INLINE void unpack_q5_k(const struct q5_k *x, struct unpacked *u) {
    const __m256i low = _mm256_set1_epi8(15), fifth = _mm256_set1_epi8(16);
    const __m256i high = load(x->qh);
    for (int j = 0; j < 4; j++) {
        const __m256i bits = load(x->qs + 32 * j);
        const __m256i a =
            j < 2 ? _mm256_slli_epi16(high, 4 - 2 * j) : _mm256_srli_epi16(high, 2 * j - 4);
        const __m256i b =
            j < 2 ? _mm256_slli_epi16(high, 3 - 2 * j) : _mm256_srli_epi16(high, 2 * j - 3);
        u->q[2 * j] = _mm256_or_si256(_mm256_and_si256(bits, low), _mm256_and_si256(a, fifth));
        u->q[2 * j + 1] = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(bits, 4), low),
                                          _mm256_and_si256(b, fifth));
    }
    u->scales = six_bits(x->scales);
    u->minima = _mm256_extracti128_si256(u->scales, 1);
    two_factors(&x->d, u);
}

/* Codes are 32 too large. */
AVX2 INLINE void unpack_q6_k(const struct q6_k *x, struct unpacked *u) {
    const __m256i low = _mm256_set1_epi8(15), high = _mm256_set1_epi8(48);
    for (int half = 0; half < 2; half++) {
        const __m256i a = load(x->ql + 64 * half), b = load(x->ql + 64 * half + 32);
        const __m256i h = load(x->qh + 32 * half);
        __m256i *q = u->q + 4 * half;
        q[0] = _mm256_or_si256(_mm256_and_si256(a, low),
                               _mm256_and_si256(_mm256_slli_epi16(h, 4), high));
        q[1] = _mm256_or_si256(_mm256_and_si256(b, low),
                               _mm256_and_si256(_mm256_slli_epi16(h, 2), high));
        q[2] = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(a, 4), low),
                               _mm256_and_si256(h, high));
        q[3] = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(b, 4), low),
                               _mm256_and_si256(_mm256_srli_epi16(h, 2), high));
    }
    u->scales = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)x->scales));
    u->factors = _mm_cvtph_ps(_mm_cvtsi32_si128(x->d));
}

/* The values of IQ4_NL and IQ4_XS. */
AVX2 INLINE __m128i nonlinear(void) {
    return _mm_setr_epi8(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113);
}

/* The factors of 32 codes each. */
AVX2 INLINE __m256i scales_iq4_xs(const struct iq4_xs *x) {
    int low;
    memcpy(&low, x->scales_l, 4);
    const __m256i each = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
    const __m256i l = _mm256_srlv_epi32(_mm256_set1_epi32(low), _mm256_slli_epi32(each, 2));
    const __m256i h = _mm256_srlv_epi32(_mm256_set1_epi32(x->scales_h), _mm256_slli_epi32(each, 1));
    const __m256i above = _mm256_slli_epi32(_mm256_and_si256(h, _mm256_set1_epi32(3)), 4);
    const __m256i six = _mm256_or_si256(_mm256_and_si256(l, _mm256_set1_epi32(15)), above);
    return _mm256_sub_epi32(six, _mm256_set1_epi32(32));
}

/* Codes are signed. */
AVX2 INLINE void unpack_iq4_xs(const struct iq4_xs *x, struct unpacked *u) {
    const __m256i values = _mm256_broadcastsi128_si256(nonlinear()), low = _mm256_set1_epi8(15);
    for (int j = 0; j < 8; j++) {
        const __m128i bits = _mm_loadu_si128((const __m128i *)(x->qs + 16 * j));
        const __m256i both =
            _mm256_inserti128_si256(_mm256_castsi128_si256(bits), _mm_srli_epi16(bits, 4), 1);
        u->q[j] = _mm256_shuffle_epi8(values, _mm256_and_si256(both, low));
    }
    const __m256i scales = scales_iq4_xs(x);
    const __m128i packed =
        _mm_packs_epi32(_mm256_castsi256_si128(scales), _mm256_extracti128_si256(scales, 1));
    u->scales = _mm256_castsi128_si256(packed);
    u->factors = _mm_cvtph_ps(_mm_cvtsi32_si128(x->d));
}

INLINE int block_bytes(const enum type type) {
    return (int)(type == Q4_K   ? sizeof(struct q4_k)
                 : type == Q5_K ? sizeof(struct q5_k)
                 : type == Q6_K ? sizeof(struct q6_k)
                                : sizeof(struct iq4_xs));
}
INLINE int has_minima(const enum type type) { return type == Q4_K || type == Q5_K; }

AVX2 INLINE void unpack(const enum type type, const char *block, struct unpacked *u) {
    if (type == Q4_K) unpack_q4_k((const struct q4_k *)block, u);
    if (type == Q5_K) unpack_q5_k((const struct q5_k *)block, u);
    if (type == Q6_K) unpack_q6_k((const struct q6_k *)block, u);
    if (type == IQ4_XS) unpack_iq4_xs((const struct iq4_xs *)block, u);
}

/* -- columns ----------------------------------------------------------------------------------- */

/* What of n columns is the same for every row, by block: the codes, column after column; their
 * factors, eight times each (columns in pairs) and four times (in fours); sums of 16 codes (in
 * pairs) and of 32 (in fours). Lanes of no column are 0: what lies there might be slow to multiply.
 */
#define MOST_VALUES (256 * 256) /* of all columns */
struct columns {
    int8_t qs[MOST_VALUES];
    float eight[MOST_VALUES / 512][16], four[MOST_VALUES / 1024][16];
    int16_t sixteenths[MOST_VALUES / 512][32], eighths[MOST_VALUES / 1024][32];
} __attribute__((aligned(64)));

/* How the codes of columns lie: as they are, with the second and third 32 of every 128 in each
 * other's place, or 128 larger and never negative. */
enum order { PLAIN, CROSSED, TURNED };
AVX2 INLINE void prepare_column(const int n, const enum order order, int blocks, const char *column,
                                int c, struct columns *all) {
    const int pairs = (n + 1) / 2, fours = (n + 3) / 4;
    const struct q8_k *y = (const struct q8_k *)column;
    for (int b = 0; b < blocks; b++, y++) {
        const int pair = b * pairs + c / 2, four = b * fours + c / 4;
        const __m256i sums = load(y->bsums);
        const __m128i halves = _mm256_castsi256_si128(sums);
        for (int j = 0; j < 8; j++) {
            const int to = order == CROSSED && (j % 4 == 1 || j % 4 == 2) ? j ^ 3 : j;
            const __m256i sign = _mm256_set1_epi8(order == TURNED ? (char)0x80 : 0);
            int8_t *at = all->qs + (b * n + c) * 256 + 32 * to;
            _mm256_store_si256((__m256i *)at, _mm256_xor_si256(load(y->qs + 32 * j), sign));
        }
        _mm256_store_ps(all->eight[pair] + 8 * (c % 2), _mm256_set1_ps(y->d));
        _mm_store_ps(all->four[four] + 4 * (c % 4), _mm_set1_ps(y->d));
        _mm256_store_si256((__m256i *)(all->sixteenths[pair] + 16 * (c % 2)), sums);
        _mm_store_si128((__m128i *)(all->eighths[four] + 8 * (c % 4)),
                        _mm_hadd_epi16(halves, _mm256_extracti128_si256(sums, 1)));
    }
}

static void clear_columns(int n, int blocks, struct columns *all) {
    const int pairs = (n + 1) / 2, fours = (n + 3) / 4;
    if (n % 2) {
        memset(all->eight, 0, sizeof all->eight[0] * pairs * blocks);
        memset(all->sixteenths, 0, sizeof all->sixteenths[0] * pairs * blocks);
    }
    if (n % 4) {
        memset(all->four, 0, sizeof all->four[0] * fours * blocks);
        memset(all->eighths, 0, sizeof all->eighths[0] * fours * blocks);
    }
}

/* ggml's hsum_float_8 */
AVX2 INLINE float sum_of(__m256 acc) {
    __m128 r = _mm_add_ps(_mm256_extractf128_ps(acc, 1), _mm256_castps256_ps128(acc));
    r = _mm_add_ps(r, _mm_movehl_ps(r, r));
    r = _mm_add_ss(r, _mm_movehdup_ps(r));
    return _mm_cvtss_f32(r);
}

/* -- a row times n columns ---------------------------------------------------------------------- */

/* The factors of codes 32 j and on, in every 16 bits; in Q6_K they are of 16 codes. */
AVX2 INLINE __m256i factors_avx2(const enum type type, __m256i scales, const int j) {
    if (type != Q6_K) {
        const __m256i both = _mm256_permutevar8x32_epi32(scales, _mm256_set1_epi32(j / 2));
        const __m256i one = j % 2 ? _mm256_srli_epi32(both, 16) : _mm256_slli_epi32(both, 16);
        return j % 2 ? _mm256_blend_epi16(one, both, 0xaa) : _mm256_blend_epi16(both, one, 0xaa);
    }
    const __m256i two = _mm256_permutevar8x32_epi32(scales, _mm256_set1_epi32(j));
    const __m256i first = _mm256_set1_epi16(0x0100), second = _mm256_set1_epi16(0x0302);
    return _mm256_shuffle_epi8(two, _mm256_blend_epi32(first, second, 0xf0));
}

/* least - the minima of a block times the sums of the groups of two columns: ggml adds four floats
 * of Q4_K, and of Q5_K one. */
AVX2 INLINE __m256 less_minima_avx2(const enum type type, const struct unpacked *u,
                                    const int16_t *eighths, const float *four, __m256 least) {
    const __m256 d =
        _mm256_mul_ps(_mm256_load_ps(four), _mm256_broadcastss_ps(_mm_movehdup_ps(u->factors)));
    __m256i sums = _mm256_madd_epi16(_mm256_broadcastsi128_si256(u->minima), load(eighths));
    if (type != Q4_K) {
        sums = _mm256_add_epi32(sums, _mm256_shuffle_epi32(sums, 0x4e));
        sums = _mm256_add_epi32(sums, _mm256_shuffle_epi32(sums, 0xb1));
    }
    return _mm256_fnmadd_ps(d, _mm256_cvtepi32_ps(sums), least);
}
AVX2 INLINE void add_least_avx2(const enum type type, __m256 least, const int n, float *made) {
    if (type == Q4_K) {
        least = _mm256_add_ps(least, _mm256_permute_ps(least, 0x4e));
        least = _mm256_add_ps(least, _mm256_permute_ps(least, 0xf5));
    }
    made[0] += _mm256_cvtss_f32(least);
    if (n > 1) made[1] += _mm_cvtss_f32(_mm256_extractf128_ps(least, 1));
}

AVX2 INLINE void row_avx2(const enum type type, int n, int blocks, const char *x,
                          const struct columns *all, float *made) {
    const int pairs = (n + 1) / 2, fours = (n + 3) / 4;
    __m256 acc[MOST_COLUMNS], least[MOST_COLUMNS / 2];
    for (int c = 0; c < n; c++) acc[c] = _mm256_setzero_ps();
    for (int p = 0; p < pairs; p++) least[p] = _mm256_setzero_ps();
    for (int b = 0; b < blocks; b++, x += block_bytes(type)) {
        struct unpacked u;
        unpack(type, x, &u);
        __m256i factors[8];
        for (int j = 0; j < 8; j++) factors[j] = factors_avx2(type, u.scales, j);
        const __m256i less =
            _mm256_slli_epi16(_mm256_sub_epi16(_mm256_setzero_si256(), u.scales), 5);
        const __m256 d = _mm256_broadcastss_ps(u.factors);
        for (int c = 0; c < n; c++) {
            const int8_t *y = all->qs + (b * n + c) * 256;
            const int pair = b * pairs + c / 2;
            __m256i sum = _mm256_setzero_si256();
            if (type == Q6_K)
                sum = _mm256_madd_epi16(less, load(all->sixteenths[pair] + 16 * (c % 2)));
            for (int j = 0; j < 8; j++) {
                const __m256i q = u.q[j], own = load(y + 32 * j);
                const __m256i products =
                    type == IQ4_XS
                        ? _mm256_maddubs_epi16(_mm256_sign_epi8(q, q), _mm256_sign_epi8(own, q))
                        : _mm256_maddubs_epi16(q, own);
                sum = _mm256_add_epi32(sum, _mm256_madd_epi16(factors[j], products));
            }
            acc[c] =
                _mm256_fmadd_ps(_mm256_mul_ps(d, _mm256_load_ps(all->eight[pair] + 8 * (c % 2))),
                                _mm256_cvtepi32_ps(sum), acc[c]);
        }
        for (int p = 0; has_minima(type) && p < pairs; p++) {
            const int four = b * fours + p / 2, half = p % 2;
            least[p] = less_minima_avx2(type, &u, all->eighths[four] + 16 * half,
                                        all->four[four] + 8 * half, least[p]);
        }
    }
    for (int c = 0; c < n; c++) made[c] = sum_of(acc[c]);
    for (int p = 0; has_minima(type) && p < pairs; p++)
        add_least_avx2(type, least[p], n - 2 * p, made + 2 * p);
}

/* Types with minima have the codes of two groups of 32 in the halves of a byte: 64 bytes are groups
 * 0 and 2, then 1 and 3. So columns are crossed for them. */
VNNI INLINE void unpack_vnni(const enum type type, const char *block, struct unpacked *u,
                             __m512i q[4]) {
    const __m512i low = _mm512_set1_epi8(15);
    if (type == Q6_K) {
        const struct q6_k *x = (const struct q6_k *)block;
        const __m512i high = _mm512_set1_epi8(48),
                      down = _mm512_mask_set1_epi16(_mm512_setzero_si512(), 0xffff0000u, 2);
        const __m512i up = _mm512_sub_epi16(_mm512_set1_epi16(4), down);
        for (int half = 0; half < 2; half++) {
            const __m512i bits = _mm512_loadu_si512(x->ql + 64 * half);
            const __m512i h = _mm512_broadcast_i64x4(load(x->qh + 32 * half));
            /* (a & b) | c */
            q[2 * half] = _mm512_ternarylogic_epi32(_mm512_sllv_epi16(h, up), high,
                                                    _mm512_and_si512(bits, low), 0xea);
            q[2 * half + 1] =
                _mm512_ternarylogic_epi32(_mm512_srlv_epi16(h, down), high,
                                          _mm512_and_si512(_mm512_srli_epi16(bits, 4), low), 0xea);
        }
        u->scales = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)x->scales));
        u->factors = _mm_cvtph_ps(_mm_cvtsi32_si128(x->d));
        return;
    }
    const struct q4_k *x = (const struct q4_k *)block; /* as block_q5_K begins */
    const uint8_t *qs = type == Q4_K ? x->qs : ((const struct q5_k *)block)->qs;
    for (int half = 0; half < 2; half++) {
        const __m512i bits = _mm512_loadu_si512(qs + 64 * half);
        q[2 * half] = _mm512_and_si512(bits, low);
        q[2 * half + 1] = _mm512_and_si512(_mm512_srli_epi16(bits, 4), low);
    }
    if (type == Q5_K) { /* bit g of a byte is the fifth of group g: turned to its place */
        const __m512i fifth = _mm512_set1_epi8(16);
        const __m512i h = _mm512_broadcast_i64x4(load(((const struct q5_k *)block)->qh));
        for (int j = 0; j < 4; j++) {
            const int group = 4 * (j / 2) + j % 2;
            const __m512i turns =
                _mm512_mask_set1_epi32(_mm512_set1_epi32(36 - group), 0xff00, 34 - group);
            q[j] = _mm512_ternarylogic_epi32(_mm512_rolv_epi32(h, turns), fifth, q[j], 0xea);
        }
    }
    u->scales = six_bits(x->scales);
    u->minima = _mm256_extracti128_si256(u->scales, 1);
    two_factors(&x->d, u);
}

/* The factors of codes 128 k and on: those of the first 64 in the lower half of every 32 bits. */
VNNI INLINE __m512i factors_vnni(const enum type type, __m256i scales, const int k) {
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i start = _mm512_set1_epi32((has_minima(type) ? 4 : 8) * k);
    const __m512i group = has_minima(type) ? _mm512_slli_epi32(_mm512_srli_epi32(lane, 3), 1)
                                           : _mm512_srli_epi32(lane, 2);
    const __m512i first = _mm512_add_epi32(start, group);
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(has_minima(type) ? 1 : 4));
    return _mm512_permutexvar_epi16(_mm512_or_si512(first, _mm512_slli_epi32(second, 16)),
                                    _mm512_castsi256_si512(scales));
}

/* 64 codes times those of a column and 64 more, four products in 16 bits: 63 * 128 * 4 fit. */
VNNI INLINE __m512i products_vnni(__m512i q0, __m512i q1, const int8_t *y) {
    const __m512i zero = _mm512_setzero_si512();
    const __m512i upwards =
        _mm512_broadcast_i32x4(/* the lower 16 bits of 32 into the upper ones */
                               _mm_set_epi32(0x0d0c0f0e, 0x09080b0a, 0x05040706, 0x01000302));
    const __m512i first = _mm512_dpbusd_epi32(zero, q0, _mm512_load_si512(y));
    const __m512i second = _mm512_dpbusd_epi32(zero, q1, _mm512_load_si512(y + 64));
    return _mm512_mask_shuffle_epi8(first, 0xccccccccccccccccu, second, upwards);
}

/* The signed codes of IQ4_XS are up to 127, so four products take 32 bits: factors of each. `less`:
 * what the columns' codes, 128 too large, make the sum too large. */
VNNI INLINE void unpack_iq4_xs_vnni(const struct iq4_xs *x, struct unpacked *u, __m512i q[4],
                                    __m512i factors[4], __m512i *less) {
    const __m512i values = _mm512_broadcast_i32x4(nonlinear()), zero = _mm512_setzero_si512();
    const __m512i twice = _mm512_set_epi64(3, 2, 3, 2, 1, 0, 1, 0);
    const __m512i shifts = _mm512_set_epi64(0x0004000400040004, 0x0004000400040004, 0, 0,
                                            0x0004000400040004, 0x0004000400040004, 0, 0);
    const __m512i scales = _mm512_castsi256_si512(scales_iq4_xs(x));
    *less = zero;
    for (int j = 0; j < 4; j++) {
        const __m512i bits =
            _mm512_permutexvar_epi64(twice, _mm512_castsi256_si512(load(x->qs + 32 * j)));
        const __m512i codes =
            _mm512_and_si512(_mm512_srlv_epi16(bits, shifts), _mm512_set1_epi8(15));
        const __m512i which = _mm512_mask_set1_epi32(_mm512_set1_epi32(2 * j), 0xff00, 2 * j + 1);
        q[j] = _mm512_shuffle_epi8(values, codes);
        factors[j] = _mm512_permutexvar_epi32(which, scales);
        const __m512i sums = _mm512_dpbusd_epi32(zero, _mm512_set1_epi8((char)0x80), q[j]);
        *less = _mm512_sub_epi32(*less, _mm512_mullo_epi32(factors[j], sums));
    }
    u->factors = _mm_cvtph_ps(_mm_cvtsi32_si128(x->d));
}
VNNI INLINE __m512i sum_iq4_xs(const __m512i q[4], const __m512i factors[4], __m512i less,
                               const int8_t *y) {
    for (int j = 0; j < 4; j++) {
        const __m512i codes = _mm512_load_si512(y + 64 * j);
        const __m512i products = _mm512_dpbusd_epi32(_mm512_setzero_si512(), codes, q[j]);
        less = _mm512_add_epi32(less, _mm512_mullo_epi32(factors[j], products));
    }
    return less;
}

/* Two accumulators of two columns each: hsum_float_8 of all four, in the first lane of each four.
 */
VNNI INLINE __m512 sums_of_four(__m512 ab, __m512 cd) {
    __m512 r =
        _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0xdd), _mm512_shuffle_f32x4(ab, cd, 0x88));
    r = _mm512_add_ps(r, _mm512_permute_ps(r, 0x4e));
    return _mm512_add_ps(r, _mm512_permute_ps(r, 0xf5));
}

VNNI INLINE __m512i sum_vnni(const __m512i q[4], const __m512i factors[4], const int8_t *y) {
    const __m512i sum =
        _mm512_dpwssd_epi32(_mm512_setzero_si512(), factors[0], products_vnni(q[0], q[1], y));
    return _mm512_dpwssd_epi32(sum, factors[1], products_vnni(q[2], q[3], y + 128));
}

VNNI INLINE __m512 less_minima_vnni(const enum type type, const struct unpacked *u,
                                    const int16_t *eighths, const float *four, __m512 least) {
    const __m512 d =
        _mm512_mul_ps(_mm512_load_ps(four), _mm512_broadcastss_ps(_mm_movehdup_ps(u->factors)));
    __m512i sums = _mm512_madd_epi16(_mm512_broadcast_i32x4(u->minima), _mm512_load_si512(eighths));
    if (type != Q4_K) {
        sums = _mm512_add_epi32(sums, _mm512_shuffle_epi32(sums, 0x4e));
        sums = _mm512_add_epi32(sums, _mm512_shuffle_epi32(sums, 0xb1));
    }
    return _mm512_fnmadd_ps(d, _mm512_cvtepi32_ps(sums), least);
}
VNNI INLINE __m512 with_least_vnni(const enum type type, __m512 sums, __m512 least) {
    if (type == Q4_K) {
        least = _mm512_add_ps(least, _mm512_permute_ps(least, 0x4e));
        least = _mm512_add_ps(least, _mm512_permute_ps(least, 0xf5));
    }
    return has_minima(type) ? _mm512_add_ps(sums, least) : sums;
}

VNNI INLINE void row_vnni(const enum type type, const int n, int blocks, const char *x,
                          const struct columns *all, float *made) {
    const int pairs = (n + 1) / 2, fours = (n + 3) / 4;
    const __m512i zero = _mm512_setzero_si512();
    __m512 acc[4], least[2];
    for (int p = 0; p < 4; p++) acc[p] = _mm512_setzero_ps();
    for (int f = 0; f < 2; f++) least[f] = _mm512_setzero_ps();
    for (int b = 0; b < blocks; b++, x += block_bytes(type)) {
        struct unpacked u;
        __m512i q[4], factors[4], less = zero;
        if (type == IQ4_XS)
            unpack_iq4_xs_vnni((const struct iq4_xs *)x, &u, q, factors, &less);
        else {
            unpack_vnni(type, x, &u, q);
            factors[0] = factors_vnni(type, u.scales, 0),
            factors[1] = factors_vnni(type, u.scales, 1);
        }
        if (type == Q6_K)
            less = _mm512_broadcast_i64x4(
                _mm256_slli_epi16(_mm256_sub_epi16(_mm256_setzero_si256(), u.scales), 5));
        const __m512 d = _mm512_broadcastss_ps(u.factors);
        for (int p = 0; p < pairs; p++) {
            const int8_t *y = all->qs + (b * n + 2 * p) * 256;
            __m512i a, c = zero;
            if (type == IQ4_XS) {
                a = sum_iq4_xs(q, factors, less, y);
                if (2 * p + 1 < n) c = sum_iq4_xs(q, factors, less, y + 256);
            } else {
                a = sum_vnni(q, factors, y);
                if (2 * p + 1 < n) c = sum_vnni(q, factors, y + 256);
            }
            __m512i sum;
            if (2 * p + 1 < n)
                sum = _mm512_add_epi32(_mm512_inserti64x4(a, _mm512_castsi512_si256(c), 1),
                                       _mm512_shuffle_i64x2(a, c, 0xee));
            else
                sum = _mm512_zextsi256_si512(
                    _mm256_add_epi32(_mm512_castsi512_si256(a), _mm512_extracti64x4_epi64(a, 1)));
            if (type == Q6_K)
                sum = _mm512_dpwssd_epi32(sum, less,
                                          _mm512_load_si512(all->sixteenths[b * pairs + p]));
            acc[p] = _mm512_fmadd_ps(_mm512_mul_ps(d, _mm512_load_ps(all->eight[b * pairs + p])),
                                     _mm512_cvtepi32_ps(sum), acc[p]);
        }
        for (int f = 0; has_minima(type) && f < fours; f++)
            least[f] = less_minima_vnni(type, &u, all->eighths[b * fours + f],
                                        all->four[b * fours + f], least[f]);
    }
    const __m512i first_lanes =
        _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 28, 24, 20, 16, 12, 8, 4, 0);
    __m512 low = with_least_vnni(type, sums_of_four(acc[0], acc[1]), least[0]), high = low;
    if (n > 4) high = with_least_vnni(type, sums_of_four(acc[2], acc[3]), least[1]);
    _mm256_storeu_ps(made, _mm512_castps512_ps256(_mm512_permutex2var_ps(low, first_lanes, high)));
}

/* -- blocks of 32 ------------------------------------------------------------------------------- */

struct q8_0 { /* ggml's block_q8_0, as rows and as columns */
    uint16_t d;
    int8_t qs[32];
};
struct q8_1 { /* block_q8_1: columns of the types with a least weight; s is d times the sum */
    uint16_t d, s;
    int8_t qs[32];
};
enum type32 { Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, IQ4_NL };

INLINE int has_least(const enum type32 type) { return type == Q4_1 || type == Q5_1; }
INLINE int block_bytes_32(const enum type32 type) {
    return type == Q8_0
               ? 34
               : 2 + 16 + (has_least(type) ? 2 : 0) + (type == Q5_0 || type == Q5_1 ? 4 : 0);
}

AVX2 INLINE float half_at(const void *from) {
    uint16_t bits;
    memcpy(&bits, from, 2);
    return _cvtsh_ss(bits);
}

/* A byte for each of 32 bits: all ones where it is set. */
AVX2 INLINE __m256i bytes_of_bits(const void *from) {
    int bits;
    memcpy(&bits, from, 4);
    const __m256i each =
        _mm256_set_epi64x(0x0303030303030303, 0x0202020202020202, 0x0101010101010101, 0);
    const __m256i others = _mm256_set1_epi64x(0x7fbfdfeff7fbfdfe);
    const __m256i found =
        _mm256_or_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(bits), each), others);
    return _mm256_cmpeq_epi8(found, _mm256_set1_epi8(-1));
}

/* The 32 codes of a block, signed. */
AVX2 INLINE __m256i codes_32(const enum type32 type, const char *x) {
    if (type == Q8_0) return load(x + 2);
    const char *at = x + block_bytes_32(type) - 16;
    const __m128i both = _mm_loadu_si128((const __m128i *)at);
    __m256i q = _mm256_inserti128_si256(_mm256_castsi128_si256(both), _mm_srli_epi16(both, 4), 1);
    q = _mm256_and_si256(q, _mm256_set1_epi8(15));
    if (type == IQ4_NL) return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(nonlinear()), q);
    if (type == Q5_0)
        return _mm256_or_si256(
            q, _mm256_andnot_si256(bytes_of_bits(at - 4), _mm256_set1_epi8((char)0xf0)));
    if (type == Q5_1)
        return _mm256_or_si256(q, _mm256_and_si256(bytes_of_bits(at - 4), _mm256_set1_epi8(16)));
    return type == Q4_0 ? _mm256_sub_epi8(q, _mm256_set1_epi8(8)) : q;
}

/* What of n columns is the same for every row, by block: codes of two columns side by side; factors
 * and sums of each, 0 of no column. */
struct columns_32 {
    int8_t qs[MOST_VALUES];
    float d[MOST_BLOCKS * 8][MOST_COLUMNS], s[MOST_BLOCKS * 8][MOST_COLUMNS];
} __attribute__((aligned(64)));

AVX2 INLINE void prepare_column_32(const int least, const enum order order, int pairs, int blocks,
                                   const char *column, int c, struct columns_32 *all) {
    const __m256i sign = _mm256_set1_epi8(order == TURNED ? (char)0x80 : 0);
    const int bytes = (int)(least ? sizeof(struct q8_1) : sizeof(struct q8_0));
    for (int b = 0; b < blocks; b++, column += bytes) {
        const __m256i q = _mm256_xor_si256(load(column + bytes - 32), sign);
        _mm256_store_si256((__m256i *)(all->qs + (b * pairs + c / 2) * 64 + 32 * (c % 2)), q);
        all->d[b][c] = half_at(column);
        if (least) all->s[b][c] = half_at(column + 2);
    }
}

AVX2 INLINE void row_32_avx2(const enum type32 type, const int n, int blocks, const char *x,
                             const struct columns_32 *all, float *made) {
    const int pairs = (n + 1) / 2;
    __m256 acc[2][MOST_COLUMNS], least = _mm256_setzero_ps();
    for (int c = 0; c < n; c++) acc[0][c] = acc[1][c] = _mm256_setzero_ps();
    /* ggml adds even and odd blocks of IQ4_NL apart, and one that is left over as integers. */
    const int two = type == IQ4_NL, whole = two ? blocks / 2 * 2 : blocks;
    for (int b = 0; b < whole; b++, x += block_bytes_32(type)) {
        const __m256i q = codes_32(type, x), size = _mm256_sign_epi8(q, q);
        float d[MOST_COLUMNS];
        _mm256_storeu_ps(d, _mm256_mul_ps(_mm256_set1_ps(half_at(x)), _mm256_load_ps(all->d[b])));
        if (has_least(type))
            least =
                _mm256_fmadd_ps(_mm256_set1_ps(half_at(x + 2)), _mm256_load_ps(all->s[b]), least);
        for (int c = 0; c < n; c++) {
            const __m256i y = load(all->qs + (b * pairs + c / 2) * 64 + 32 * (c % 2));
            const __m256i products = _mm256_maddubs_epi16(size, _mm256_sign_epi8(y, q));
            const __m256i sums = _mm256_madd_epi16(products, _mm256_set1_epi16(1));
            __m256 *to = &acc[two && b % 2][c];
            *to = _mm256_fmadd_ps(_mm256_set1_ps(d[c]), _mm256_cvtepi32_ps(sums), *to);
        }
    }
    for (int c = 0; c < n; c++)
        made[c] = sum_of(two ? _mm256_add_ps(acc[0][c], acc[1][c]) : acc[0][c]);
    if (has_least(type)) _mm256_storeu_ps(made, _mm256_add_ps(_mm256_loadu_ps(made), least));
}

VNNI INLINE void row_32_vnni(const enum type32 type, const int n, int blocks, const char *x,
                             const struct columns_32 *all, float *made) {
    const int pairs = (n + 1) / 2, two = type == IQ4_NL, whole = two ? blocks / 2 * 2 : blocks;
    const __m512i zero = _mm512_setzero_si512();
    __m512 acc[2][4];
    __m256 least = _mm256_setzero_ps();
    for (int p = 0; p < 4; p++) acc[0][p] = acc[1][p] = _mm512_setzero_ps();
    for (int b = 0; b < whole; b++, x += block_bytes_32(type)) {
        const __m512i q = _mm512_broadcast_i64x4(codes_32(type, x));
        /* What the columns' codes are too large. */
        const __m512i less =
            _mm512_sub_epi32(zero, _mm512_dpbusd_epi32(zero, _mm512_set1_epi8((char)0x80), q));
        const __m512 d = _mm512_castps256_ps512(
            _mm256_mul_ps(_mm256_set1_ps(half_at(x)), _mm256_load_ps(all->d[b])));
        if (has_least(type))
            least =
                _mm256_fmadd_ps(_mm256_set1_ps(half_at(x + 2)), _mm256_load_ps(all->s[b]), least);
        for (int p = 0; p < pairs; p++) {
            const __m512i columns =
                _mm512_mask_set1_epi32(_mm512_set1_epi32(2 * p), 0xff00, 2 * p + 1);
            const __m512i y = _mm512_load_si512(all->qs + (b * pairs + p) * 64);
            const __m512 sums = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(less, y, q));
            __m512 *to = &acc[two && b % 2][p];
            *to = _mm512_fmadd_ps(_mm512_permutexvar_ps(columns, d), sums, *to);
        }
    }
    for (int p = 0; two && p < pairs; p++) acc[0][p] = _mm512_add_ps(acc[0][p], acc[1][p]);
    const __m512i first_lanes =
        _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 28, 24, 20, 16, 12, 8, 4, 0);
    const __m512 low = sums_of_four(acc[0][0], acc[0][1]);
    const __m512 high = n > 4 ? sums_of_four(acc[0][2], acc[0][3]) : low;
    const __m256 sums = _mm512_castps512_ps256(_mm512_permutex2var_ps(low, first_lanes, high));
    _mm256_storeu_ps(made, has_least(type) ? _mm256_add_ps(sums, least) : sums);
}

/* The block of IQ4_NL that is left over. */
AVX2 INLINE void add_last(const char *x, const enum order order, int b, const int n,
                          const struct columns_32 *all, float *made) {
    const int pairs = (n + 1) / 2;
    int8_t q[32];
    _mm256_storeu_si256((__m256i *)q, codes_32(IQ4_NL, x));
    for (int c = 0; c < n; c++) {
        const int8_t *y = all->qs + (b * pairs + c / 2) * 64 + 32 * (c % 2);
        int sum = 0;
        for (int i = 0; i < 32; i++)
            sum += q[i] * (order == TURNED ? (int)(uint8_t)y[i] - 128 : y[i]);
        made[c] += half_at(x) * all->d[b][c] * (float)sum;
    }
}

/* -- all rows ----------------------------------------------------------------------------------- */

#define FOR_COUNT(NAME, BLOCK, COLUMNS)                                                  \
    const int blocks = n / BLOCK;                                                        \
    const int most = n <= 256 * MOST_BLOCKS / 2 ? MOST_COLUMNS : MOST_COLUMNS / 2;       \
    struct COLUMNS all; /* here: those of several counts might not share their place */  \
    for (; count > 0; count -= most, columns += most, out += most)                       \
        switch (count < most ? count : most) {                                           \
        case 1: NAME##_n(1, blocks, matrix, row_bytes, rows, columns, out, &all); break; \
        case 2: NAME##_n(2, blocks, matrix, row_bytes, rows, columns, out, &all); break; \
        case 3: NAME##_n(3, blocks, matrix, row_bytes, rows, columns, out, &all); break; \
        case 4: NAME##_n(4, blocks, matrix, row_bytes, rows, columns, out, &all); break; \
        case 5: NAME##_n(5, blocks, matrix, row_bytes, rows, columns, out, &all); break; \
        case 6: NAME##_n(6, blocks, matrix, row_bytes, rows, columns, out, &all); break; \
        case 7: NAME##_n(7, blocks, matrix, row_bytes, rows, columns, out, &all); break; \
        default: NAME##_n(8, blocks, matrix, row_bytes, rows, columns, out, &all);       \
        }

#define KERNEL(TARGET, ROW, TYPE, ORDER)                                                         \
    TARGET INLINE void ROW##_##TYPE##_n(const int n, int blocks, const char *matrix,             \
                                        int64_t row_bytes, int rows, const char *const *columns, \
                                        float *const *out, struct columns *all) {                \
        clear_columns(n, blocks, all);                                                           \
        for (int c = 0; c < n; c++) prepare_column(n, ORDER, blocks, columns[c], c, all);        \
        for (int r = 0; r < rows; r++) {                                                         \
            float made[MOST_COLUMNS];                                                            \
            ROW(TYPE, n, blocks, matrix + r * row_bytes, all, made);                             \
            for (int c = 0; c < n; c++) out[c][r] = made[c];                                     \
        }                                                                                        \
    }                                                                                            \
    TARGET static void ROW##_##TYPE(int n, const char *matrix, int64_t row_bytes, int rows,      \
                                    const char *const *columns, int count, float *const *out) {  \
        FOR_COUNT(ROW##_##TYPE, 256, columns)                                                    \
    }

#define KERNEL_32(TARGET, ROW, TYPE, ORDER)                                                      \
    TARGET INLINE void ROW##_##TYPE##_n(const int n, int blocks, const char *matrix,             \
                                        int64_t row_bytes, int rows, const char *const *columns, \
                                        float *const *out, struct columns_32 *all) {             \
        const int pairs = (n + 1) / 2, last = blocks - 1;                                        \
        memset(all->d, 0, sizeof all->d[0] * blocks);                                            \
        if (has_least(TYPE)) memset(all->s, 0, sizeof all->s[0] * blocks);                       \
        for (int c = 0; c < n; c++)                                                              \
            prepare_column_32(has_least(TYPE), ORDER, pairs, blocks, columns[c], c, all);        \
        for (int r = 0; r < rows; r++) {                                                         \
            const char *x = matrix + r * row_bytes;                                              \
            float made[MOST_COLUMNS];                                                            \
            ROW(TYPE, n, blocks, x, all, made);                                                  \
            if (TYPE == IQ4_NL && blocks % 2)                                                    \
                add_last(x + last * block_bytes_32(TYPE), ORDER, last, n, all, made);            \
            for (int c = 0; c < n; c++) out[c][r] = made[c];                                     \
        }                                                                                        \
    }                                                                                            \
    TARGET static void ROW##_##TYPE(int n, const char *matrix, int64_t row_bytes, int rows,      \
                                    const char *const *columns, int count, float *const *out) {  \
        FOR_COUNT(ROW##_##TYPE, 32, columns_32)                                                  \
    }

#define KERNELS(TYPE, ORDER)            \
    KERNEL(AVX2, row_avx2, TYPE, PLAIN) \
    KERNEL(VNNI, row_vnni, TYPE, ORDER)
#define KERNELS_32(TYPE)                      \
    KERNEL_32(AVX2, row_32_avx2, TYPE, PLAIN) \
    KERNEL_32(VNNI, row_32_vnni, TYPE, TURNED)
KERNELS(Q4_K, CROSSED)
KERNELS(Q5_K, CROSSED)
KERNELS(Q6_K, PLAIN)
KERNELS(IQ4_XS, TURNED)
KERNELS_32(Q8_0)
KERNELS_32(Q4_0)
KERNELS_32(Q4_1)
KERNELS_32(Q5_0)
KERNELS_32(Q5_1)
KERNELS_32(IQ4_NL)

#define NAMED(SUFFIX)                                                                  \
    {                                                                                  \
        {"q4_k", row_##SUFFIX##_Q4_K}, {"q5_k", row_##SUFFIX##_Q5_K},                  \
            {"q6_k", row_##SUFFIX##_Q6_K}, {"q8_0", row_32_##SUFFIX##_Q8_0},           \
            {"q4_0", row_32_##SUFFIX##_Q4_0}, {"q4_1", row_32_##SUFFIX##_Q4_1},        \
            {"q5_0", row_32_##SUFFIX##_Q5_0}, {"q5_1", row_32_##SUFFIX##_Q5_1},        \
            {"iq4_nl", row_32_##SUFFIX##_IQ4_NL}, {"iq4_xs", row_##SUFFIX##_IQ4_XS}, { \
            NULL, NULL                                                                 \
        }                                                                              \
    }
static const struct named_rows avx2[] = NAMED(avx2), vnni[] = NAMED(vnni);
static const struct named_rows none[] = {{NULL, NULL}};

const struct named_rows *kernels_of_columns(int level) {
    __builtin_cpu_init();
    if (level >= 2 && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw"))
        return vnni;
    if (level >= 1 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2;
    return none;
}
#else
static const struct named_rows none[] = {{NULL, NULL}};
const struct named_rows *kernels_of_columns(int level) {
    (void)level;
    return none;
}
#endif
