// Convolutions, tile by tile.

#include "scratch.h"
#include "winograd.h"

namespace esper {
namespace {

inline Weights as_they_lie(const Conv& c, const float* w) {
    return {w, c.in * c.taps(), c.taps(), 1, c.out * c.in * c.taps()};
}
inline Weights transposed(const Conv& c, const float* w) {
    return {w + c.taps() - 1, c.taps(), c.in * c.taps(), -1, c.out * c.in * c.taps()};
}

// What C neighbouring output channels are made of.
struct Source {
    const Conv& conv;
    const Vec* x;
    i64 in;
    const float* w;     // [in][K][K][C]
    const float* bias;  // of each channel; null: none
    bool add;
};

// T neighbouring positions of C output channels; K: side of the kernel. INSIDE: no tap lies beside the map's rows.
template <int C, int T, int K, bool INSIDE>
inline void convolve_tile(const Source& s, i64 h, i64 first, Vec* y) {
    constexpr int PAD = K / 2;
    const i64 area = s.conv.area(), height = s.conv.height, width = s.conv.width, in = s.in;
    Vec sum[C][T];
    for (int o = 0; o < C; ++o)
        for (int t = 0; t < T; ++t) sum[o][t] = s.bias ? zero() + s.bias[o] : s.add ? y[o * area + t] : zero();
    const i64 top = std::max<i64>(0, PAD - h), bottom = std::min<i64>(K, height + PAD - h);
    for (i64 i = 0; i < in; ++i)
        for (i64 ky = top; ky < bottom; ++ky) {
            const Vec* row = s.x + i * area + (h + ky - PAD) * width + first - PAD;
            const float* w = s.w + (i * K + ky) * K * C;
            for (int kx = 0; kx < K; ++kx, w += C) {
                Vec v[T];
                for (int t = 0; t < T; ++t) {
                    const i64 col = first - PAD + t + kx;
                    const bool within = INSIDE || (t + kx >= PAD && t + kx < T + PAD) || (col >= 0 && col < width);
                    v[t] = held(within ? row[t + kx] : zero());
                }
                for (int o = 0; o < C; ++o)
                    for (int t = 0; t < T; ++t) sum[o][t] += w[o] * v[t];
            }
        }
    for (int o = 0; o < C; ++o)
        for (int t = 0; t < T; ++t) y[o * area + t] = sum[o][t];
}

template <int C, int T, int K>
inline void convolve_positions(const Source& s, i64 h, i64 first, Vec* y) {
    const bool inside = first >= K / 2 && first + T + K / 2 <= s.conv.width;
    (inside ? convolve_tile<C, T, K, true> : convolve_tile<C, T, K, false>)(s, h, first, y);
}

// Any size of kernel, one position at a time.
inline void convolve_point(const Conv& c, const Vec* x, i64 in, const float* w, const Weights& s, i64 h, i64 col,
                           const float* bias, bool add, Vec* y) {
    const i64 k = c.kernel, pad = k / 2, area = c.area();
    Vec sum = bias ? zero() + bias[0] : add ? y[0] : zero();
    for (i64 i = 0; i < in; ++i)
        for (i64 ky = std::max<i64>(0, pad - h); ky < std::min(k, c.height + pad - h); ++ky)
            for (i64 kx = std::max<i64>(0, pad - col); kx < std::min(k, c.width + pad - col); ++kx)
                sum += w[i * s.in + (ky * k + kx) * s.tap] * x[i * area + (h + ky - pad) * c.width + col + kx - pad];
    y[0] = sum;
}

// Weights of C output channels as they are read.
template <int C, int K>
inline const float* packed(i64 in, const float* w, const Weights& s) {
    thread_local Scratch scratch;
    float* to = reinterpret_cast<float*>(scratch.room(packs_of(in * K * K * C)));
    for (i64 i = 0, n = 0; i < in; ++i)
        for (i64 k = 0; k < K * K; ++k)
            for (i64 o = 0; o < C; ++o) to[n++] = w[i * s.in + k * s.tap + o * s.out];
    return to;
}

template <int C, int K>
inline void convolve_channels(const Conv& c, const Vec* x, i64 in, const float* w, const Weights& s,
                              const float* bias, bool add, Vec* y) {
    constexpr int T = positions(C);
    const Source source{c, x, in, packed<C, K>(in, w, s), bias, add};
    for (i64 h = 0; h < c.height; ++h) {
        i64 col = 0;
        Vec* row = y + h * c.width;
        for (; col + T <= c.width; col += T) convolve_positions<C, T, K>(source, h, col, row + col);
        if constexpr (T > 2)
            for (; col + 2 <= c.width; col += 2) convolve_positions<C, 2, K>(source, h, col, row + col);
        for (; col < c.width; ++col) convolve_positions<C, 1, K>(source, h, col, row + col);
    }
}

template <int K>
inline void convolve_group(const Conv& c, const Vec* x, i64 in, i64 out, const float* w, const Weights& s,
                           const float* bias, bool add, Vec* y) {
    i64 o = 0;
    const auto at = [&](i64 channel) { return bias ? bias + channel : nullptr; };
    for (; o + 4 <= out; o += 4) convolve_channels<4, K>(c, x, in, w + o * s.out, s, at(o), add, y + o * c.area());
    for (; o + 2 <= out; o += 2) convolve_channels<2, K>(c, x, in, w + o * s.out, s, at(o), add, y + o * c.area());
    for (; o < out; ++o) convolve_channels<1, K>(c, x, in, w + o * s.out, s, at(o), add, y + o * c.area());
}

// y [groups * out'] = x [groups * in'] * weights; `in` and `out` as seen by `s`.
inline void convolve(const Conv& c, const Vec* x, i64 in, i64 out, const Weights& s, const float* bias, bool add,
                     Vec* y) {
    for (i64 g = 0; g < c.groups; ++g) {
        const Vec* xg = x + g * in * c.area();
        Vec* yg = y + g * out * c.area();
        const float *w = s.first + g * s.group, *b = bias ? bias + g * out : nullptr;
        if (filters(c, in, out)) {
            filter(c, xg, in, out, {w, s.out, s.in, s.tap, 0}, b, add, yg);
            continue;
        }
        switch (c.is_product() ? 1 : c.kernel) {
            case 1: convolve_group<1>(c, xg, in, out, w + c.middle() * s.tap, s, b, add, yg); break;
            case 3: convolve_group<3>(c, xg, in, out, w, s, b, add, yg); break;
            case 5: convolve_group<5>(c, xg, in, out, w, s, b, add, yg); break;
            default:
                for (i64 o = 0; o < out; ++o)
                    for (i64 p = 0; p < c.area(); ++p)
                        convolve_point(c, xg, in, w + o * s.out, s, p / c.width, p % c.width, b ? b + o : nullptr,
                                       add, yg + o * c.area() + p);
        }
    }
}

// One row of taps (`ky`) of C output channels and one input channel, summed over positions and samples.
template <int C, int K>
inline void contract_taps(const Conv& c, const Vec* x, const Vec* g, i64 ky, float* gw, i64 out_stride) {
    constexpr int PAD = K / 2;
    const i64 area = c.area(), width = c.width;
    Vec sum[C][K] = {};
    const auto position = [&](const Vec* row, const Vec* grad, i64 col) {
        for (int kx = 0; kx < K; ++kx)
            if (col + kx >= PAD && col + kx < width + PAD)
                for (int o = 0; o < C; ++o) sum[o][kx] += grad[o * area + col] * row[col + kx - PAD];
    };
    for (i64 h = std::max<i64>(0, PAD - ky); h < std::min(c.height, c.height + PAD - ky); ++h) {
        const Vec *row = x + (h + ky - PAD) * width, *grad = g + h * width;
        i64 col = 0;
        for (; col < std::min<i64>(PAD, width); ++col) position(row, grad, col);
        for (; col + PAD < width; ++col) {
            Vec v[K];
            for (int kx = 0; kx < K; ++kx) v[kx] = row[col + kx - PAD];
            for (int o = 0; o < C; ++o) {
                const Vec each = grad[o * area + col];
                for (int kx = 0; kx < K; ++kx) sum[o][kx] += each * v[kx];
            }
        }
        for (; col < width; ++col) position(row, grad, col);
    }
    const LaneSums<C * K> sums(sum[0]);
    for (int o = 0; o < C; ++o)
        for (int kx = 0; kx < K; ++kx) gw[o * out_stride + ky * K + kx] += sums.numbers()[o * K + kx];
}

inline void contract_any(const Conv& c, const Vec* x, const Vec* g, float* gw) {
    const i64 k = c.kernel, pad = k / 2;
    for (i64 ky = 0; ky < k; ++ky)
        for (i64 kx = 0; kx < k; ++kx) {
            Vec sum = zero();
            for (i64 h = std::max<i64>(0, pad - ky); h < std::min(c.height, c.height + pad - ky); ++h)
                for (i64 col = std::max<i64>(0, pad - kx); col < std::min(c.width, c.width + pad - kx); ++col)
                    sum += g[h * c.width + col] * x[(h + ky - pad) * c.width + col + kx - pad];
            gw[ky * k + kx] += sum_lanes(sum);
        }
}

template <int C>
inline void contract_channels(const Conv& c, const Vec* x, const Vec* g, float* gw) {
    const i64 stride = c.in * c.taps(), area = c.area();
    for (i64 i = 0; i < c.in; ++i) {
        const Vec* xi = x + i * area;
        float* wi = gw + i * c.taps();
        if (c.kernel == 3)
            for (i64 ky = 0; ky < 3; ++ky) contract_taps<C, 3>(c, xi, g, ky, wi, stride);
        else
            for (int o = 0; o < C; ++o) contract_any(c, xi, g + o * area, wi + o * stride);
    }
}

}  // namespace

void conv_forward(const Conv& c, const Vec* x, const float* w, const float* bias, Vec* y) {
    convolve(c, x, c.in, c.out, as_they_lie(c, w), bias, false, y);
}
void conv_backward_input(const Conv& c, const Vec* g, const float* w, bool add, Vec* gx) {
    convolve(c, g, c.out, c.in, transposed(c, w), nullptr, add, gx);
}

void conv_backward_weight(const Conv& c, const Vec* x, const Vec* g, float* gw) {
    for (i64 group = 0; group < c.groups; ++group) {
        const Vec *xg = x + group * c.in * c.area(), *gg = g + group * c.out * c.area();
        float* w = gw + group * c.out * c.in * c.taps();
        if (c.is_product()) {
            contract({c.area(), c.in, c.out}, {xg, 1, c.area()}, {gg, 1, c.area()},
                     {w + c.middle(), c.in * c.taps(), c.taps()});
            continue;
        }
        if (c.in > 1 && filters(c, c.in, c.out)) {
            filter_gradient(c, xg, gg, w);
            continue;
        }
        const i64 stride = c.in * c.taps();
        i64 o = 0;
        if constexpr (fits(8 * 3, 3))
            for (; o + 8 <= c.out; o += 8) contract_channels<8>(c, xg, gg + o * c.area(), w + o * stride);
        for (; o + 4 <= c.out; o += 4) contract_channels<4>(c, xg, gg + o * c.area(), w + o * stride);
        for (; o < c.out; ++o) contract_channels<1>(c, xg, gg + o * c.area(), w + o * stride);
    }
}

}  // namespace esper
