// Vector registers of the instruction set that is compiled for: the one place that knows how wide and how many.
//
// A pack: samples side by side, one per lane of a vector register. Every number of a feature map becomes one vector, so
// all arithmetic is vertical: no edges, no shuffles, full registers whatever the size of the maps.

#pragma once

#include <cstdint>
#include <cstring>

namespace esper {

// LANES: numbers (float32) in a register. Vectors of more than that are taken apart through memory.
#if defined(ESPER_LANES)  // a row of the table on another machine, for tests
constexpr int LANES = ESPER_LANES, REGISTERS = ESPER_REGISTERS;
#elif defined(__AVX512F__)
constexpr int LANES = 16, REGISTERS = 32;
#elif defined(__AVX__)
constexpr int LANES = 8, REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int LANES = 4, REGISTERS = 32;
#else  // SSE, and whatever else there is
constexpr int LANES = 4, REGISTERS = 16;
#endif

// Whether a tile stays in registers: its sums, a row of what they read, and the number that multiplies the row.
constexpr bool fits(int sums, int row) { return sums + row + 1 <= REGISTERS; }

using i64 = std::int64_t;

constexpr i64 PACK = LANES;

typedef float Vec __attribute__((vector_size(PACK * sizeof(float))));
typedef float Quad __attribute__((vector_size(16)));
typedef float Octet __attribute__((vector_size(32)));
typedef float Sixteen __attribute__((vector_size(64)));
typedef float LooseQuad __attribute__((vector_size(16), aligned(4)));

// The same number, kept in a register. Compilers would rather read it anew for every product that it takes part in, and
// reads, not products, are then what takes the time. (It is taken and given by value: an array whose elements were
// handed over by their places would be written to memory as well.)
inline Vec held(Vec v) {
#if defined(ESPER_LANES)
#elif defined(__AVX512F__)
    asm("" : "+v"(v));
#elif defined(__SSE2__)
    asm("" : "+x"(v));
#elif defined(__aarch64__)
    asm("" : "+w"(v));
#endif
    return v;
}

inline i64 packs_of(i64 batch) { return (batch + PACK - 1) / PACK; }

// Four rows of four numbers, exchanged with columns.
inline void transpose4(Quad& a, Quad& b, Quad& c, Quad& d) {
    const Quad ab0 = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab1 = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    const Quad cd0 = __builtin_shufflevector(c, d, 0, 4, 1, 5), cd1 = __builtin_shufflevector(c, d, 2, 6, 3, 7);
    a = __builtin_shufflevector(ab0, cd0, 0, 1, 4, 5);
    b = __builtin_shufflevector(ab0, cd0, 2, 3, 6, 7);
    c = __builtin_shufflevector(ab1, cd1, 0, 1, 4, 5);
    d = __builtin_shufflevector(ab1, cd1, 2, 3, 6, 7);
}

inline Quad load4(const float* from) { return *reinterpret_cast<const LooseQuad*>(from); }
inline void store4(float* to, Quad value) { *reinterpret_cast<LooseQuad*>(to) = value; }

// Samples, wherever each of them is, of `size` numbers -> a pack.
inline void load_samples(const float* const* samples, i64 size, Vec* pack) {
    float* to = reinterpret_cast<float*>(pack);
    for (i64 lane = 0; lane < PACK; lane += 4) {
        const float* const* s = samples + lane;
        i64 i = 0;
        for (; i + 4 <= size; i += 4) {
            Quad a = load4(s[0] + i), b = load4(s[1] + i), c = load4(s[2] + i), d = load4(s[3] + i);
            transpose4(a, b, c, d);
            float* t = to + i * PACK + lane;
            store4(t, a), store4(t + PACK, b), store4(t + 2 * PACK, c), store4(t + 3 * PACK, d);
        }
        for (; i < size; ++i)
            for (i64 l = 0; l < 4; ++l) to[i * PACK + lane + l] = s[l][i];
    }
}

// A pack -> `count` samples of `size` numbers.
inline void store_pack(const Vec* pack, i64 sample, i64 count, i64 size, float* to) {
    const float* from = reinterpret_cast<const float*>(pack);
    i64 lane = 0;
    for (; lane + 4 <= count; lane += 4) {
        float* s = to + lane * sample;
        i64 i = 0;
        for (; i + 4 <= size; i += 4) {
            const float* f = from + i * PACK + lane;
            Quad a = load4(f), b = load4(f + PACK), c = load4(f + 2 * PACK), d = load4(f + 3 * PACK);
            transpose4(a, b, c, d);
            store4(s + i, a), store4(s + sample + i, b), store4(s + 2 * sample + i, c), store4(s + 3 * sample + i, d);
        }
        for (; i < size; ++i)
            for (i64 l = 0; l < 4; ++l) s[l * sample + i] = from[i * PACK + lane + l];
    }
    for (; lane < count; ++lane)
        for (i64 i = 0; i < size; ++i) to[lane * sample + i] = from[i * PACK + lane];
}

// A vector's halves added up, down to four lanes.
inline Quad fold(const Quad& v) { return v; }
inline Quad fold(const Octet& v) {
    return __builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7);
}
inline Quad fold(const Sixteen& v) {
    const Octet half = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                       __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
    return fold(half);
}

// In every four lanes the sums of a's first and last two and of b's, by turns.
inline Quad pairs_of(const Quad& a, const Quad& b) {
    return __builtin_shufflevector(a, b, 0, 4, 1, 5) + __builtin_shufflevector(a, b, 2, 6, 3, 7);
}
inline Octet pairs_of(const Octet& a, const Octet& b) {
    return __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13) +
           __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
}
inline Sixteen pairs_of(const Sixteen& a, const Sixteen& b) {
    return __builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29) +
           __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
}

// The sums over the lanes of four vectors. Shuffles first: the fewer lanes there are, the less a shuffle moves.
inline Quad sum_lanes4(Vec a, Vec b, Vec c, Vec d) {
    Quad ab = fold(pairs_of(a, b)), cd = fold(pairs_of(c, d));
    return __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
}

inline float sum_lanes(Vec v) {
    const Quad q = fold(v);
    return (q[0] + q[2]) + (q[1] + q[3]);
}

// Of every vector the sums of its halves, of p's first; then of quarters; then of each four lanes' halves, by turns.
inline Octet halves_of(const Octet& p, const Octet& q) {
    return __builtin_shufflevector(p, q, 0, 1, 2, 3, 8, 9, 10, 11) +
           __builtin_shufflevector(p, q, 4, 5, 6, 7, 12, 13, 14, 15);
}
inline Sixteen halves_of(const Sixteen& p, const Sixteen& q) {
    return __builtin_shufflevector(p, q, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           __builtin_shufflevector(p, q, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
}
inline Sixteen quarters_of(const Sixteen& p, const Sixteen& q) {
    return __builtin_shufflevector(p, q, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
           __builtin_shufflevector(p, q, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
}
inline Octet ends_of(const Octet& p, const Octet& q) {
    return __builtin_shufflevector(p, q, 0, 1, 8, 9, 4, 5, 12, 13) +
           __builtin_shufflevector(p, q, 2, 3, 10, 11, 6, 7, 14, 15);
}
inline Sixteen ends_of(const Sixteen& p, const Sixteen& q) {
    return __builtin_shufflevector(p, q, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
           __builtin_shufflevector(p, q, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
}

// The sums over the lanes of as many vectors as there are lanes, by the tree of `sum_lanes4`, whose bits they have; for
// 16 of them a third less work.
inline Quad sums_of(const Quad* v) {
    const Quad ab = pairs_of(v[0], v[1]), cd = pairs_of(v[2], v[3]);
    return __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
}
inline Octet sums_of(const Octet* v) {
    const Octet first = halves_of(pairs_of(v[0], v[1]), pairs_of(v[4], v[5]));
    const Octet second = halves_of(pairs_of(v[2], v[3]), pairs_of(v[6], v[7]));
    return ends_of(first, second);
}
inline Sixteen sums_of(const Sixteen* v) {
    const Sixteen a = halves_of(pairs_of(v[0], v[1]), pairs_of(v[4], v[5]));
    const Sixteen b = halves_of(pairs_of(v[8], v[9]), pairs_of(v[12], v[13]));
    const Sixteen c = halves_of(pairs_of(v[2], v[3]), pairs_of(v[6], v[7]));
    const Sixteen d = halves_of(pairs_of(v[10], v[11]), pairs_of(v[14], v[15]));
    return ends_of(quarters_of(a, b), quarters_of(c, d));
}

inline Vec zero() { return Vec{}; }

// The sums over the lanes of N vectors, one after the other.
template <int N>
struct LaneSums {
    static constexpr int SIZE = (N + LANES - 1) / LANES;
    Vec at[SIZE];
    explicit LaneSums(const Vec* v) {
        for (int n = 0; n < SIZE; ++n) {
            Vec part[LANES];
            for (int j = 0; j < LANES; ++j) part[j] = n * LANES + j < N ? v[n * LANES + j] : zero();
            at[n] = sums_of(part);
        }
    }
    const float* numbers() const { return reinterpret_cast<const float*>(at); }
};

inline Vec relu(Vec x) { return x < 0.0f ? zero() : x; }  // NaN stays NaN

// The lanes that hold a sample.
inline Vec lanes_below(i64 count) {
    Vec mask = {};
    for (i64 lane = 0; lane < count && lane < PACK; ++lane) mask[lane] = 1.0f;
    return mask;
}

}  // namespace esper
