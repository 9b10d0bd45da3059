// Normalisation, pooling and element-wise layers of one network on a pack of samples; see layers.h.

#pragma once

#include "layers.h"
#include "team.h"

namespace esper {

inline Vec inverse_root(Vec variance, float epsilon = EPSILON) {
    Vec out;
    for (i64 lane = 0; lane < PACK; ++lane) out[lane] = 1.0f / std::sqrt(variance[lane] + epsilon);
    return out;
}

inline Vec total(const Vec* x, i64 count) {
    Vec a = {}, b = {}, c = {}, d = {};
    i64 i = 0;
    for (; i + 4 <= count; i += 4) a += x[i], b += x[i + 1], c += x[i + 2], d += x[i + 3];
    for (; i < count; ++i) a += x[i];
    return (a + b) + (c + d);
}

inline Vec squares(const Vec* x, Vec mean, i64 count) {
    Vec a = {}, b = {};
    i64 i = 0;
    for (; i + 2 <= count; i += 2) {
        const Vec p = x[i] - mean, q = x[i + 1] - mean;
        a += p * p, b += q * q;
    }
    for (; i < count; ++i) a += (x[i] - mean) * (x[i] - mean);
    return a + b;
}

// Group norm. `stats`: per group mean and inverse deviation of every lane, kept for backward.
inline void group_norm_forward(const Vec* x, i64 channels, i64 area, i64 groups, const float* w, const float* b,
                               bool rectify, Vec* stats, Vec* y) {
    const i64 each = channels / groups, count = each * area;
    for (i64 g = 0; g < groups; ++g) {
        const Vec* xg = x + g * count;
        const Vec mean = total(xg, count) / static_cast<float>(count);
        const Vec inverse = inverse_root(squares(xg, mean, count) / static_cast<float>(count));
        stats[2 * g] = mean, stats[2 * g + 1] = inverse;
        for (i64 c = 0; c < each; ++c) {
            const Vec scale = inverse * w[g * each + c];
            const float shift = b[g * each + c];
            for (i64 p = 0; p < area; ++p) {
                const Vec out = (xg[c * area + p] - mean) * scale + shift;
                y[g * count + c * area + p] = rectify ? relu(out) : out;
            }
        }
    }
}

// `gy` is masked in place where the relu was shut.
inline void group_norm_backward(const Vec* x, const Vec* y, i64 channels, i64 area, i64 groups, const float* w,
                                bool rectify, const Vec* stats, Vec* gy, float* gw, float* gb, bool add, Vec* gx) {
    const i64 each = channels / groups, count = each * area;
    for (i64 g = 0; g < groups; ++g) {
        const Vec mean = stats[2 * g], inverse = stats[2 * g + 1];
        Vec mean_g = {}, mean_gx = {};
        for (i64 c = g * each; c < (g + 1) * each; ++c) {
            Vec sum_g = {}, sum_gx = {};
            for (i64 p = c * area; p < (c + 1) * area; ++p) {
                if (rectify) gy[p] = y[p] <= 0.0f ? zero() : gy[p];
                sum_g += gy[p];
                sum_gx += gy[p] * (x[p] - mean);
            }
            sum_gx *= inverse;
            const Quad sums = sum_lanes4(sum_g, sum_gx, sum_g, sum_gx);
            gb[c] += sums[0], gw[c] += sums[1];
            mean_g += w[c] * sum_g, mean_gx += w[c] * sum_gx;
        }
        if (!gx) continue;
        mean_g /= static_cast<float>(count), mean_gx /= static_cast<float>(count);
        const Vec slope = mean_gx * inverse;
        for (i64 c = g * each; c < (g + 1) * each; ++c)
            for (i64 p = c * area; p < (c + 1) * area; ++p) {
                const Vec out = inverse * (w[c] * gy[p] - mean_g - (x[p] - mean) * slope);
                gx[p] = add ? gx[p] + out : out;
            }
    }
}

inline void batch_norm_observe(const Vec* x, i64 channels, i64 area, i64 samples, Moments* moments) {
    const Vec mask = lanes_below(samples);
    const float count = static_cast<float>(area * samples);
    for (i64 c = 0; c < channels; ++c) {
        const Vec* xc = x + c * area;
        const float mean = sum_lanes(total(xc, area) * mask) / count;
        moments[c].merge(count, mean, sum_lanes(squares(xc, zero() + mean, area) * mask));
    }
}

inline void affine_forward(const Vec* x, i64 channels, i64 area, const float* mean, const float* inverse,
                           const float* w, const float* b, bool rectify, Vec* y) {
    for (i64 c = 0; c < channels; ++c) {
        const float scale = w[c] * inverse[c], shift = b[c], m = mean[c];
        for (i64 p = c * area; p < (c + 1) * area; ++p) {
            const Vec out = (x[p] - m) * scale + shift;
            y[p] = rectify ? relu(out) : out;
        }
    }
}

// First half of batch norm's backward: masks `gy` where the relu was shut and adds up what all samples must know.
inline void batch_norm_sums(const Vec* x, const Vec* y, i64 channels, i64 area, const float* mean,
                            const float* inverse, bool rectify, Vec* gy, float* gw, float* gb) {
    for (i64 c = 0; c < channels; ++c) {
        Vec sum_g = {}, sum_gx = {};
        for (i64 p = c * area; p < (c + 1) * area; ++p) {
            if (rectify) gy[p] = y[p] <= 0.0f ? zero() : gy[p];
            sum_g += gy[p];
            sum_gx += gy[p] * (x[p] - mean[c]);
        }
        const Quad sums = sum_lanes4(sum_g, sum_gx, sum_g, sum_gx);
        gb[c] += sums[0], gw[c] += sums[1] * inverse[c];
    }
}

// Second half, once the sums over all samples are known. `samples`: lanes without one get no gradient.
inline void batch_norm_backward(const Vec* x, i64 channels, i64 area, float count, i64 samples, const float* mean,
                                const float* inverse, const float* w, const Vec* gy, const float* gw, const float* gb,
                                bool add, Vec* gx) {
    const Vec mask = lanes_below(samples);
    for (i64 c = 0; c < channels; ++c) {
        const float mean_g = gb[c] / count, slope = gw[c] / count * inverse[c], m = mean[c];
        const Vec scale = mask * (w[c] * inverse[c]);
        for (i64 p = c * area; p < (c + 1) * area; ++p) {
            const Vec out = scale * (gy[p] - mean_g - (x[p] - m) * slope);
            gx[p] = add ? gx[p] + out : out;
        }
    }
}

inline Vec larger(Vec a, Vec b) { return (a > b) | (a != a) ? a : b; }  // a NaN wins

// The share of the gradient of max(own, other) that belongs to own; equal numbers share it.
inline Vec share(Vec own, Vec other, Vec g) {
    const Vec half = own == other ? 0.5f * g : g;
    return own < other ? zero() : half;
}

// 2x2 maximum: the larger of a column's two entries, then of the two columns; an odd last row or column is dropped.
inline void pool_forward(const Vec* x, i64 channels, i64 height, i64 width, Vec* y) {
    for (i64 c = 0; c < channels; ++c, x += height * width)
        for (i64 h = 0; h + 1 < height; h += 2)
            for (i64 col = 0; col + 1 < width; col += 2) {
                const Vec *top = x + h * width + col, *low = top + width;
                *y++ = larger(larger(top[0], low[0]), larger(top[1], low[1]));
            }
}

inline void pool_backward(const Vec* x, i64 channels, i64 height, i64 width, const Vec* gy, bool add, Vec* gx) {
    if (!add && (height % 2 || width % 2)) std::fill(gx, gx + channels * height * width, zero());
    for (i64 c = 0; c < channels; ++c, x += height * width, gx += height * width)
        for (i64 h = 0; h + 1 < height; h += 2)
            for (i64 col = 0; col + 1 < width; col += 2, ++gy) {
                const Vec *top = x + h * width + col, *low = top + width;
                Vec *to_top = gx + h * width + col, *to_low = to_top + width;
                const Vec left = larger(top[0], low[0]), right = larger(top[1], low[1]);
                const Vec gl = share(left, right, *gy), gr = share(right, left, *gy);
                const Vec out[4] = {share(top[0], low[0], gl), share(top[1], low[1], gr), share(low[0], top[0], gl),
                                    share(low[1], top[1], gr)};
                to_top[0] = add ? to_top[0] + out[0] : out[0], to_top[1] = add ? to_top[1] + out[1] : out[1];
                to_low[0] = add ? to_low[0] + out[2] : out[2], to_low[1] = add ? to_low[1] + out[3] : out[3];
            }
}

inline void mean_forward(const Vec* x, i64 channels, i64 area, Vec* y) {
    for (i64 c = 0; c < channels; ++c) y[c] = total(x + c * area, area) / static_cast<float>(area);
}

inline void mean_backward(const Vec* gy, i64 channels, i64 area, bool add, Vec* gx) {
    for (i64 c = 0; c < channels; ++c) {
        const Vec each = gy[c] / static_cast<float>(area);
        for (i64 p = c * area; p < (c + 1) * area; ++p) gx[p] = add ? gx[p] + each : each;
    }
}

}  // namespace esper
