// What joins numbers of one sample: pairs, neighbours, matrices, places; forward and backward. See layers.h.

#pragma once

#include "elementwise.h"

namespace esper {

// x + y, or x y: y[n] stands beside `each` neighbours of x.
template <bool PRODUCT>
inline void pair_forward(const Vec* x, const Vec* other, i64 count, i64 each, Vec* y) {
    if (each == 1) {
        for (i64 n = 0; n < count; ++n) y[n] = PRODUCT ? x[n] * other[n] : x[n] + other[n];
        return;
    }
    for (i64 c = 0; c < count; ++c)
        for (i64 n = c * each; n < (c + 1) * each; ++n) y[n] = PRODUCT ? x[n] * other[c] : x[n] + other[c];
}

struct Both {
    const Vec *x, *other, *gy;
    Vec *gx, *g_other;
    bool add[2];
};

template <bool PRODUCT>
inline void pair_backward(const Both& b, i64 count, i64 each) {
    if (each == 1) {
        for (i64 n = 0; b.gx && n < count; ++n) give(b.gx, n, b.add[0], PRODUCT ? b.gy[n] * b.other[n] : b.gy[n]);
        for (i64 n = 0; b.g_other && n < count; ++n) give(b.g_other, n, b.add[1], PRODUCT ? b.gy[n] * b.x[n] : b.gy[n]);
        return;
    }
    for (i64 c = 0; c < count; ++c) {
        Vec sum = {};
        const i64 begin = c * each, end = begin + each;
        for (i64 n = begin; b.g_other && n < end; ++n) sum += PRODUCT ? b.gy[n] * b.x[n] : b.gy[n];
        for (i64 n = begin; b.gx && n < end; ++n) give(b.gx, n, b.add[0], PRODUCT ? b.gy[n] * b.other[c] : b.gy[n]);
        if (b.g_other) give(b.g_other, c, b.add[1], sum);
    }
}

// x + tanh(w) (other - x).
inline void fade_backward(const Both& b, i64 size, const float* w, float* gw) {
    const float openness = std::tanh(w[0]);
    Vec sum = {};
    for (i64 n = 0; n < size; ++n) sum += b.gy[n] * (b.other[n] - b.x[n]);
    gw[0] += sum_lanes(sum) * (1.0f - openness * openness);
    for (i64 n = 0; b.gx && n < size; ++n) give(b.gx, n, b.add[0], b.gy[n] * (1.0f - openness));
    for (i64 n = 0; b.g_other && n < size; ++n) give(b.g_other, n, b.add[1], b.gy[n] * openness);
}

inline void softmax_forward(const Vec* x, i64 groups, i64 each, Vec* y) {
    for (i64 g = 0; g < groups; ++g, x += each, y += each) {
        Vec most = x[0], sum = {};
        for (i64 n = 1; n < each; ++n) most = larger(most, x[n]);
        for (i64 n = 0; n < each; ++n) {
            y[n] = exp(x[n] - most);
            sum += y[n];
        }
        for (i64 n = 0; n < each; ++n) y[n] /= sum;
    }
}

inline void softmax_backward(const Vec* y, const Vec* gy, i64 groups, i64 each, bool add, Vec* gx) {
    for (i64 g = 0; g < groups; ++g, y += each, gy += each, gx += each) {
        Vec sum = {};
        for (i64 n = 0; n < each; ++n) sum += gy[n] * y[n];
        for (i64 n = 0; n < each; ++n) give(gx, n, add, y[n] * (gy[n] - sum));
    }
}

inline void largest_forward(const Vec* x, i64 groups, i64 each, Vec* y) {
    for (i64 g = 0; g < groups; ++g, x += each) {
        y[g] = x[0];
        for (i64 n = 1; n < each; ++n) y[g] = larger(y[g], x[n]);
    }
}

// Equals share the gradient, or the first of them has it.
inline void largest_backward(const Vec* x, const Vec* y, const Vec* gy, i64 groups, i64 each, bool first, bool add,
                             Vec* gx) {
    for (i64 g = 0; g < groups; ++g, x += each, gx += each) {
        Vec equals = {}, seen = {};
        for (i64 n = 0; n < each; ++n) equals += x[n] == y[g] ? zero() + 1.0f : zero();
        const Vec part = first ? gy[g] : gy[g] / equals;
        for (i64 n = 0; n < each; ++n) {
            const auto here = x[n] == y[g];
            const Vec open = first ? (seen == 0.0f ? part : zero()) : part;
            give(gx, n, add, here ? open : zero());
            seen += here ? zero() + 1.0f : zero();
        }
    }
}

// Minus the mean, over the deviation, of neighbours. `stats`: per group its inverse deviation.
inline void normalise_forward(const Vec* x, i64 groups, i64 each, float epsilon, Vec* stats, Vec* y) {
    for (i64 g = 0; g < groups; ++g, x += each, y += each) {
        const Vec mean = total(x, each) / static_cast<float>(each);
        stats[g] = inverse_root(squares(x, mean, each) / static_cast<float>(each), epsilon);
        for (i64 n = 0; n < each; ++n) y[n] = (x[n] - mean) * stats[g];
    }
}

inline void normalise_backward(const Vec* y, const Vec* stats, const Vec* gy, i64 groups, i64 each, bool add, Vec* gx) {
    for (i64 g = 0; g < groups; ++g, y += each, gy += each, gx += each) {
        Vec sum_g = {}, sum_gy = {};
        for (i64 n = 0; n < each; ++n) sum_g += gy[n], sum_gy += gy[n] * y[n];
        sum_g /= static_cast<float>(each), sum_gy /= static_cast<float>(each);
        for (i64 n = 0; n < each; ++n) give(gx, n, add, stats[g] * (gy[n] - sum_g - y[n] * sum_gy));
    }
}

// Products of matrices: per group x [rows, inner] times other [inner, columns].
struct Matrices {
    i64 groups, rows, inner, columns;
};

inline void matmul_forward(const Matrices& m, const Vec* x, const Vec* other, Vec* y) {
    for (i64 g = 0; g < m.groups; ++g, other += m.inner * m.columns)
        for (i64 r = 0; r < m.rows; ++r, x += m.inner, y += m.columns) {
            std::fill(y, y + m.columns, zero());
            for (i64 k = 0; k < m.inner; ++k)
                for (i64 c = 0; c < m.columns; ++c) y[c] += x[k] * other[k * m.columns + c];
        }
}

inline void matmul_backward(const Matrices& m, Both b) {
    if (b.gx && !b.add[0]) std::fill(b.gx, b.gx + m.groups * m.rows * m.inner, zero());
    if (b.g_other && !b.add[1]) std::fill(b.g_other, b.g_other + m.groups * m.inner * m.columns, zero());
    for (i64 g = 0; g < m.groups; ++g)
        for (i64 r = 0; r < m.rows; ++r) {
            const Vec* gy = b.gy + (g * m.rows + r) * m.columns;
            for (i64 k = 0; k < m.inner; ++k) {
                const i64 own = (g * m.rows + r) * m.inner + k, row = (g * m.inner + k) * m.columns;
                Vec sum = {};
                for (i64 c = 0; b.gx && c < m.columns; ++c) sum += gy[c] * b.other[row + c];
                if (b.gx) b.gx[own] += sum;
                for (i64 c = 0; b.g_other && c < m.columns; ++c) b.g_other[row + c] += gy[c] * b.x[own];
            }
        }
}

// Numbers at places of x; 0 where the place is -1.
inline void take_forward(const Vec* x, const i64* places, i64 size, Vec* y) {
    for (i64 n = 0; n < size; ++n) y[n] = places[n] < 0 ? zero() : x[places[n]];
}

inline void take_backward(const Vec* gy, const i64* places, i64 size, i64 from, bool add, Vec* gx) {
    if (!add) std::fill(gx, gx + from, zero());
    for (i64 n = 0; n < size; ++n)
        if (places[n] >= 0) gx[places[n]] += gy[n];
}

inline void const_forward(const i64* bits, i64 size, Vec* y) {
    for (i64 n = 0; n < size; ++n) y[n] = zero() + number_of(bits[n]);
}

}  // namespace esper
