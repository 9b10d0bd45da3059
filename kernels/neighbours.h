// What joins numbers of one sample: pairs, neighbours, matrices, places; forward and backward. See layers.h.

#pragma once

#include "elementwise.h"
#include "norms.h"

namespace esper {

// Pairs of `repeats` rows of `count` parts of `each` neighbours with one number for every part, the same in all rows.
struct Pairs {
    i64 repeats, count, each;
};

// x + y, or x y; y: of every sample, or of the network.
template <bool PRODUCT, typename Other>
inline void pair_forward(const Pairs& p, const Vec* x, const Other* other, Vec* y) {
    for (i64 r = 0; r < p.repeats; ++r) {
        if (p.each == 1) {
            for (i64 c = 0; c < p.count; ++c) y[c] = PRODUCT ? x[c] * other[c] : x[c] + other[c];
        } else {
            for (i64 c = 0; c < p.count; ++c)
                for (i64 n = c * p.each; n < (c + 1) * p.each; ++n) y[n] = PRODUCT ? x[n] * other[c] : x[n] + other[c];
        }
        x += p.count * p.each, y += p.count * p.each;
    }
}

// The gradient of x.
template <bool PRODUCT, typename Other>
inline void pair_backward_x(const Pairs& p, const Other* other, const Vec* gy, bool add, Vec* gx) {
    for (i64 r = 0; r < p.repeats; ++r, gy += p.count * p.each, gx += p.count * p.each) {
        if (p.each == 1) {
            for (i64 c = 0; c < p.count; ++c) give(gx, c, add, PRODUCT ? gy[c] * other[c] : gy[c]);
            continue;
        }
        for (i64 c = 0; c < p.count; ++c)
            for (i64 n = c * p.each; n < (c + 1) * p.each; ++n) give(gx, n, add, PRODUCT ? gy[n] * other[c] : gy[n]);
    }
}

// A part's gradient, summed over all rows.
template <bool PRODUCT>
inline Vec pair_sum(const Pairs& p, const Vec* x, const Vec* gy, i64 c) {
    Vec sum = {};
    for (i64 r = 0; r < p.repeats; ++r) {
        const i64 begin = (r * p.count + c) * p.each;
        for (i64 n = begin; n < begin + p.each; ++n) sum += PRODUCT ? gy[n] * x[n] : gy[n];
    }
    return sum;
}

// The gradient of y, of every sample.
template <bool PRODUCT>
inline void pair_backward_other(const Pairs& p, const Vec* x, const Vec* gy, bool add, Vec* g_other) {
    for (i64 c = 0; c < p.count; ++c) give(g_other, c, add, pair_sum<PRODUCT>(p, x, gy, c));
}

// The gradient of y, of the network.
template <bool PRODUCT>
inline void pair_backward_numbers(const Pairs& p, const Vec* x, const Vec* gy, float* gw) {
    for (i64 c = 0; c < p.count; c += 4) {
        const auto sum = [&](i64 j) { return c + j < p.count ? pair_sum<PRODUCT>(p, x, gy, c + j) : zero(); };
        const Quad sums = sum_lanes4(sum(0), sum(1), sum(2), sum(3));
        for (i64 j = 0; j < 4 && c + j < p.count; ++j) gw[c + j] += sums[j];
    }
}

struct Both {
    const Vec *x, *other, *gy;
    Vec *gx, *g_other;
    bool add[2];
};

template <bool PRODUCT>
inline void pair_backward(const Pairs& p, const Both& b) {
    if (b.gx) pair_backward_x<PRODUCT>(p, b.other, b.gy, b.add[0], b.gx);
    if (b.g_other) pair_backward_other<PRODUCT>(p, b.x, b.gy, b.add[1], b.g_other);
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

// Numbers at places of x; 0 where the place is -1.
inline void take_forward(const Vec* x, const i64* places, i64 size, Vec* y) {
    for (i64 n = 0; n < size; ++n) y[n] = places[n] < 0 ? zero() : x[places[n]];
}

inline void take_backward(const Vec* gy, const i64* places, i64 size, i64 from, bool add, Vec* gx) {
    if (!add) std::fill(gx, gx + from, zero());
    for (i64 n = 0; n < size; ++n)
        if (places[n] >= 0) gx[places[n]] += gy[n];
}

// Rows of a network's table [tokens, each], by number.
inline void embed_forward(const Vec* tokens, i64 count, const float* table, i64 each, Vec* y) {
    for (i64 t = 0; t < count; ++t) {
        const float* rows[PACK];
        for (i64 lane = 0; lane < PACK; ++lane) rows[lane] = table + static_cast<i64>(tokens[t][lane]) * each;
        load_samples(rows, each, y + t * each);
    }
}

// Rows add up in the order of tokens, then of samples.
inline void embed_backward(const Vec* tokens, i64 count, const Vec* gy, i64 samples, i64 each, float* gw) {
    for (i64 t = 0; t < count; ++t, gy += each) {
        const float* from = reinterpret_cast<const float*>(gy);
        for (i64 lane = 0; lane < samples; ++lane) {
            float* row = gw + static_cast<i64>(tokens[t][lane]) * each;
            for (i64 n = 0; n < each; ++n) row[n] += from[n * PACK + lane];
        }
    }
}

inline void const_forward(const i64* bits, i64 size, Vec* y) {
    for (i64 n = 0; n < size; ++n) y[n] = zero() + number_of(bits[n]);
}

}  // namespace esper
